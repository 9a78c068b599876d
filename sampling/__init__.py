"""Images from trained weights: in a notebook, in a folder, and on a GPU as one CUDA graph."""

from sampling.pipeline import Pipeline, load

__all__ = ["Pipeline", "load"]
