"""One ordinary image file, read as it is meant: upright, and with all of its bits.

Pillow cuts colour of 16 bits to 8 without a word, and some gray. Such files are found by their
header and read by pypng, tifffile or here; their values then become levels by a range
(data.intensity).
"""

import contextlib
import io
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import png
import tifffile
from PIL import Image

from data.common_range import OwnRange
from data.decoding import told_as
from data.intensity import Range, to_levels, value_range
from runtime.errors import UserError

SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".gif",
    ".pgm",
    ".ppm",
    ".pnm",
    ".pbm",
}
# kind, width, height, white
PNM_HEADER = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#[^\n]*\n)*(\d+)")
EIGHT_BITS = (b"\xff\xd8", b"BM", b"GI", b"RI")  # how JPEG, BMP, GIF and WebP begin
PNG = b"\x89PNG"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MINISWHITE = tifffile.PHOTOMETRIC.MINISWHITE
CHANNELS: dict[object, int] = {
    MINISWHITE: 1,
    tifffile.PHOTOMETRIC.MINISBLACK: 1,
    tifffile.PHOTOMETRIC.RGB: 3,
}
ORIENTATION = 274  # the tag of EXIF and TIFF
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DeepImage(NamedTuple):
    """An image of more than 8 bits.

    Attributes:
        values: [H, W], or [H, W, 1 or 3], as always beside alpha.
        inverted: small values are bright.
        alpha: how opaque it is, 0..1, [H, W, 1]; None where it is so everywhere.
        orientation: 1 to 8, of EXIF.
    """

    values: np.ndarray
    inverted: bool = False
    alpha: np.ndarray | None = None
    orientation: int = 1

    @property
    def visible(self) -> np.ndarray:
        return self.values if self.alpha is None else self.values[self.alpha[..., 0] > 0]

    def to_image(self, range_of: Range) -> Image.Image:
        """Of 8 bits, upright, laid on white."""
        low, high = range_of(self.visible)
        if self.inverted:
            low, high = high, low
        image = to_levels(self.values, low, high)
        if self.alpha is not None:
            levels = np.asarray(image).reshape(self.values.shape)
            image = to_levels(levels * self.alpha + 255 * (1 - self.alpha), 0, 255)
        return _turned(image, self.orientation)


def read_image_file(file: Path | bytes, range_of: Range) -> Image.Image:
    """The image of a file, upright.

    Args:
        file: where it is, or what it holds.
        range_of: of the values of an image of more than 8 bits, what is black and what white.

    Raises:
        UserError: where it is broken, or holds several images.
    """
    found = _read(file)
    return found.to_image(range_of) if isinstance(found, DeepImage) else found


def measure_deep_range(path: Path) -> list[OwnRange] | None:
    """For FileCache, the range of one image: [] of one of 8 bits, None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            start = file.read(25)
        # most are, and there are many of them
        eight_bits = start[:2] in EIGHT_BITS or (start.startswith(PNG) and start[24:] <= b"\x08")
        found = None if eight_bits else _read(path)
    except (UserError, OSError):
        return None
    if not isinstance(found, DeepImage):
        return []
    return [OwnRange(*value_range(found.visible), found.values.dtype.name)]


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


@told_as("an image")
def _read(file: Path | bytes) -> Image.Image | DeepImage:
    data = file if isinstance(file, bytes) else file.read_bytes()
    if not data:
        raise UserError("empty: the file has no content")
    found = _read_tiff(data) if data[:4] in TIFF else _read_pnm(data)
    return found or _read_by_pillow(data)


def _read_by_pillow(data: bytes) -> Image.Image | DeepImage:
    with Image.open(io.BytesIO(data)) as image:
        pages = getattr(image, "n_frames", 1)
        if pages > 1 and image.format != "MPO":  # of a camera; its first picture is the photograph
            raise _several(pages)
        # gray of 16 bits is read whole by Pillow, and fast
        whole = image.mode[0] == "I" and "transparency" not in image.info
        if image.format == "PNG" and data[24] == 16 and not whole:
            return _read_png(data, _orientation(image))
        image.load()
        orientation = _orientation(image)
        if image.mode[0] in "IF":
            return DeepImage(np.asarray(image), orientation=orientation)
        return _turned(image, orientation)


def _several(pages: int) -> UserError:
    return UserError(
        f"{pages} pages or frames in one file, of which none is the image: save each as a file of "
        "its own"
    )


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


def _read_tiff(data: bytes) -> DeepImage | None:
    """None for 8 unsigned bits, which are Pillow's to read."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if len(file.pages) > 1:
            raise _several(len(file.pages))
        page = file.pages.first
        bits = np.max(page.bitspersample)
        if bits <= 8 and page.sampleformat == tifffile.SAMPLEFORMAT.UINT:
            return None
        height, width = page.imagelength, page.imagewidth
        # Pillow's limit; a broken header can say anything
        if width * height > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
            raise UserError(f"{height} high and {width} wide: too large, or the header is broken")
        if page.photometric not in CHANNELS:
            raise UserError(
                f"a TIFF of {bits} bits whose colours are "
                f"{tifffile.PHOTOMETRIC(page.photometric).name}: save it as gray or RGB"
            )
        try:
            values = page.asarray()
        except (ValueError, ImportError) as error:
            if isinstance(error, ValueError) and "imagecodecs" not in str(error):
                raise
            return _read_compressed_tiff(data, page, error)
        return _deep_tiff(page, values)


def _deep_tiff(page: tifffile.TiffPage, values: np.ndarray) -> DeepImage:
    """Colours and opacity of what a page holds."""
    channels = CHANNELS[page.photometric]
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    elif page.axes == "YX":
        values = values[..., None]
    if values.ndim != 3 or values.shape[-1] < channels:
        raise UserError(
            f"a TIFF of shape {page.shape} ({page.axes}): save its planes as files of their own"
        )
    alpha = None
    extra = next(iter(page.extrasamples), 0)
    if extra in (1, 2) and values.dtype.kind == "u":
        alpha = values[..., channels : channels + 1] / np.iinfo(values.dtype).max
    values = values[..., :channels]
    if alpha is not None and extra == 1:  # colours that were multiplied with it
        values = np.divide(values, alpha, out=np.zeros(values.shape), where=alpha > 0)
    orientation = page.tags.valueof(ORIENTATION, 1)
    return DeepImage(values, page.photometric == MINISWHITE, alpha, orientation)


def _read_compressed_tiff(data: bytes, page: tifffile.TiffPage, error: Exception) -> DeepImage:
    """What tifffile needs another package for: Pillow reads some of it, gray of 16 bits and floats,
    whole and upright."""
    if page.samplesperpixel == 1:
        with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode[0] in "IF":
                return DeepImage(np.asarray(image), page.photometric == MINISWHITE)
    raise UserError(
        f"a TIFF compressed by {tifffile.COMPRESSION(page.compression).name}: if it is whole, a "
        f"package lacks: pip install imagecodecs ({error})"
    )


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
