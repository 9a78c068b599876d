"""From stored values of DICOM to gray levels and colours: windows and lookup tables."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_windowing

from data.intensity import to_levels

PALETTE = "PALETTE COLOR"
NO_WINDOW, IN_COLOUR = "no window", "in colour"


def apply_palette(values: np.ndarray, about: Dataset) -> np.ndarray:
    """Colours [H, W, 3] in 0..255 of indices [H, W]."""
    descriptor = n, first, bits = about.RedPaletteColorLookupTableDescriptor
    if "RedPaletteColorLookupTableData" in about:
        data = [about[f"{c}PaletteColorLookupTableData"].value for c in ("Red", "Green", "Blue")]
        colours = np.stack([apply_table(values, each, descriptor, about) for each in data], -1)
    else:  # segmented
        values = np.clip(values.astype(np.int64), first, first + (n or 65536) - 1)
        colours = apply_color_lut(values, about)[..., :3]
    # 16 bits are claimed by some that use 8
    return colours * (255 / (2**bits - 1 if bits < 16 or colours.max() > 255 else 255))


def apply_table(
    values: np.ndarray, data: Any, descriptor: Sequence[int], about: Dataset
) -> np.ndarray:
    """The entries of a table, which pydicom hands out as bytes or as numbers. Its own apply_voi
    wraps around where a table of 8 bits has more than 256 entries."""
    n, first = descriptor[0] or 65536, descriptor[1]
    if isinstance(data, bytes):
        wide = "<u2" if about.original_encoding[1] else ">u2"
        data = np.frombuffer(data, np.uint8 if len(data) < 2 * n else wide)
    table = np.asarray(data)[:n]
    return table[np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)]


def apply_window(
    values: np.ndarray, center: float, width: float, function: str = "LINEAR"
) -> Image.Image:
    """From black to white by a window.

    LINEAR is not defined for a width below 1; files whose units are fractions have such widths all
    the same, and LINEAR_EXACT is what they mean.

    Source: DICOM PS3.3 C.11.2.1, of which pydicom computes the functions.
    """
    target = Dataset()  # what they map to: 0..255
    target.PhotometricInterpretation, target.BitsStored = "MONOCHROME2", 8
    target.PixelRepresentation = 0
    target.WindowCenter, target.WindowWidth = center, width
    target.VOILUTFunction = "LINEAR_EXACT" if width < 1 and function == "LINEAR" else function
    return to_levels(apply_windowing(values, target), 0, 255)


def own_window(about: Dataset) -> Callable[[np.ndarray], Image.Image] | None:
    """From black to white by the first VOI LUT or window of the file; files of 8 bits that have
    none are not stretched. None where the file does not say. about: mended."""
    if tables := about.get("VOILUTSequence"):
        data, descriptor = tables[0].LUTData, tables[0].LUTDescriptor
        white = 2 ** descriptor[2] - 1
        return lambda values: to_levels(apply_table(values, data, descriptor, about), 0, white)
    if "WindowWidth" in about:
        center, width = float(about.WindowCenter), float(about.WindowWidth)
        return lambda values: apply_window(values, center, width, about.VOILUTFunction)
    as_stored = (
        about.BitsStored == 8
        and not about.PixelRepresentation
        and "ModalityLUTSequence" not in about
        and (about.get("RescaleSlope", 1), about.get("RescaleIntercept", 0)) == (1, 0)
    )
    return (lambda values: to_levels(values, 0, 255)) if as_stored else None


def how_shown(about: Dataset) -> Sequence[float] | str:
    """How the file says that it is shown, in short: its window, or a word. about: mended."""
    if about.SamplesPerPixel > 1 or about.PhotometricInterpretation == PALETTE:
        return IN_COLOUR
    if own_window(about) is None:
        return NO_WINDOW
    if "WindowWidth" in about and "VOILUTSequence" not in about:
        return float(about.WindowCenter), float(about.WindowWidth)
    return "by its table or its 8 bits"
