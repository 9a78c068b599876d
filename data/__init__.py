"""From image files to uint8 batches: sources list and decode images, a memory map keeps them, batches are gathered from it."""
