"""Which files are images, by their first bytes and not by their suffix, and what reads those that
Pillow alone does not."""

import contextlib
import importlib
import io
import re
import warnings
from pathlib import Path

from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from runtime.errors import UserError

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".apng", ".bmp", ".dib", ".webp"),
    *(".tif", ".tiff", ".gif", ".pgm", ".ppm", ".pnm", ".pbm", ".pfm", ".tga", ".qoi", ".mpo"),
    *(".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c", ".avif", ".avifs"),
    *(".heic", ".heif", ".hif", ".jxl"),
}
# in Pillow's terms: without pixels unless another program draws them; FITS, whose scale it ignores
NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}
# of cameras: TIFF by their first bytes, of which Pillow would take the thumbnail
RAW = {".arw", ".cr2", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raw", ".rw2", ".sr2", ".srw"}
HEAD = 352  # bytes; of a NIfTI's they are the header
SHORTEST = 16  # bytes that Pillow looks at, and no image has fewer
LARGEST = 2 * 89_478_485  # pixels: where Pillow stops

# what else a file may be whose suffix is that of an image
OTHERS = {
    "a HEIF photograph: pip install pillow-heif reads it": rb"....ftyp(he[iv][cmsx]|mif1|msf1)",
    "a JPEG XL image: pip install pillow-jxl-plugin reads it": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "a DICOM file: data=dicom reads it": rb".{128}DICM",
    "a NIfTI volume: data=nifti reads it": rb".{344}n[+i]1\0",
    "a web page and no image: the download went wrong": rb"\s*<(?i:!doctype html|html)",
    "a pointer of Git LFS and no image: git lfs pull fetches it": rb"version https://git-lfs",
}
PLUGINS = {"HEIF": "pillow_heif", "JPEG XL": "pillow_jxl"}

# between half of LARGEST and LARGEST, where nothing is wrong
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def what_else(head: bytes) -> str | None:
    """What a file is that begins so, where Pillow does not read it."""
    return next((what for what, first in OTHERS.items() if re.match(first, head, re.DOTALL)), None)


def looks_like_image(path: Path) -> bool:
    """By its first bytes: one that Pillow reads, or reads with another package. Of a kind that has
    no such sign, such as TGA, the suffix says it."""
    suffix = path.suffix.lower()
    if suffix in RAW or not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if any(name in (what_else(head) or "") for name in PLUGINS):
        return True
    if len(head) < SHORTEST:
        return False
    Image.init()
    kinds = [
        kind
        for kind, (_, accepts) in Image.OPEN.items()
        if kind not in NO_PICTURES
        and (accepts(head[:SHORTEST]) if accepts else kind == Image.EXTENSION.get(suffix))
    ]
    if not kinds:
        return False
    try:
        with Image.open(path, formats=kinds):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # of a header that only begins so
        return False


def open_image(data: bytes) -> Image.Image:
    """By Pillow and its plugins that are installed, not decoded yet.

    A JPEG beyond LARGEST is decoded at a half, a quarter or an eighth of its size, which takes
    little memory: it is scaled down in any case.

    Raises:
        UserError: for what none of them reads, with what would; beyond LARGEST.
    """
    what = what_else(data[:HEAD]) or ""
    for name, plugin in PLUGINS.items():
        if name in what:
            with contextlib.suppress(ImportError):
                found = importlib.import_module(plugin)
                getattr(found, "register_heif_opener", lambda: None)()
    try:
        image = Image.open(io.BytesIO(data))
        if image.mode[0] not in "IF" and (bits := _bits_of(image.format, data)) > 8:
            raise UserError(
                f"{image.format} of {bits} bits in colour, which Pillow cuts to 8: save it as PNG "
                "or TIFF of 16 bits"
            )
        return image
    except UnidentifiedImageError as error:
        raise UserError(what or "cannot be read as an image (of no kind that is known)") from error
    except Image.DecompressionBombError as error:
        if data[:2] == b"\xff\xd8":
            return _reduced(data)
        raise too_large(error.args[0].partition(" exceeds")[0]) from error


def too_large(size: str) -> UserError:
    """Of an image beyond LARGEST; a broken header can say anything."""
    return UserError(
        f"{size}: more than {LARGEST:,} pixels, or the header is broken. Save it smaller or as "
        "tiles, or leave it out with data.skip_broken=true"
    )


def _bits_of(kind: str | None, data: bytes) -> int:
    """Stored bits of a channel, of the kinds that Pillow cuts without a word."""
    if kind == "JPEG2000":
        at = data.find(b"\xff\x4f\xff\x51")  # SOC and SIZ; ISO 15444-1, annex A.5.1
        return (data[at + 42] & 127) + 1
    return 8 * data[3] if kind == "SGI" else 8


def _reduced(data: bytes) -> Image.Image:
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    width, height = image.size
    n = next((n for n in (2, 4, 8) if width * height <= LARGEST * n * n), 8)
    image.draft(None, (width // n, height // n))
    return image
