"""How an image becomes an array of the size and channels that a run asks for."""

import numpy as np
from PIL import Image

from runtime.errors import UserError


class TooSmall(UserError):
    """An image has fewer pixels than are asked for. What mends it, data.upscale=true, is said once
    and not for each image."""


def to_array(
    image: Image.Image,
    size: tuple[int, int],
    channels: int,
    upscale: bool,
    resample: str = "lanczos",
) -> np.ndarray:
    """The shorter side scaled to fit (antialiased), then the centre cut out.

    What is transparent is laid on white; gray in 3 channels is repeated, colour in 1 is luma (ITU-R
    601, Pillow's L). Mode "F" is gray in 0..255 (data.intensity), rounded at the end. Colour
    profiles are not applied.

    Args:
        size: height, width.
        channels: 1 or 3.
        resample: one of Pillow's filters.

    Returns:
        [height, width, channels] uint8.

    Raises:
        UserError: for an image of more than 8 bits, or without pixels.
        TooSmall: without upscale, for one that is smaller.
    """
    H, W = size
    if image.mode[0] == "I":  # Pillow would cut off all above 255
        raise UserError(
            f"more than 8 bits a pixel (mode {image.mode}): write it as 8 bits, with the range of "
            "values that you want to see."
        )
    if 0 in image.size:
        raise UserError(f"no pixels: {image.height} high and {image.width} wide")
    if image.mode != "F":
        image = _opaque(image).convert({1: "L", 3: "RGB"}[channels])
    scale = max(H / image.height, W / image.width)
    if scale > 1 and not upscale:
        raise TooSmall(
            f"{image.height} high and {image.width} wide, smaller than data.size=[{H}, {W}]"
        )
    fitted = max(W, round(image.width * scale)), max(H, round(image.height * scale))
    image = image.resize(fitted, Image.Resampling[resample.upper()])
    left, top = (image.width - W) // 2, (image.height - H) // 2
    pixels = np.asarray(image.crop((left, top, left + W, top + H)))
    if image.mode == "F":
        pixels = np.repeat(pixels[..., None], channels, 2).clip(0, 255).round().astype(np.uint8)
    return pixels.reshape(H, W, channels)


def _opaque(image: Image.Image) -> Image.Image:
    """In a mode that Pillow turns into gray and colour rightly: laid on white where it has
    transparency, of whatever kind."""
    if image.has_transparency_data:
        # Pillow turns La into nothing else
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    plain = image.mode in ("1", "L", "P", "RGB")  # and not CMYK, YCbCr, LAB, HSV
    return image if plain else image.convert("RGB")
