"""DICOM files, shown as a viewer shows them."""

import logging
import math
import re
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.misc import is_dicom
from pydicom.pixels import apply_modality_lut, get_decoder, pixel_array
from pydicom.uid import UID

from data.decoding import told_as
from data.file_cache import FileCache
from data.folder_layout import count_names, find_files
from data.folder_reader import FolderReader
from data.intensity import join_ranges, to_levels, value_range
from data.sources.dicom_windows import apply_own_window, apply_palette, apply_window, first
from runtime.content import sha256_of
from runtime.errors import UserError

SUFFIXES = {".dcm", ".dicom", ".ima"}  # other files are DICOM where they say so at byte 128
TAGS = ["SOPClassUID", "PatientID", "StudyInstanceUID", "Rows", "Columns", "NumberOfFrames"]
BROKEN: dict[str, Any] = {"frames": 1, "patient": None}  # one frame, which fails where it is read
MEASURED_FRAMES = 16  # of a file, for its range
PALETTE = "PALETTE COLOR"
MEASURED = (
    "in files without a window {low:g} is black and {high:g} white, measured over the {n} of them "
    "to train on; data.window=[CENTER,WIDTH] sets another"
)

# a bad name or date is not ours to complain about
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it logs tracebacks of what it raises
log = logging.getLogger("data")


class Dicom(FolderReader):
    """A folder of DICOM files, at any depth; splits and classes by its folders, see FolderReader.
    One image a frame.

    Args:
        validation: the share that is drawn where no folders train, val and test are.
        test: as validation.
        patient: a regular expression on a file's path below the folder, whose first group (or all
            that it matches) is the patient; null takes the tag PatientID, or StudyInstanceUID where
            that is empty.
        classes: the first level of folders are classes, and not patients or studies.
        window: [center, width] in units of the modality, such as HU, by DICOM's linear function;
            null takes the first VOI LUT or window of each file, and where none is, a range that is
            measured over the training files.
    """

    def __init__(
        self,
        file_cache: FileCache,
        path: str,
        validation: float = 0.1,
        test: float = 0.1,
        patient: str | None = None,
        classes: bool = False,
        window: Sequence[float] | None = None,
    ):
        if window is not None and not (
            len(window) == 2 and all(map(math.isfinite, window)) and window[1] > 0
        ):
            raise UserError(
                f"data.window={list(window)}: two numbers are needed, [CENTER, WIDTH], with a "
                "width above 0."
            )
        self.window = window
        self.range = self.measured_range("range of a DICOM file, 1", measure_file_range, MEASURED)
        root, files = find_files(
            path,
            "DICOM files",
            SUFFIXES,
            lambda files: compress(files, file_cache.look_up(files, "DICM at 128, 1", is_dicom)),
            " or DICM at byte 128 of the file",
        )
        known = file_cache.look_up(files, "DICOM header, 2", read_header)
        headers = {file: header or BROKEN for file, header in zip(files, known)}
        kept = {p: about for p, about in headers.items() if "frames" in about}
        if without := [p for p in files if p not in kept]:
            kinds = count_names(headers[p]["without pixels"] for p in without)
            log.info(
                f"{path}: left out {len(without)} DICOM files without pixels: {kinds}; for one "
                f"{without[0]}"
            )
        if not kept:
            raise UserError(f"data.path={path}: none of its {len(files)} DICOM files has pixels.")
        frames = {p: range(about["frames"]) for p, about in kept.items()}
        patients = {p: about["patient"] for p, about in kept.items()}
        super().__init__(
            file_cache, root, frames, patients, validation, test, patient, classes, [window]
        )

    def read_image(self, item: int) -> Image.Image:
        path, frame = self.items[item]
        with self.file_cache.unchanged(path), told_as("DICOM"):
            try:
                about = read_frame_header(path, frame)
            except InvalidDicomError as error:
                raise UserError("no DICOM file: it has no DICM at byte 128") from error
            values = read_pixels(path, frame, about)
            photometric = about.PhotometricInterpretation
            if values.ndim == 3:
                white = 255 if photometric == PALETTE else 2**about.BitsStored - 1
                return to_levels(values, 0, white)
            values = apply_modality_lut(values, about)
            image = (
                apply_window(values, self.window[0], self.window[1])
                if self.window
                else apply_own_window(values, about) or to_levels(values, *self.range(values))
            )
            inverted = photometric == "MONOCHROME1"
            return Image.fromarray(255 - np.asarray(image)) if inverted else image

    def item_name(self, item: int) -> str:
        path, frame = self.items[item]
        several = path in self.files[item + 1 : item + 2] or frame > 0
        return f"{path}, frame {frame + 1}" if several else str(path)


