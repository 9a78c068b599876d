"""One DICOM file: how it begins, what it is, and where its pixels are."""

import os
import struct
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from data.sources.dicom_values import text, values
from runtime.errors import UserError

PIXELS = {0x10: "PixelData", 0x08: "FloatPixelData", 0x09: "DoubleFloatPixelData"}  # of 7FE0
OTHER_PICTURES = ("Enhanced US Volume Storage", "Parametric Map Storage")
NO_PICTURES = ("SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "RTRECORD", "PR", "KO", "SR", "REG", "ECG")
# values of ImageType: scouts, parts of a slide and screens, beside the pictures of a set
SIDE_PICTURES = ("LOCALIZER", "SCOUT", "LABEL", "OVERVIEW", "THUMBNAIL", "SCREEN SAVE")
CAPTURED = "Secondary Capture"
SCANNED = ("CT Image", "MR Image", "Positron Emission")  # what screens are captured of
OF_A_FRAME = (  # sequences of an enhanced object
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "PixelMeasuresSequence",
    "PlaneOrientationSequence",
)
# the first elements of a file without preamble: group 2, or 8 up to SOPClassUID and its time
FIRST = [b"\2\0\0\0", b"\2\0\1\0"] + [
    struct.pack(order, 8, element)
    for order in ("<HH", ">HH")
    for element in (0, 1, 5, 8, 0x12, 0x13, 0x14, 0x16, 0x18)
]

# a bad name or date is not ours to complain about
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


class Pixels(NamedTuple):
    """The element that holds the pixels.

    Attributes:
        at: byte of the file at which its value begins; None where the file is deflated as a whole.
        length: in bytes, of those that are there.
        items: whether they are compressed, in items.
    """

    keyword: str
    vr: str
    at: int | None
    length: int
    items: bool = False


def is_dicom(path: Path) -> bool:
    """By its first bytes: DICM behind a preamble, or an element of the first groups."""
    with open(path, "rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return True
    if start[:4] not in FIRST or len(start) < 132:
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return explicit or struct.unpack("<I" if start[0] else ">I", start[4:8])[0] < 1024


def open_header(path: Path, frame: int = 0) -> tuple[Dataset, Pixels | None]:
    """All but the pixels, as the file has it, and where these are, if they are there. What an
    enhanced object says of this frame, or of all frames, stands at the top level."""
    if not is_dicom(path):
        raise UserError("no DICOM file: it has no DICM at byte 128")
    with open(path, "rb") as file:
        about = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        pixels = _find_pixels(file, about)
    groups = [
        *(about.get("SharedFunctionalGroupsSequence") or [])[:1],
        *(about.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1],
    ]
    for group in groups:
        for name in OF_A_FRAME:
            for inside in (group.get(name) or [])[:1]:
                about.update(inside)
    return about, pixels


def _find_pixels(file: BinaryIO, about: Dataset) -> Pixels | None:
    """The element at which the reading of a header stopped."""
    if about.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        inflated = pydicom.dcmread(file.name)
        found = next((name for name in PIXELS.values() if name in inflated), None)
        if found is None:
            return None
        return Pixels(found, inflated[found].VR, None, len(inflated[found].value))
    order, head = "<>"[not about.original_encoding[1]], file.read(12)
    if len(head) < 12 or head[:2] != struct.pack(f"{order}H", 0x7FE0):
        return None
    keyword, vr = PIXELS[struct.unpack(f"{order}H", head[2:4])[0]], head[4:6].decode("latin-1")
    if vr not in ("OB", "OW", "OF", "OD", "UN"):  # implicit, whatever the file says
        vr, head = "OW", head[:8]
        file.seek(-4, os.SEEK_CUR)
    at, length = file.tell(), struct.unpack(f"{order}I", head[-4:])[0]
    items = file.read(4) == b"\xfe\xff\x00\xe0"
    return Pixels(keyword, vr, at, min(length, os.fstat(file.fileno()).st_size - at), items)


def kind_of(about: Dataset) -> tuple[str, bool]:
    """What a file is, and whether that is a picture: its SOP class is one of images by the standard
    or a private one."""
    of_meta = about.file_meta.get("MediaStorageSOPClassUID")
    uid = UID(str(about.get("SOPClassUID") or of_meta or "").strip("\0 "))
    if not uid.is_valid:  # or missing
        modality = text(about, "Modality").upper()
        return modality or "no SOP class", modality not in NO_PICTURES
    types = [str(name).strip().upper() for name in values(about, "ImageType")]
    types = [name for name in types if name in SIDE_PICTURES]
    unknown = uid.name == str(uid)
    picture = unknown or "Image Storage" in uid.name or uid.name in OTHER_PICTURES
    return ", ".join([uid.name, *types]), picture


def is_side_picture(kind: str, kinds: Collection[str]) -> bool:
    """Whether its header says that it is none of the pictures of the set.

    Args:
        kind: of kind_of.
        kinds: of all files. What is captured is a set like any other where nothing else is there.
    """
    names = {each: set(each.split(", ")) & {*SIDE_PICTURES} for each in kinds}
    if all(names.values()):
        return False
    scanned = any(word in each for each in kinds for word in SCANNED)
    return bool(names[kind]) or (CAPTURED in kind and scanned)
