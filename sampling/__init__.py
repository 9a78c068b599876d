"""Images from trained weights: in a notebook, in a folder, and on a GPU as one CUDA graph."""