def read_header(path: Path) -> dict[str, Any] | None:
    """What a start needs of a file, for FileCache: how many frames and, as a hash, whose. None of a
    broken file: the next start tries again."""
    try:
        found = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
        if "Rows" not in found or "Columns" not in found:  # reports, presentation states, DICOMDIR
            kind = found.file_meta.get("MediaStorageSOPClassUID", UID("")).name
            return {"without pixels": kind or "no image"}
        patient = str(found.get("PatientID") or found.get("StudyInstanceUID") or "").strip()
        return {
            "frames": int(found.get("NumberOfFrames") or 1),
            "patient": sha256_of([patient])[:16] if patient else None,
        }
    except Exception:  # told when it is read
        return None


def read_frame_header(path: Path, frame: int) -> Dataset:
    """All but the pixels; what an enhanced object says of this frame, or of all frames, stands at
    the top level."""
    about = pydicom.dcmread(path, stop_before_pixels=True)
    groups = [
        *(about.get("SharedFunctionalGroupsSequence") or [])[:1],
        *(about.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1],
    ]
    for group in groups:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for inside in (group.get(name) or [])[:1]:
                about.update(inside)
    return about


def read_pixels(path: Path, frame: int, about: Dataset) -> np.ndarray:
    """Stored values [H, W], or colours [H, W, 3] with palettes applied (0..255) and YBR turned to
    RGB.

    Raises:
        UserError: where a decoder lacks.
    """
    syntax = about.file_meta.TransferSyntaxUID
    try:
        try:  # of a path only this frame is read
            values = pixel_array(pydicom.dcmread(path) if syntax.is_deflated else path, index=frame)
        except Exception:  # some that are not quite by the standard can be read as a whole
            values = pixel_array(pydicom.dcmread(path), index=frame)
    except Exception as error:
        if not syntax.is_encapsulated or isinstance(error, AttributeError):  # no pixels at all
            raise
        raise _not_decoded(syntax, error) from error
    return apply_palette(values, about) if about.PhotometricInterpretation == PALETTE else values


def _not_decoded(syntax: UID, error: Exception) -> Exception:
    """What to install; error itself where nothing lacks."""
    decoder = get_decoder(syntax)
    missing = [re.findall(r"[\w-]+(?=>=)", text) for text in decoder.missing_dependencies]
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


def measure_file_range(path: Path) -> list[float] | None:
    """The range of a file for FileCache: empty where it says itself how it is shown, None where it
    cannot be read."""
    try:
        frames, ranges = int(read_frame_header(path, 0).get("NumberOfFrames") or 1), []
        for frame in sorted({k * frames // MEASURED_FRAMES for k in range(MEASURED_FRAMES)}):
            about = read_frame_header(path, frame)
            stored = read_pixels(path, frame, about)
            if stored.ndim == 3:  # colours
                return []
            values = apply_modality_lut(stored, about)
            if apply_own_window(values, about) is not None:
                return []
            ranges.append(value_range(values[_inside(stored, about)]))
        return list(join_ranges(ranges))
    except Exception:  # told when it is read
        return None


def _inside(stored: np.ndarray, about: Dataset) -> np.ndarray:
    """Which pixels are not what lies outside of the scanner's circle."""
    padding, limit = first(about, "PixelPaddingValue"), first(about, "PixelPaddingRangeLimit")
    if padding is None:
        return np.ones(stored.shape, bool)
    low, high = sorted((padding, padding if limit is None else limit))
    return (stored < low) | (stored > high)
