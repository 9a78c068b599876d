"""One ordinary image file, read as it is meant: upright, and with all of its bits.

Pillow cuts colour of 16 bits to 8 without a word, and some gray. Such files are found by their
header and read by pypng, tifffile (data.tiff_file) or here; their values then become levels by a
range (data.intensity).
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import png
from PIL import Image

from data.common_range import OwnRange
from data.decoding import told_as
from data.deep_image import ORIENTATION, DeepImage, Ranges, own_ranges, turned
from data.image_formats import open_image
from data.intensity import Levels
from data.resize import in_bands
from data.tiff_file import TIFF, read_beside_opacity, read_tiff, several, takes_out_since
from runtime.errors import UserError

# kind, width, height, white
PNM_HEADER = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#[^\n]*\n)*(\d+)")
EIGHT_BITS = (b"\xff\xd8", b"BM", b"GI", b"RI")  # how JPEG, BMP, GIF and WebP begin
PNG = b"\x89PNG"
ENDS = 0.1  # of an opacity are fully opaque or transparent, at least
EDGES = 32  # levels of an opacity at soft edges, at most
FADED = 0.1  # of its greatest values: an opacity that fades out is below all around


def read_image_file(
    file: Path | bytes, ranges: Ranges = own_ranges, opacity: bool = True
) -> Levels:
    """The image of a file, upright.

    Args:
        file: where it is, or what it holds.
        ranges: of the values of an image of more than 8 bits, or of each of its bands, what is
            black and what white.
        opacity: heed that of a TIFF, instead of taking it as a band.

    Raises:
        UserError: where it is broken, or holds several images.
    """
    found = _read(file, opacity)
    return found.to_levels(ranges) if isinstance(found, DeepImage) else found


def measure_deep_ranges(path: Path, opacity: bool = True) -> list[OwnRange] | None:
    """For FileCache, the range of one image, or of each of its bands: [] of one of 8 bits, None
    where it cannot be read. opacity: see read_image_file."""
    try:
        with open(path, "rb") as file:
            start = file.read(25)
        # most are, and there are many of them
        eight_bits = start[:2] in EIGHT_BITS or (start.startswith(PNG) and start[24:] <= b"\x08")
        found = None if eight_bits else _read(path, opacity)
    except (UserError, OSError):
        return None
    if not isinstance(found, DeepImage) or found.eight_bits:
        return []
    return [OwnRange.of(part, found.kind) for part in found.parts]


def look_at_tiff(path: Path) -> dict[str, Any]:
    """For FileCache, "opacity", see _opacity_like_band, and "no value", see takes_out_since; {}
    where it cannot be read."""
    try:
        with told_as("an image"):
            data = path.read_bytes()
            return {"opacity": _opacity_like_band(data), "no value": takes_out_since(data)}
    except (UserError, OSError):
        return {}


def _opacity_like_band(data: bytes) -> list[int]:
    """How many channels a TIFF has, whether (1 or 0) what it marks as opacity varies as a band
    does, of near infrared say: many levels, which are hardly ever fully opaque or transparent, and
    no fading out all around, as of a glow; and whether its channels were others when runs got their
    names, which knew opacity alone. [] where it has none."""
    if (found := read_beside_opacity(data)) is None:
        return []
    values = found[..., -1]
    full = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else max(1, values.max())
    ends = np.count_nonzero(values == 0) + np.count_nonzero(values == full)
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    fades = border.max() < FADED * np.quantile(values, 0.99)
    like = ends < ENDS * values.size and len(np.unique(values)) > EDGES and not fades
    # those of more than 8 bits had one range, and now have ranges of their own
    same = found.dtype == np.uint8 and np.array_equal(in_bands(read_image_file(data)), found)
    return [found.shape[-1], int(like), int(not same)]


@told_as("an image")
def _read(file: Path | bytes, opacity: bool) -> Image.Image | DeepImage:
    data = file if isinstance(file, bytes) else file.read_bytes()
    if not data:
        raise UserError("empty: the file has no content")
    if data[:4] in TIFF:
        return read_tiff(data, opacity)
    return _read_pnm(data) or _read_by_pillow(data)


def _read_by_pillow(data: bytes) -> Image.Image | DeepImage:
    with open_image(data) as image:
        pages = getattr(image, "n_frames", 1)
        if pages > 1 and image.format != "MPO":  # of a camera; its first picture is the photograph
            raise several(pages)
        # gray of 16 bits is read whole by Pillow, and fast
        whole = image.mode[0] == "I" and "transparency" not in image.info
        if image.format == "PNG" and data[24] == 16 and not whole:
            return _read_png(data, _orientation(image))
        image.load()
        orientation = _orientation(image)
        if image.mode[0] in "IF":
            return DeepImage(np.asarray(image), orientation=orientation)
        return turned(image, orientation)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # the pixels are well where only their EXIF is not
        return 1


def _read_png(data: bytes, orientation: int) -> DeepImage:
    """16 bits a channel."""
    width, height, rows, about = png.Reader(bytes=data).read()
    values = np.vstack([np.asarray(row, dtype=np.uint16) for row in rows])
    values, alpha = values.reshape(height, width, about["planes"]), None
    if about["alpha"]:
        values, alpha = values[..., :-1], values[..., -1:] / 65535
    if "transparent" in about:
        alpha = (values != about["transparent"]).any(-1, keepdims=True).astype(float)
    return DeepImage(values, alpha=alpha, orientation=orientation)


def _read_pnm(data: bytes) -> DeepImage | None:
    """PGM and PPM of more than 8 bits, which Pillow scales, and cuts where they are in colour. None
    for all others."""
    if not (header := PNM_HEADER.match(data)):
        return None
    kind, width, height, white = map(int, header.groups())
    if white < 256:
        return None
    shape = (height, width, 3 if kind in (3, 6) else 1)
    n, pixels = math.prod(shape), data[header.end() :]
    values = np.frombuffer(pixels, ">u2", n, 1) if kind in (5, 6) else pixels.split()[:n]
    return DeepImage(np.array(values, dtype=np.uint16).reshape(shape))
