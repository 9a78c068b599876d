"""The one image of a TIFF, whatever it is of: photographs, 16 bits and floats, bands of a
satellite, channels of a microscope."""

import contextlib
import io
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from data.deep_image import ORIENTATION, DeepImage, turned
from data.image_formats import LARGEST, too_large
from runtime.errors import UserError

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PHOTOMETRIC = tifffile.PHOTOMETRIC
CHANNELS: dict[object, int] = {
    PHOTOMETRIC.MINISWHITE: 1,
    PHOTOMETRIC.MINISBLACK: 1,
    PHOTOMETRIC.RGB: 3,
}
PILLOWS: dict[object, int] = CHANNELS | {  # of 8 bits
    PHOTOMETRIC.PALETTE: 1,
    PHOTOMETRIC.SEPARATED: 4,
    PHOTOMETRIC.YCBCR: 3,
    PHOTOMETRIC.CIELAB: 3,
}
OPAQUE = ((1,), (2,))  # ExtraSamples of how opaque a pixel is, multiplied with its colours or not
AXES = {"Z": "slices", "T": "times", "C": "channels"}  # of a stack; others are planes
MASK = 4  # of NewSubfileType: which pixels of another page have a value
NODATA = 42113  # GDAL's


def several(pages: int, what: str = "pages or frames") -> UserError:
    return UserError(
        f"{pages} {what} in one file, of which none is the image: save each as a file of its own"
    )


def read_tiff(data: bytes, opacity: bool = True) -> Image.Image | DeepImage:
    """What tifffile cannot read Pillow may, and the reverse.

    Args:
        opacity: heed it where it is declared, instead of taking it as a band.

    Raises:
        UserError: where it holds several images, or colours that are neither gray nor RGB.
    """
    try:
        file = tifffile.TiffFile(io.BytesIO(data))
    except Exception as error:
        return _read_by_pillow(data, 0, error)
    with file:
        if (channels := _read_channels(file)) is not None:
            return channels
        page, mask = _pages(file)
        return _read_page(data, page, mask, opacity)


def read_beside_opacity(data: bytes) -> np.ndarray | None:
    """Colours and their opacity as they are stored, [H, W, 2 or 4]; None where it has none."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page, _ = _pages(file)
        if _extra_samples(page) not in OPAQUE or page.photometric not in CHANNELS:
            return None
    found = read_tiff(data, opacity=False)
    return found.values if isinstance(found, DeepImage) else None


def takes_out_since(data: bytes) -> bool:
    """Whether pixels of it, declared as no value, were values when runs got their names: of gray of
    more than 8 bits that Pillow decodes."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page, mask = _pages(file)
        declared = _nodata(page) is not None or mask is not None
        if not declared or page.samplesperpixel > 1 or np.max(page.bitspersample) <= 8:
            return False
        with contextlib.suppress(Exception):
            page.asarray()
            return False
        stored, found = _stored_by_pillow(data, page), _read_page(data, page, mask, opacity=False)
    kept = isinstance(found, DeepImage) and np.isnan(found.values.reshape(stored.shape))
    return not np.array_equal(kept, np.isnan(stored))


# Which page


def _read_channels(file: tifffile.TiffFile) -> DeepImage | None:
    """The channels of ImageJ or OME, each of which is a plane of its own. None of other files.

    Raises:
        UserError: for slices and times, of which none is the image.
    """
    try:
        series = list(file.series)
    except Exception:  # of a description that is damaged; its pages may be well
        return None
    first = series[0]
    if len(series) > 1 and (file.is_ome or file.is_imagej):
        raise several(len(series), "images")
    if any(page is None for page in first.pages):
        raise UserError("an OME-TIFF whose planes lie in other files: save them in one")
    axes = [(axis, n) for axis, n in zip(first.axes, first.shape) if axis not in "YXS" and n > 1]
    if not axes or (len(file.pages) > 1 and not (file.is_ome or file.is_imagej)):
        return None
    if [axis for axis, _ in axes] != ["C"] or ("S" in first.axes and first.sizes["sample"] > 1):
        raise several(
            math.prod(n for _, n in axes), " x ".join(AXES.get(axis, "planes") for axis, _ in axes)
        )
    values = np.moveaxis(first.asarray(), first.axes.index("C"), -1)
    values = values.reshape(*(n for axis, n in zip(first.axes, first.shape) if axis in "YX"), -1)
    return DeepImage(values, bands=True, eight_bits=values.dtype == np.uint8)


