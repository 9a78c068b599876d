"""Pictures as files, and many images as one picture."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def png(pixels: np.ndarray) -> bytes:
    """[H, W, C] uint8, C 1 or 3, as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, "png")
    return buffer.getvalue()


def grid(images: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """[N, H, W, C] uint8 -> one picture [*, *, C], small images enlarged to be seen, white between
    them."""
    N, H, W, C = images.shape
    zoom = max(1, 96 // max(H, W))
    rows = -(-N // columns)
    canvas = np.full((rows * (H + gap) + gap, columns * (W + gap) + gap, C), 255, np.uint8)
    for n, image in enumerate(images):
        y, x = gap + n // columns * (H + gap), gap + n % columns * (W + gap)
        canvas[y : y + H, x : x + W] = image
    return canvas.repeat(zoom, 0).repeat(zoom, 1)
