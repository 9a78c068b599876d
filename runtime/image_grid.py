"""Pictures as files, and many images as one picture."""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE, TEXT = 96, 14  # in pixels of the picture


def png(pixels: np.ndarray) -> bytes:
    """[H, W, C] uint8, C 1 or 3, as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, "png")
    return buffer.getvalue()


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """[N, H, W, C] uint8 -> one picture [*, *, C], small images enlarged to be seen, a white line
    between them. columns: None for as many as rows, or one more."""
    N, H, W, C = images.shape
    zoom = max(1, SIDE // max(H, W))
    columns = columns or math.ceil(N**0.5)
    rows = -(-N // columns)
    canvas = np.full((rows * (H + 1) + 1, columns * (W + 1) + 1, C), 255, np.uint8)
    for n, image in enumerate(images):
        y, x = 1 + n // columns * (H + 1), 1 + n % columns * (W + 1)
        canvas[y : y + H, x : x + W] = image
    return canvas.repeat(zoom, 0).repeat(zoom, 1)


def captioned_grid(images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """The same with a line of text below each image."""
    zoom = max(1, SIDE // max(images.shape[1:3]))
    tiles = images.repeat(zoom, 1).repeat(zoom, 2)
    below = np.full((len(tiles), TEXT, *tiles.shape[2:]), 255, np.uint8)
    font = ImageFont.load_default(size=TEXT - 3)
    for line, caption in zip(below, captions, strict=True):
        strip = Image.fromarray(line[..., 0])
        ImageDraw.Draw(strip).text((1, 0), caption, 0, font)
        line[:] = np.asarray(strip)[..., None]
    return grid(np.concatenate([tiles, below], axis=1))
