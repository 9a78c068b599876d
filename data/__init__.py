"""From image files to uint8 batches: a reader decodes the images of one source, a memory map keeps
them, and batches are gathered from it."""
