"""A DICOM header as the standard means it: what is empty is absent, and what is missing, half there
or outside of the standard is mended or refused, before anything else reads it."""

from pathlib import Path
from typing import Any, NamedTuple

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from data.sources.dicom_file import Pixels, open_header
from data.sources.dicom_values import number, numbers, values, whole
from runtime.errors import UserError

FLOATS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}  # bits
GRAY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
WINDOWS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")


class Header(NamedTuple):
    """
    Attributes:
        about: all but the pixels, mended.
        syntax: how the pixels are encoded.
        frame_bytes: of one frame that is not compressed.
        padding: the least and greatest stored value that stand for no value.
        odd: what was mended by a guess, for a warning.
        otherwise: what is read otherwise than it was when runs got their names.
    """

    about: Dataset
    pixels: Pixels
    syntax: UID
    frame_bytes: float
    padding: tuple[float, float] | None
    odd: list[str]
    otherwise: list[str]

    @property
    def plain_gray(self) -> bool:
        """Of one sample, and not compressed."""
        return self.about.SamplesPerPixel == 1 and not self.pixels.items


def read_header(path: Path, frame: int = 0) -> Header:
    """
    Raises:
        UserError: where what is missing cannot be known.
    """
    about, pixels = open_header(path, frame)
    if pixels is None:
        raise UserError("it has no pixels")
    return mend(about, pixels)


def mend(about: Dataset, pixels: Pixels) -> Header:
    """
    Raises:
        UserError: where what is missing cannot be known.
    """
    odd: list[str] = []
    otherwise: list[str] = []
    _mend_colours(about, odd, otherwise)
    _mend_bits(about, pixels, odd, otherwise)
    frame_bytes = _mend_frames(about, pixels, odd, otherwise)
    _mend_tables(about)
    _mend_rescale(about, odd, otherwise)
    _mend_first_of_table(about, otherwise)
    _mend_window(about, odd, otherwise)
    padding = _padding(about, pixels, otherwise)
    return Header(about, pixels, _syntax(about, pixels), frame_bytes, padding, odd, otherwise)


def decoding_options(header: Header) -> dict[str, Any]:
    """What pydicom's decoders take."""
    about, pixels = header.about, header.pixels
    options = {
        "rows": about.Rows,
        "columns": about.Columns,
        "number_of_frames": int(about.NumberOfFrames),
        "samples_per_pixel": about.SamplesPerPixel,
        "photometric_interpretation": about.PhotometricInterpretation,
        "planar_configuration": about.PlanarConfiguration,
        "bits_allocated": about.BitsAllocated,
        "bits_stored": about.BitsStored,
        "pixel_representation": about.PixelRepresentation,
        "pixel_keyword": pixels.keyword,
        "pixel_vr": pixels.vr,
    }
    if "ExtendedOffsetTable" in about and "ExtendedOffsetTableLengths" in about:
        tables = about.ExtendedOffsetTable, about.ExtendedOffsetTableLengths
        options["extended_offsets"] = tables
    return options


def _syntax(about: Dataset, pixels: Pixels) -> UID:
    said = UID(str(about.file_meta.get("TransferSyntaxUID") or "").strip("\0 "))
    if pixels.at is None:
        return said
    if not pixels.items:
        return ExplicitVRLittleEndian if about.original_encoding[1] else ExplicitVRBigEndian
    if not said.is_transfer_syntax or not said.is_compressed:
        raise UserError(
            "its pixels are compressed, and it does not say how: TransferSyntaxUID is "
            f"{said.name or 'missing'}"
        )
    return said


def _mend_colours(about: Dataset, odd: list[str], otherwise: list[str]) -> None:
    said = str(next(iter(values(about, "PhotometricInterpretation")), ""))
    given = said.strip("\0 ").upper()
    if given != said:
        otherwise.append("photometric")
    samples = whole(about, "SamplesPerPixel")
    kind = given or ("RGB" if samples == 3 else "MONOCHROME2")
    if kind not in (*GRAY, *COLOURS) or samples not in (None, 1, 3):
        raise UserError(
            f"PhotometricInterpretation={kind} of {samples} samples: save it as gray or RGB"
        )
    if samples is not None and (samples == 3) != (kind in COLOURS):
        kind = "RGB" if samples == 3 else "MONOCHROME2"
    if kind != given:
        odd.append(f"PhotometricInterpretation is {given or 'missing'}, taken as {kind}")
    about.PhotometricInterpretation, about.SamplesPerPixel = kind, 3 if kind in COLOURS else 1
    about.PlanarConfiguration = 1 if whole(about, "PlanarConfiguration") == 1 else 0