def _pages(file: tifffile.TiffFile) -> tuple[tifffile.TiffPage, tifffile.TiffPage | None]:
    """The page of the image, and one that says which of its pixels have a value. Smaller versions
    of it, marked as such or below it, are no further images.

    Raises:
        UserError: where several pages may be the image.
    """
    found: list[Any] = []
    tops: Any = file.pages  # pages and no frames, as none are asked for
    for top in tops:
        below = [page for page in top.pages or () if _area(page) >= _area(top)]
        found += [top, *below]
    masks = [page for page in found if page.subfiletype & MASK]
    images = [page for page in found if page not in masks]
    largest = max(map(_area, images), default=0)
    full = [page for page in images if not page.is_reduced or _area(page) == largest]
    if len(full) != 1:
        raise several(len(full))
    mask = next((page for page in masks if _area(page) == _area(full[0])), None)
    return full[0], mask


def _area(page: tifffile.TiffPage) -> int:
    return page.imagelength * page.imagewidth


# What it holds


def _read_page(
    data: bytes, page: tifffile.TiffPage, mask: tifffile.TiffPage | None, opacity: bool
) -> Image.Image | DeepImage:
    bits, nodata = np.max(page.bitspersample), _nodata(page)
    extras = tuple(kind * opacity for kind in _extra_samples(page))
    known = page.photometric in CHANNELS
    hidden = known and (nodata is not None or mask is not None)
    eight_bits = bits <= 8 and page.sampleformat == tifffile.SAMPLEFORMAT.UINT
    if eight_bits and not hidden and (not extras or (known and extras in OPAQUE)):
        try:
            return _read_by_pillow(data, _number(page), None)
        except Exception:
            if not known:
                raise
    if _area(page) > LARGEST:
        raise too_large(f"{page.imagelength} high and {page.imagewidth} wide")
    if not known:
        more = f" and {len(extras)} more channels" if extras else ""
        raise UserError(
            f"a TIFF of {bits} bits whose colours are {PHOTOMETRIC(page.photometric).name}{more}: "
            "save it as gray or RGB"
        )
    values, orientation = _stored(data, page)
    image = _deep_tiff(page, values, extras, eight_bits)._replace(orientation=orientation)
    if not hidden:
        return image
    valued = None if mask is None else _as_turned(mask.asarray(), page, orientation)
    return image._replace(values=_without(image.values, nodata, valued), stored=values.dtype.name)


def _number(page: tifffile.TiffPage) -> int:
    """Which of Pillow's frames it is."""
    if len(page.treeindex) == 1:
        return page.index
    raise ValueError("a page below another, which Pillow does not see")


def _extra_samples(page: tifffile.TiffPage) -> tuple[int, ...]:
    """What a page has beside its colours, also where its header does not say so."""
    beside = page.samplesperpixel - PILLOWS.get(page.photometric, page.samplesperpixel)
    said = tuple(map(int, page.extrasamples))
    return said if len(said) == beside else (0,) * max(beside, 0)


