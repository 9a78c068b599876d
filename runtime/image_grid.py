"""Pictures as files, and many images as one picture."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE, TEXT = 96, 14  # in pixels of the picture
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


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
    """The same with text below each image, of as many lines as it has; of a line that is wider than
    the image, which is enlarged for it to at least SIDE, its beginning and its end."""
    zoom = -(-SIDE // max(images.shape[1:3]))
    tiles = images.repeat(zoom, 1).repeat(zoom, 2)
    lines = 1 + max(caption.count("\n") for caption in captions)
    below = np.full((len(tiles), lines * TEXT, *tiles.shape[2:]), 255, np.uint8)
    for strip, caption in zip(below, captions, strict=True):
        picture = Image.fromarray(strip[..., 0])
        draw, font = ImageDraw.Draw(picture), font_for(caption, TEXT - 3)
        for k, line in enumerate(caption.split("\n")):
            draw.text((1, k * TEXT), _fitted(line, picture.width - 1, font), 0, font)
        strip[:] = np.asarray(picture)[..., None]
    return grid(np.concatenate([tiles, below], axis=1))


def font_for(text: str, size: int) -> Font:
    """Pillow's own, which has the letters of ASCII alone, or matplotlib's for others."""
    if text.isascii():
        return ImageFont.load_default(size=size)
    from matplotlib import get_data_path  # takes a while

    return ImageFont.truetype(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def _fitted(line: str, width: int, font: Font) -> str:
    kept, fitted = len(line), line
    while kept and font.getlength(fitted) > width:
        kept -= 1
        fitted = f"{line[: -(-kept // 2)]}..{line[len(line) - kept // 2 :]}"
    return fitted
