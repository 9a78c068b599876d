"""The stored values of a DICOM file, and what only they tell of its header."""

import contextlib
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from data.sources.dicom_header import Header, decoding_options
from data.sources.dicom_values import text, whole
from data.sources.dicom_windows import PALETTE, apply_palette
from runtime.errors import UserError

FAR_BELOW_AIR = -1500  # Hounsfield units, of which air has -1000 and noise makes -1200
PADDED = 0.01  # of the pixels, that no noise gives one value to
OVERLAY_BIT = 0x0102  # element OverlayBitPosition of groups 6000, 6002, ...


def read_pixels(path: Path, frame: int, header: Header) -> tuple[np.ndarray, np.ndarray]:
    """Stored values [H, W], or colours [H, W, 3] with palettes applied (0..255) and YBR turned to
    RGB; and which of them stand for no value.

    Raises:
        UserError: where a decoder lacks, or pixels.
    """
    raw = _decode(path, frame, header)
    stored = used_bits(raw, header) if header.plain_gray else raw
    if header.about.PhotometricInterpretation == PALETTE:
        return apply_palette(stored, header.about), np.zeros(stored.shape, bool)
    return stored, _inside(raw, header.padding) | _inside(stored, header.padding)


def _decode(path: Path, frame: int, header: Header) -> np.ndarray:
    """As read_pixels, with all bits of gray that is not compressed, and without palettes."""
    pixels, syntax = header.pixels, header.syntax
    needed = math.ceil((frame + 1) * header.frame_bytes)
    if not pixels.items and pixels.length < needed:
        raise UserError(f"cut short: {pixels.length} bytes of pixels, and {needed} are needed")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UserError(f"encoded as {syntax.name}: save its frames as images") from None
    with open(path, "rb") as file:
        source: Any = file
        if pixels.at is None:
            source = pydicom.dcmread(file)[pixels.keyword].value
        else:
            file.seek(pixels.at)
        options = decoding_options(header)
        if header.plain_gray:
            options["correct_unused_bits"] = False
        try:
            return decoder.as_array(source, index=frame, **options)[0]
        except Exception as error:
            raise (_not_decoded(syntax, error) if pixels.items else error) from error


def _inside(values: np.ndarray, low_high: tuple[float, float] | None) -> np.ndarray:
    if low_high is None:
        return np.zeros(values.shape, bool)
    return (low_high[0] <= values) & (values <= low_high[1])


def _not_decoded(syntax: UID, error: Exception) -> Exception:
    """What to install; error itself where nothing lacks."""
    decoder = get_decoder(syntax)
    missing = [re.findall(r"[\w-]+(?=>=)", each) for each in decoder.missing_dependencies]
    if not missing:
        return error
    known = (["pylibjpeg"], ["pyjpegls"])
    packages = " ".join(next((names for names in missing if names[:1] in known), missing[0]))
    if not decoder.is_available:
        return UserError(
            f"compressed as {syntax.name}, which needs a decoder: pip install {packages}"
        )
    return UserError(
        f"compressed as {syntax.name}, which cannot be decoded here "
        f"({' '.join(str(error).split())}); pip install {packages} may help"
    )


def look_for_more_bits(path: Path, header: Header) -> None:
    """Adds to what is odd that BitsStored is wrong, which only the pixels show."""
    about, found = header.about, []
    if not header.plain_gray or about.BitsStored == about.BitsAllocated:
        return
    with contextlib.suppress(Exception):  # told when it is read
        for frame in range(about.NumberOfFrames):
            found.append(beyond_bits(_decode(path, frame, header), header) or 0)
    if farthest := max(found, key=abs, default=0):
        header.odd.append(
            f"BitsStored is {about.BitsStored}, and values reach {farthest}: taken as they are "
            "stored"
        )
        header.otherwise.append("BitsStored")


def used_bits(raw: np.ndarray, header: Header) -> np.ndarray:
    """Of integers that are not compressed those bits that HighBit and BitsStored say, moved to the
    low end; they lie there already where no value needs others."""
    about = header.about
    stored, high = about.BitsStored, about.HighBit
    if raw.dtype.kind == "f" or about.BitsAllocated in (1, stored) or beyond_bits(raw, header):
        return raw
    if raw.min() >= 0 and raw.max() < 1 << stored:
        high = stored - 1
    return (raw << (about.BitsAllocated - 1 - high)) >> (about.BitsAllocated - stored)


def beyond_bits(raw: np.ndarray, header: Header) -> int | None:
    """The value farthest beyond what BitsStored allows, where it is BitsStored that is wrong; None
    where no value is, or other bits are an overlay's: these are declared, or lie apart. A value
    without the bits of its sign, as the standard has it, is not beyond, nor is one that stands for
    no value."""
    about, raw = header.about, raw[~_inside(raw, header.padding)]
    if not raw.size:
        return None
    stored, signed = about.BitsStored, about.PixelRepresentation
    low, high = int(raw.min()), int(raw.max())
    if about.HighBit >= stored or -(signed << stored - 1) <= low <= high < 1 << stored - signed:
        return None
    others = int(np.bitwise_or.reduce(raw, None)) >> stored
    others &= (1 << about.BitsAllocated - stored) - 1
    in_a_row = others and not others & (others + 1)
    if not in_a_row or _overlay_beside_values(about):
        return None
    return max(low, high, key=abs)


def _overlay_beside_values(about: Dataset) -> bool:
    """Whether an overlay is declared that lies in bits which hold no values.

    Source: DICOM PS3.3 C.9.2, as it was until 2004.
    """
    bits = range(about.HighBit + 1 - about.BitsStored, about.HighBit + 1)
    found = (whole(about, group << 16 | OVERLAY_BIT) for group in range(0x6000, 0x6020, 2))
    return any(bit is not None and bit not in bits for bit in found)


def undeclared_padding(values: np.ndarray, about: Dataset) -> float | None:
    """The value that stands for none in a CT which does not say so: the least, where it is far
    below that of air and many pixels have it, such as all outside of the scanner's circle.

    Args:
        values: in Hounsfield units.
    """
    if not values.size or text(about, "Modality").upper() != "CT":
        return None
    least = float(values.min())
    many = np.count_nonzero(values == least) > PADDED * values.size
    return least if least < FAR_BELOW_AIR and many else None
