"""DICOM files, in the gray levels that a viewer shows."""

import contextlib
import logging
import math
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut

from data.common_range import OwnRange
from data.decoding import told_as
from data.file_cache import FileCache
from data.folder_layout import find_files, tell_of_odd
from data.folder_reader import FolderReader
from data.intensity import to_levels
from data.pixel_shape import tell_of_oblong
from data.sources.dicom_file import is_dicom, kind_of, open_header
from data.sources.dicom_header import Header, mend, read_header
from data.sources.dicom_pixels import look_for_more_bits, read_pixels, undeclared_padding
from data.sources.dicom_place import directions, pixel_height
from data.sources.dicom_set import (
    tell_of_directions,
    tell_of_kinds,
    tell_of_left_out,
    tell_of_shared_ids,
    tell_of_windows,
)
from data.sources.dicom_values import text
from data.sources.dicom_windows import PALETTE, apply_window, how_shown, own_window
from runtime.content import sha256_of
from runtime.errors import UserError

SUFFIXES = {".dcm", ".dicom", ".ima"}  # other files are DICOM where they begin as one
BROKEN: dict[str, Any] = {"frames": 1, "patient": None}  # one frame, which fails where it is read
MEASURED_FRAMES = 16  # of a file, for its range
MEASURED = (
    "in files without a window {low:g} is black and {high:g} white, measured over the {n} of them "
    "to train on; data.window=[CENTER,WIDTH] sets another"
)

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it logs tracebacks of what it raises
log = logging.getLogger("data")


class Dicom(FolderReader):
    """A folder of DICOM files, at any depth; splits and classes by its folders, see FolderReader.
    One image a frame, whose pixels are taken as square: nothing is resampled.

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
        include, exclude: globs on a file's path below the folder, see Folder.
        splits: which folders they are, see FolderReader.
    """

    levels = "data.window=[CENTER,WIDTH]"

    def __init__(
        self,
        file_cache: FileCache,
        path: str,
        validation: float = 0.1,
        test: float = 0.1,
        patient: str | None = None,
        classes: bool = False,
        window: Sequence[float] | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        splits: dict[str, Any] | None = None,
    ):
        if window is not None and not (
            len(window) == 2 and all(map(math.isfinite, window)) and window[1] > 0
        ):
            raise UserError(
                f"data.window={list(window)}: two numbers are needed, [CENTER, WIDTH], with a "
                "width above 0."
            )
        self.window = window
        root, files = find_files(
            path,
            "DICOM files",
            SUFFIXES,
            lambda files: compress(files, file_cache.look_up(files, "DICOM, 2", is_dicom)),
            " or DICM at byte 128 of the file; gunzip unpacks .gz",
            include,
            exclude,
        )
        known = file_cache.look_up(files, "DICOM header, 5", summarize)
        headers = {file: header or BROKEN for file, header in zip(files, known)}
        kept = {p: about for p, about in headers.items() if "frames" in about}
        tell_of_left_out(path, headers)
        tell_of_kinds(path, kept)
        tell_of_oblong(path, {p: about.get("pixel height") for p, about in kept.items()})
        tell_of_directions(path, root, kept)
        if patient is None:
            tell_of_shared_ids(path, kept)
        if window is None:
            tell_of_windows(path, kept)
        tell_of_odd(path, {p: about.get("odd", []) for p, about in kept.items()})
        frames = {p: range(about["frames"]) for p, about in kept.items()}
        patients = {p: about["patient"] for p, about in kept.items()}
        self.of_nobody = {p for p, about in kept.items() if about.get("from study")}
        super().__init__(
            *(file_cache, root, frames, patients, validation, test, patient, classes),
            *([window], splits),
        )
        if window is None:
            self.range = self.measure_range("range of a DICOM file, 4", measure_ranges, MEASURED)
        otherwise = {what for about in kept.values() for what in about.get("otherwise", [])}
        if any(
            self._shows_padding(about["padding"]) for about in kept.values() if about.get("padding")
        ):
            otherwise.add("padding")
        if window is not None:
            otherwise.discard("window")
        if otherwise:
            self.fingerprint = sha256_of([self.fingerprint, sorted(otherwise)])

    def _warn_of_patients(self, names: Sequence[str], owners: Sequence[str | None]) -> None:
        """A study is not all that there is of a patient: names may know of more."""
        pairs = zip(self.files, owners)
        super()._warn_of_patients(
            names, [None if file in self.of_nobody else owner for file, owner in pairs]
        )

    def _shows_padding(self, padding: dict[str, Any]) -> bool:
        """Whether it would not be black, were it a value as any other: so it was, once."""
        values, levels = np.array([padding["values"]]), padding["own window"]
        with contextlib.suppress(UserError):  # where no range could be measured
            if self.window:
                levels = np.asarray(apply_window(values, self.window[0], self.window[1])).max()
            elif levels is None:
                levels = np.asarray(to_levels(values, *self.range(values))).max()
        return bool(padding["inverted"] or (levels or 0) > 0)

    def read_image(self, item: int) -> Image.Image:
        path, frame = self.items[item]
        with self.file_cache.unchanged(path), told_as("DICOM"):
            header = read_header(path, frame)
            stored, padded = read_pixels(path, frame, header)
            about = header.about
            if stored.ndim == 3:
                white = (
                    255 if about.PhotometricInterpretation == PALETTE else 2**about.BitsStored - 1
                )
                return to_levels(stored, 0, white)
            values, own = apply_modality_lut(stored, about), own_window(about)
            if self.window:
                image = apply_window(values, self.window[0], self.window[1])
            elif own:
                image = own(values)
            else:
                image = to_levels(values, *self.range(values))
                padded = padded | (values == undeclared_padding(values[~padded], about))
            levels = np.asarray(image)
            levels = 255 - levels if about.PhotometricInterpretation == "MONOCHROME1" else levels
            return Image.fromarray(np.where(padded, np.float32(0), levels))

    def item_name(self, item: int) -> str:
        path, frame = self.items[item]
        several = path in self.files[item + 1 : item + 2] or frame > 0
        return f"{path}, frame {frame + 1}" if several else str(path)


