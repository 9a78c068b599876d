"""One ordinary image file, read as it is meant: upright, and with all of its bits.

Pillow cuts colour of 16 bits to 8 without a word, and some gray. Such files are found by their header and read by pypng,
tifffile or here; their values then become levels by a range (data.intensity).
"""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import png
import tifffile
from PIL import Image

from data.intensity import Range, to_levels, value_range
from runtime.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm", ".pnm", ".pbm"}
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION = 274  # the tag of EXIF and TIFF
UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
           5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs what it also raises


class Deep(NamedTuple):
    """An image of more than 8 bits: its values [H, W] or [H, W, 3], whether small ones are bright, how opaque it is (0..1, [H, W])."""

    values: np.ndarray
    inverted: bool = False
    alpha: np.ndarray | None = None
    orientation: int = 1

    @property
    def visible(self) -> np.ndarray:
        return self.values if self.alpha is None else self.values[self.alpha > 0]


def read_image_file(file: Path | bytes, range_of: Range) -> Image.Image:
    """file: where it is, or what it holds. range_of: what of the values of an image of more than 8 bits is black and what white."""
    found = _read(file)
    return shown(found, range_of) if isinstance(found, Deep) else found


def measure_deep_range(path: Path) -> list[float] | None:
    """The range of one image for FileCache: empty where it has 8 bits, None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            if file.read(2) in (b"\xff\xd8", b"BM", b"GI"):  # JPEG, BMP, GIF: 8 bits, and there are many of them
                return []
        found = _read(path)
    except (UserError, OSError):
        return None
    if not isinstance(found, Deep):
        return []
    return list(value_range(found.visible))


def shown(deep: Deep, range_of: Range) -> Image.Image:
    low, high = range_of(deep.visible)
    image = to_levels(deep.values, high, low) if deep.inverted else to_levels(deep.values, low, high)
    if deep.alpha is not None:  # laid on white
        alpha = deep.alpha if image.mode == "F" else deep.alpha[..., None]
        levels = np.asarray(image) * alpha + 255 * (1 - alpha)
        image = Image.fromarray(levels.astype(np.float32) if image.mode == "F" else levels.round().astype(np.uint8))
    return image.transpose(UPRIGHT[deep.orientation]) if deep.orientation in UPRIGHT else image


def _read(file: Path | bytes) -> Image.Image | Deep:
    try:
        data = file if isinstance(file, bytes) else file.read_bytes()
        if not data:
            raise UserError("empty: the file has no content")
        found = _tiff(data) if data[:4] in TIFF else _pnm(data) if data[:2] in (b"P2", b"P3", b"P5", b"P6") else None
        return _pillow(data) if found is None else found
    except UserError:
        raise
    except Exception as error:  # a broken file can raise anything: OSError, SyntaxError, DecompressionBombError ...
        raise UserError(f"cannot be read as an image ({str(error) or type(error).__name__})") from error


def _pillow(data: bytes) -> Image.Image | Deep:
    with Image.open(io.BytesIO(data)) as image:
        pages = getattr(image, "n_frames", 1)
        if pages > 1 and image.format != "MPO":  # of a camera; its first picture is the photograph
            raise _several(pages)
        if image.format == "PNG" and data[24] == 16:
            return _png(data, image)
        image.load()
        orientation = _orientation(image)
        if image.mode[0] in "IF":
            return Deep(np.asarray(image), orientation=orientation)
        return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _several(pages: int) -> UserError:
    return UserError(f"{pages} pages or frames in one file, of which none is the image: save each as a file of its own")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # the pixels are well where only their EXIF is not
        return 1


def _png(data: bytes, image: Image.Image) -> Deep:
    """16 bits a channel."""
    if image.mode[0] == "I" and "transparency" not in image.info:  # gray: Pillow reads it whole, and fast
        values, alpha = np.asarray(image)[..., None], None
    else:
        width, height, rows, about = png.Reader(bytes=data).read()
        values = np.vstack([np.asarray(row, dtype=np.uint16) for row in rows]).reshape(height, width, about["planes"])
        alpha = values[..., -1] / 65535 if about["alpha"] else None
        values = values[..., :-1] if about["alpha"] else values
        if "transparent" in about:
            alpha = (values != np.asarray(about["transparent"])).any(-1).astype(float)
    return Deep(values[..., 0] if values.shape[-1] == 1 else values, alpha=alpha, orientation=_orientation(image))


def _tiff(data: bytes) -> Deep | None:
    """None for 8 unsigned bits, which are Pillow's to read."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if len(file.pages) > 1:
            raise _several(len(file.pages))
        page = file.pages[0]
        bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
        if bits <= 8 and page.sampleformat == tifffile.SAMPLEFORMAT.UINT:
            return None
        if page.imagewidth * page.imagelength > 2 * Image.MAX_IMAGE_PIXELS:  # as Pillow has it; a broken header can say anything
            raise UserError(f"{page.imagelength} high and {page.imagewidth} wide: too large, or the header is broken")
        kinds = {tifffile.PHOTOMETRIC.MINISWHITE: 1, tifffile.PHOTOMETRIC.MINISBLACK: 1, tifffile.PHOTOMETRIC.RGB: 3}
        if page.photometric not in kinds:
            raise UserError(f"a TIFF of {bits} bits whose colours are {page.photometric.name}: save it as gray or RGB")
        try:
            values = page.asarray()
        except (ValueError, ImportError) as error:
            if isinstance(error, ValueError) and "imagecodecs" not in str(error):
                raise
            return _compressed_tiff(data, page, error)
        values = np.moveaxis(values, 0, -1) if page.axes == "SYX" else values[..., None] if page.axes == "YX" else values
        colours, orientation = kinds[page.photometric], page.tags.get(ORIENTATION)
        if values.ndim != 3 or values.shape[-1] < colours:
            raise UserError(f"a TIFF of shape {page.shape} ({page.axes}): save its planes as files of their own")
        alpha = None
        if len(page.extrasamples) and page.extrasamples[0] in (1, 2) and values.dtype.kind == "u":
            alpha = values[..., colours] / np.iinfo(values.dtype).max
        values = values[..., 0] if colours == 1 else values[..., :3]
        if alpha is not None and page.extrasamples[0] == 1:  # colours that were multiplied with it
            opacity = alpha if colours == 1 else alpha[..., None]
            values = np.divide(values, opacity, out=np.zeros(values.shape), where=opacity > 0)
        return Deep(values, page.photometric == tifffile.PHOTOMETRIC.MINISWHITE, alpha, orientation.value if orientation else 1)