def _deep_tiff(
    page: tifffile.TiffPage, values: np.ndarray, extras: Sequence[int], eight_bits: bool
) -> DeepImage:
    """Colours and opacity, or bands, of what a page holds."""
    channels = CHANNELS[page.photometric]
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    elif page.axes == "YX":
        values = values[..., None]
    if values.ndim != 3 or values.shape[-1] < channels:
        raise UserError(
            f"a TIFF of shape {page.shape} ({page.axes}): save its planes as files of their own"
        )
    if values.dtype.kind == "c":
        raise UserError("complex numbers: save their magnitude")
    if eight_bits:  # or fewer
        values = values * np.uint8(255 // (2 ** int(np.max(page.bitspersample)) - 1))
    about = DeepImage(
        values,
        eight_bits=eight_bits,
        inverted=page.photometric == PHOTOMETRIC.MINISWHITE,
    )
    if tuple(extras) not in OPAQUE:
        return about._replace(bands=len(extras) > 0)
    alpha, values = values[..., channels:], values[..., :channels]
    alpha = alpha / (np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else max(1, alpha.max()))
    if extras[0] == 1:  # colours that were multiplied with it
        values = np.divide(values, alpha, out=np.zeros(values.shape), where=alpha > 0)
    return about._replace(values=values, alpha=alpha)


def _nodata(page: tifffile.TiffPage) -> float | None:
    """The value that GDAL writes where there is none."""
    said = re.match(r"\s*[-+\w.]+", str(page.tags.valueof(NODATA, "")))
    with contextlib.suppress(ValueError):
        return float(said[0]) if said else None
    return None


def _without(values: np.ndarray, nodata: float | None, valued: np.ndarray | None) -> np.ndarray:
    """NaN where there is no value. valued: where there is one, not 0."""
    nothing = np.zeros(values.shape, bool)
    if nodata is not None:
        # as the file rounds it: -3.4028234663852886e+38 is the least float32
        kept = values.dtype.type(nodata) if values.dtype.kind == "f" else nodata
        nothing |= values == kept
    if valued is not None:
        nothing |= ~valued.reshape(*values.shape[:2], 1).astype(bool)
    exact = np.float32 if values.dtype.itemsize <= 2 else np.float64
    return np.where(nothing, np.nan, values.astype(exact))


# By Pillow


def _read_by_pillow(data: bytes, page: int, error: Exception | None) -> Image.Image | DeepImage:
    """error: of tifffile, which could not open it. It is raised again where Pillow cannot either,
    or would cut it to 8 bits."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.seek(page)
            if error and getattr(image, "n_frames", 1) > 1:
                raise error
            bits = max(getattr(image, "tag_v2", {}).get(258, (8,)))
            image.load()
            orientation = image.getexif().get(ORIENTATION, 1)
            if image.mode[0] in "IF":
                return DeepImage(np.asarray(image), orientation=orientation)
            if bits > 8:
                raise error or ValueError(f"{bits} bits")
            return turned(image, orientation)
    except Exception:
        if error:
            raise error from None
        raise


def _stored(data: bytes, page: tifffile.TiffPage) -> tuple[np.ndarray, int]:
    """The numbers of a page, in the order of page.axes, and their orientation. What tifffile cannot
    decode Pillow may, upright."""
    try:
        return page.asarray(), page.tags.valueof(ORIENTATION, 1)
    except Exception as error:
        with contextlib.suppress(Exception):
            return _stored_by_pillow(data, page), 1
        if not isinstance(error, ImportError) and "imagecodecs" not in str(error):
            raise
        kind = tifffile.COMPRESSION(page.compression).name
        raise UserError(
            f"a TIFF compressed by {kind}: if it is whole, a package lacks: pip install "
            f"imagecodecs ({error})"
        ) from error


def _stored_by_pillow(data: bytes, page: tifffile.TiffPage) -> np.ndarray:
    """Raises ValueError for what Pillow reads otherwise than it is stored."""
    with Image.open(io.BytesIO(data)) as image:
        image.seek(_number(page))
        image.load()
    values, bits = np.asarray(image), int(np.max(page.bitspersample))
    whole = image.mode[0] in "IF" or (bits == 8 and image.mode in ("L", "LA", "RGB", "RGBA"))
    divided = _extra_samples(page) == (1,)  # by the opacity that it was multiplied with
    if not whole or divided or np.atleast_3d(values).shape[2] != page.samplesperpixel:
        raise ValueError(f"{bits} bits in Pillow's mode {image.mode}")
    if image.mode == "L" and page.photometric == PHOTOMETRIC.MINISWHITE:
        values = 255 - values
    if values.dtype.kind != "f":  # of 32 bits and of signed 8, Pillow has other types
        values = values.astype(page.dtype)
    return np.moveaxis(values, -1, 0) if page.axes == "SYX" else values


def _as_turned(values: np.ndarray, page: tifffile.TiffPage, orientation: int) -> np.ndarray:
    """As the numbers of a page that are upright already, where their orientation is 1."""
    stored = page.tags.valueof(ORIENTATION, 1)
    return values if orientation == stored else np.asarray(turned(Image.fromarray(values), stored))
