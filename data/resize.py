"""How an image becomes an array of the size and channels that a run asks for."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from data.intensity import Levels, Translucent, seen
from runtime.errors import UserError


class Unfit(UserError):
    """An image is not what the settings ask for. cure: what mends it, which is said once and not
    for each image."""

    cure = ""


class TooSmall(Unfit):
    """It has fewer pixels than are asked for."""

    cure = "What is too small is enlarged with data.upscale=true; or choose a smaller data.size."


class OtherChannels(Unfit):
    """It has other channels than are asked for, and neither gray nor colour to make them of."""

    def __init__(self, found: int, asked: int):
        super().__init__(f"{found} channels, and data.channels={asked}")
        self.cure = f"data.channels={found} takes what is there"
        if found > 1:
            bands = [1, 2, 3] if found > 3 else [1]
            self.cure += (
                f", all {found}; data.bands=[{','.join(map(str, bands))}] "
                f"data.channels={len(bands)} takes some, counted from 1, as GDAL counts"
            )
        self.cure += "."


def to_array(
    image: Levels,
    size: tuple[int, int],
    channels: int,
    upscale: bool,
    resample: str = "lanczos",
    fit: str = "crop",
    bands: Sequence[int] | None = None,
) -> np.ndarray:
    """Scaled (antialiased) until the shorter side fits, and the centre cut out; or, by pad, until
    the longer side fits, with black around it: what a radiograph is where no X-rays fell, and the
    value of no signal in CT, MRI and bands.

    What is transparent is laid on white; gray in 3 channels is repeated, colour in 1 is luma (ITU-R
    601, Pillow's L). Bands are taken as they are, each by itself, and so is colour with its opacity
    where it has as many channels as are asked for. Mode "F" and bands are in 0..255
    (data.intensity), rounded at the end. Colour profiles are not applied.

    Args:
        size: height, width.
        channels: how many.
        resample: one of Pillow's filters.
        bands: those that are taken of the image, counted from 1; None for all.

    Returns:
        [height, width, channels] uint8.

    Raises:
        UserError: for an image of more than 8 bits, or without pixels.
        TooSmall: without upscale, for one that is smaller.
        OtherChannels: where they neither agree nor are gray or colour.
    """
    if isinstance(image, Image.Image) and image.mode[0] == "I":  # Pillow would cut all above 255
        raise UserError(
            f"more than 8 bits a pixel (mode {image.mode}): write it as 8 bits, with the range of "
            "values that you want to see."
        )
    if 0 in height_width(image):
        raise UserError("no pixels: {} high and {} wide".format(*height_width(image)))
    place = {"crop": _crop, "pad": _pad}[fit]
    parts = [
        place(part, size, upscale, Image.Resampling[resample.upper()])
        for part in _parts(image, channels, bands)
    ]
    pixels = np.concatenate([np.asarray(part).reshape(*size, -1) for part in parts], -1)
    if pixels.dtype != np.uint8:
        pixels = pixels.clip(0, 255).round().astype(np.uint8)
    return np.repeat(pixels, channels, 2) if pixels.shape[2] < channels else pixels


def height_width(image: Levels) -> tuple[int, int]:
    image = seen(image)
    return (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]


def in_bands(image: Levels) -> np.ndarray:
    """[H, W, C], with what says how opaque it is as the last."""
    if isinstance(image, Translucent):
        return image.bands
    if not isinstance(image, Image.Image):
        return image
    if image.mode != "F":
        gray = image.mode in ("1", "L", "LA", "La")
        kind = ("L" if gray else "RGB") + ("A" if image.has_transparency_data else "")
        image = image.convert("LA" if image.mode == "La" else kind)
    return np.atleast_3d(np.asarray(image))


def _parts(image: Levels, channels: int, bands: Sequence[int] | None) -> list[Image.Image]:
    """What is scaled by itself: gray or colour, or each band. One that is asked for as three is
    repeated later."""
    if bands is None and channels in (1, 3):
        image = seen(image)
        if isinstance(image, Image.Image):
            return [image if image.mode == "F" else _opaque(image).convert(MODES[channels])]
    values = in_bands(image)
    found = values.shape[2]
    if bands is None:
        if found != channels and not (found == 1 and channels == 3):
            raise OtherChannels(found, channels)
        bands = range(1, found + 1)
    if max(bands) > found:
        raise UserError(f"{found} channels, and data.bands={list(bands)} has others")
    return [Image.fromarray(values[..., band - 1].astype(np.float32)) for band in bands]


MODES = {1: "L", 3: "RGB"}


def _crop(
    image: Image.Image, size: tuple[int, int], upscale: bool, resample: Image.Resampling
) -> Image.Image:
    H, W = size
    scale = _checked(max(H / image.height, W / image.width), image, size, upscale)
    fitted = max(W, round(image.width * scale)), max(H, round(image.height * scale))
    image = image.resize(fitted, resample)
    left, top = (image.width - W) // 2, (image.height - H) // 2
    return image.crop((left, top, left + W, top + H))


def _pad(
    image: Image.Image, size: tuple[int, int], upscale: bool, resample: Image.Resampling
) -> Image.Image:
    H, W = size
    scale = _checked(min(H / image.height, W / image.width), image, size, upscale)
    fitted = max(1, min(W, round(image.width * scale))), max(1, min(H, round(image.height * scale)))
    canvas = Image.new(image.mode, (W, H))  # of zeros
    canvas.paste(image.resize(fitted, resample), ((W - fitted[0]) // 2, (H - fitted[1]) // 2))
    return canvas


def _checked(scale: float, image: Image.Image, size: tuple[int, int], upscale: bool) -> float:
    if scale > 1 and not upscale:
        raise TooSmall(
            f"{image.height} high and {image.width} wide, smaller than data.size={list(size)}"
        )
    return scale


def _opaque(image: Image.Image) -> Image.Image:
    """In a mode that Pillow turns into gray and colour rightly: laid on white where it has
    transparency, of whatever kind."""
    if image.has_transparency_data:
        # Pillow turns La into nothing else
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    plain = image.mode in ("1", "L", "P", "RGB")  # and not CMYK, YCbCr, LAB, HSV
    return image if plain else image.convert("RGB")