def _compressed_tiff(data: bytes, page: tifffile.TiffPage, error: Exception) -> Deep:
    """What tifffile needs another package for: Pillow reads some of it, gray of 16 bits and floats, whole and upright."""
    if page.samplesperpixel == 1:
        with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode[0] in "IF":
                return Deep(np.asarray(image), page.photometric == tifffile.PHOTOMETRIC.MINISWHITE)
    raise UserError(f"a TIFF compressed by {page.compression.name}: if it is whole, a package lacks: pip install imagecodecs ({error})")


def _pnm(data: bytes) -> Deep | None:
    """PGM and PPM of more than 8 bits, which Pillow scales, and cuts where they are in colour. None for those of 8."""
    tokens, at = [], 2
    while len(tokens) < 3:  # width, height, white
        while data[at:at + 1].isspace() or data[at:at + 1] == b"#":
            at = data.index(b"\n", at) + 1 if data[at:at + 1] == b"#" else at + 1
        start = at
        while data[at:at + 1].isdigit():
            at += 1
        tokens.append(int(data[start:at]))
    width, height, white = tokens
    if white < 256:
        return None
    shape = (height, width, 3) if data[1:2] in b"36" else (height, width)
    count = int(np.prod(shape))
    if data[1:2] in b"56":
        return Deep(np.frombuffer(data, ">u2", count, at + 1).reshape(shape).astype(np.uint16))
    return Deep(np.array(data[at:].split()[:count], dtype=np.uint16).reshape(shape))
