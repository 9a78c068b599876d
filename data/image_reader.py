"""What a source of images is, and how an image becomes an array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from runtime.content import sha256_of
from runtime.errors import UserError


class ImageReader(Protocol):
    """Images that are decoded one by one, each in exactly one split. A source is built from a Memory and its settings.

    name: for messages. fingerprint: a hash of what the images are, not of where they lie. splits: item numbers by split.
    classes: names of the labels, empty where there are none. labels: one a item, all 0 without classes.
    """

    name: str
    fingerprint: str
    splits: dict[str, Sequence[int]]
    classes: Sequence[str]
    labels: Sequence[int]

    def __len__(self) -> int: ...

    def read_image(self, item: int) -> Image.Image:
        """Raises UserError where the image is broken, and Changed where its file is not what the fingerprint is of. Called from
        several threads at once, item after item."""
        ...

    def check_files(self) -> None:
        """Raises Changed where what was found out about the files, such as a range, is of another content than the fingerprint."""
        ...


def hash_of(*content: Any) -> str:
    return sha256_of(content)


class TooSmall(UserError):
    """An image has fewer pixels than are asked for. What mends it, data.upscale=true, is said once and not for each image."""


def to_array(image: Image.Image, size: tuple[int, int], channels: int, upscale: bool, resample: str = "lanczos") -> np.ndarray:
    """[H, W, channels] uint8: the shorter side scaled to fit (antialiased), then the centre cut out.

    size: height, width. resample: one of Pillow's filters. What is transparent is laid on white; gray in 3 channels is repeated,
    colour in 1 is luma (ITU-R 601, Pillow's L). Mode "F" is gray in 0..255 (data.intensity), rounded at the end. Colour profiles are
    not applied.
    """
    H, W = size
    if image.mode[0] == "I":  # Pillow would cut off all above 255
        raise UserError(f"more than 8 bits a pixel (mode {image.mode}): write it as 8 bits, with the range of values that you want to see.")
    if 0 in image.size:
        raise UserError(f"no pixels: {image.height} high and {image.width} wide")
    if image.mode != "F":
        image = opaque(image).convert({1: "L", 3: "RGB"}[channels])
    scale = max(H / image.height, W / image.width)
    if scale > 1 and not upscale:
        raise TooSmall(f"{image.height} high and {image.width} wide, smaller than data.size=[{H}, {W}]")
    fitted = max(W, round(image.width * scale)), max(H, round(image.height * scale))
    image = image.resize(fitted, Image.Resampling[resample.upper()])
    left, top = (image.width - W) // 2, (image.height - H) // 2
    pixels = np.asarray(image.crop((left, top, left + W, top + H)))
    if image.mode == "F":
        pixels = np.repeat(pixels[..., None], channels, 2).clip(0, 255).round().astype(np.uint8)
    return pixels.reshape(H, W, channels)


def opaque(image: Image.Image) -> Image.Image:
    """In a mode that Pillow turns into gray and colour rightly: laid on white where it has transparency, of whatever kind."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert({"RGBa": "RGBA", "La": "LA"}.get(image.mode, image.mode)).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode in ("1", "L", "P", "RGB") else image.convert("RGB")  # CMYK, YCbCr, LAB, HSV