def _mend_bits(about: Dataset, pixels: Pixels, odd: list[str], otherwise: list[str]) -> None:
    about.Rows, about.Columns = whole(about, "Rows") or 0, whole(about, "Columns") or 0
    if min(about.Rows, about.Columns) < 1:
        raise UserError("its header has no Rows or no Columns")
    stored = whole(about, "BitsStored") or 0
    allocated = FLOATS.get(pixels.keyword) or whole(about, "BitsAllocated") or -(-stored // 8) * 8
    if not allocated and not pixels.items:
        allocated = 8 * pixels.length // (about.Rows * about.Columns * about.SamplesPerPixel)
    if allocated not in (1, 8, 16, 32, 64):
        raise UserError(f"BitsAllocated={allocated}: 1, 8, 16, 32 or 64 is needed")
    if not 0 < stored <= allocated:
        if stored:
            odd.append(f"BitsStored is {stored} of {allocated} bits that are allocated")
        stored = allocated
    about.BitsAllocated, about.BitsStored = allocated, stored
    high = whole(about, "HighBit")
    about.HighBit = high if high is not None and stored <= high < allocated else stored - 1
    if about.HighBit >= stored and not pixels.items:
        otherwise.append("HighBit")
    about.PixelRepresentation = 1 if whole(about, "PixelRepresentation") == 1 else 0


def _mend_frames(about: Dataset, pixels: Pixels, odd: list[str], otherwise: list[str]) -> float:
    """Where the file does not say how many frames it has, its length does. Returns the bytes of a
    frame."""
    pixels_of_frame = about.Rows * about.Columns * about.SamplesPerPixel
    size, frames = pixels_of_frame * about.BitsAllocated / 8, whole(about, "NumberOfFrames") or 0
    if about.PhotometricInterpretation == "YBR_FULL_422" and not pixels.items:
        if pixels.length >= size * max(frames, 1):  # not subsampled, after all
            about.PhotometricInterpretation = "YBR_FULL"
            otherwise.append("YBR_FULL")
        else:
            size = size * 2 / 3
    if pixels.items:  # of 8 bytes at least
        about.NumberOfFrames = min(max(frames, 1), pixels.length // 8 + 1)
        return size
    held = int(pixels.length // size)
    if frames < 1 and held > 1:
        otherwise.append("NumberOfFrames")
    if not (0 < frames <= held <= frames + (about.BitsAllocated == 1)) and max(held, frames) > 1:
        odd.append(f"NumberOfFrames is {frames or 'missing'}, and there are pixels for {held}")
    # the first that is missing says so for all of them
    about.NumberOfFrames = min(frames, held + 1) if frames > 0 else max(held, 1)
    return size


def _mend_tables(about: Dataset) -> None:
    """Keeps the first of each kind that is one."""
    for name in ("ModalityLUTSequence", "VOILUTSequence"):
        found = about.get(name)
        tables = [item for item in found or [] if isinstance(item, Dataset) and _is_table(item)]
        if name in about:
            del about[name]
        if tables:
            setattr(about, name, Sequence(tables[:1]))


def _mend_rescale(about: Dataset, odd: list[str], otherwise: list[str]) -> None:
    slope, intercept = (number(about, f"Rescale{name}") for name in ("Slope", "Intercept"))
    for name in ("RescaleSlope", "RescaleIntercept"):
        if name in about:
            del about[name]
    if slope == 0:
        odd.append("RescaleSlope is 0, taken as 1")
    mended = slope or 1.0, intercept or 0.0
    if not (slope and intercept is not None) and mended != (1, 0):
        otherwise.append("rescale")
    if slope is not None or intercept is not None:
        about.RescaleSlope, about.RescaleIntercept = mended


def _mend_first_of_table(about: Dataset, otherwise: list[str]) -> None:
    """The first value that a VOI table maps has the sign of values after the rescale, which a
    reader of implicit VR cannot know: beyond all values it is meant with its sign."""
    if "ModalityLUTSequence" in about or "VOILUTSequence" not in about:
        return
    table = about.VOILUTSequence[0]
    n, first, bits = (int(each or 0) for each in numbers(table, "LUTDescriptor"))
    slope, intercept = about.get("RescaleSlope", 1), about.get("RescaleIntercept", 0)
    stored = (1 << about.BitsStored - about.PixelRepresentation) - 1
    if 1 << 15 <= first < 1 << 16 and first > stored * abs(slope) + intercept:
        table.LUTDescriptor = [n, first - (1 << 16), bits]
        otherwise.append("VOI table")


def _is_table(item: Dataset) -> bool:
    descriptor = numbers(item, "LUTDescriptor")
    data = item.get("LUTData")
    known = len(descriptor) == 3 and None not in descriptor and 1 <= (descriptor[2] or 0) <= 16
    return known and data is not None and len(data) > 0


def _mend_window(about: Dataset, odd: list[str], otherwise: list[str]) -> None:
    """Keeps the first window that is one."""
    centers, widths = numbers(about, "WindowCenter"), numbers(about, "WindowWidth")
    pairs = list(zip(centers, widths))
    usable = [
        k for k, (center, width) in enumerate(pairs) if center is not None and (width or 0) > 0
    ]
    for name in ("WindowCenter", "WindowWidth"):
        if name in about:
            del about[name]
    if any(width is not None and width < 0 for width in widths):
        odd.append("WindowWidth is below 0, so there is no window")
    if usable:
        about.WindowCenter, about.WindowWidth = pairs[usable[0]]
        if usable[0] > 0:
            otherwise.append("window")
    function = str(about.get("VOILUTFunction") or "").strip("\0 ").upper()
    about.VOILUTFunction = function if function in WINDOWS else "LINEAR"


def _padding(about: Dataset, pixels: Pixels, otherwise: list[str]) -> tuple[float, float] | None:
    """What stands for no value, whatever the sign and type that it is given in."""
    prefix = pixels.keyword.removesuffix("PixelData")
    given = [number(about, prefix + tag) for tag in PADDING]
    if about.SamplesPerPixel > 1 or given[0] is None:
        return None
    found = [each for each in given if each is not None]
    if not prefix:
        bits, signed = about.BitsAllocated, about.PixelRepresentation
        found = [(int(each) + (signed << bits - 1)) % (1 << bits) for each in found]
        found = [each - (signed << bits - 1) for each in found]
    if found[0] != given[0] or prefix:
        otherwise.append("padding")
    return min(found), max(found)