def summarize(path: Path) -> dict[str, Any] | None:
    """What a start needs of a file, for FileCache: how many frames and, as a hash, whose. None of a
    broken file: the next start tries again."""
    try:
        about, pixels = open_header(path)
        kind, picture = kind_of(about)
        if not picture or (pixels is None and "Rows" not in about):
            return {"left out": kind if not picture else f"{kind} without pixels"}
        said, study = (_hash_of(about, tag) for tag in ("PatientID", "StudyInstanceUID"))
        owner = {"patient": said or study, "from study": not said, "study": study, "kind": kind}
        if pixels is None:
            return BROKEN | owner
        header = mend(about, pixels)
        look_for_more_bits(path, header)
        about = header.about
        return owner | {
            "frames": int(about.NumberOfFrames),
            "modality": text(about, "Modality").upper(),
            "shown": how_shown(about),
            "pixel height": pixel_height(about),
            "directions": directions(about),
            "padding": header.padding and _summarize_padding(header, header.padding),
            "odd": header.odd,
            "otherwise": header.otherwise,
        }
    except Exception:  # told when it is read
        return None


def _hash_of(about: Dataset, tag: str) -> str | None:
    said = text(about, tag)
    return sha256_of([said])[:16] if said else None


def _summarize_padding(header: Header, padding: tuple[float, float]) -> dict[str, Any]:
    about, own = header.about, own_window(header.about)
    values = apply_modality_lut(np.array([padding]), about)
    return {
        "values": values[0].tolist(),
        "own window": float(np.asarray(own(values)).max()) if own else None,
        "inverted": about.PhotometricInterpretation == "MONOCHROME1",
    }


def measure_ranges(path: Path) -> list[OwnRange] | None:
    """The ranges of some frames of a file for FileCache: empty where it says itself how it is
    shown, None where it cannot be read."""
    try:
        frames, ranges = int(read_header(path).about.NumberOfFrames), []
        for frame in sorted({k * frames // MEASURED_FRAMES for k in range(MEASURED_FRAMES)}):
            header = read_header(path, frame)
            about = header.about
            if about.SamplesPerPixel > 1 or about.PhotometricInterpretation == PALETTE:
                return []
            if own_window(about):
                return []
            stored, padded = read_pixels(path, frame, header)
            values = apply_modality_lut(stored, about)[~padded]
            padding = undeclared_padding(values, about)
            ranges.append(OwnRange.of(values[values != padding], stored.dtype.name, padding))
        return ranges
    except Exception:  # told when it is read
        return None
