"""Any folder of ordinary images."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.deep_image import Ranges, own_ranges
from data.file_cache import FileCache
from data.folder_layout import find_files
from data.folder_reader import FolderReader
from data.image_file import look_at_tiff, measure_deep_ranges, read_image_file
from data.image_formats import SUFFIXES, looks_like_image
from data.intensity import Levels, LowHigh, Translucent, check_range, seen
from runtime.content import sha256_of

MEASURED = (
    "in images of more than 8 bits {low:g} is black and {high:g} white, measured over the {n} of "
    "them to train on; data.range=[LOW,HIGH] sets it, data.range=image takes each image's own"
)
MIXED = (
    "{n} images of more than 8 bits, such as {one}, are stretched by their own range, and the "
    "{others} of 8 bits, such as {another}, are taken as they are; save all in one depth where "
    "that is not meant"
)

TIFFS = (".tif", ".tiff")


class Folder(FolderReader):
    """A folder of images, at any depth; splits and classes by its folders, see FolderReader.

    Args:
        validation: the share that is drawn where no such folder is.
        test: as validation.
        patient: a regular expression on a file's path below the folder, whose first group (or all
            that it matches) is the patient; null: each image is its own.
        classes: the first level of folders are classes.
        range: what is black and what is white in files of more than 8 bits: [low, high]; "image"
            for each image's own range; null for one that is measured over the training images, of
            bands for each band. Files of 8 bits are never stretched.
        include: a glob, or a list of globs, on a file's path below the folder (`*` crosses
            slashes): others are left out; null for all.
        exclude: as include, of what is left out, such as masks.
        splits: which folders they are, see FolderReader.
    """

    levels = "data.range=[LOW,HIGH], or image, for files of more than 8 bits"
    suffixes: Collection[str] = SUFFIXES  # of the files that count

    def __init__(
        self,
        file_cache: FileCache,
        path: str,
        validation: float = 0.1,
        test: float = 0.1,
        patient: str | None = None,
        classes: bool = True,
        range_: Sequence[float] | Literal["image"] | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        splits: dict[str, Any] | None = None,
    ):
        given = None if range_ is None or range_ == "image" else check_range(range_)
        root, files = find_files(
            path,
            "images",
            self.suffixes,
            lambda unnamed: self._recognized(file_cache, unnamed),
            include=include,
            exclude=exclude,
        )
        frames = dict.fromkeys(files, (0,))
        tiffs = [file for file in files if file.suffix.lower() in TIFFS]
        seen_of_tiffs = file_cache.look_up(tiffs, "look at a TIFF, 1", look_at_tiff)
        marked = {p: about.get("opacity") for p, about in zip(tiffs, seen_of_tiffs)}
        self.opacity = _tell_of_opacity(marked, len(files))
        self.otherwise_as_bands = bool(self.opacity) and any(
            about[2] for about in marked.values() if about
        )
        super().__init__(
            file_cache, root, frames, {}, validation, test, patient, classes, [range_], splits
        )
        self.ranges: Ranges = own_ranges
        self.ranges_of_bands: Ranges = own_ranges
        if range_ is None:
            self.ranges = self.ranges_of_bands = self.measure_ranges(
                "range of an image, 4", measure_deep_ranges, MEASURED, MIXED
            )
            if self.opacity:
                measure = partial(measure_deep_ranges, opacity=False)
                self.ranges_of_bands = self.measure_ranges(
                    "range without opacity, 1", measure, MEASURED, MIXED
                )
        elif given:
            self.ranges = self.ranges_of_bands = lambda parts: [given] * len(parts)
        if any(about.get("no value") for about in seen_of_tiffs):
            self.fingerprint = sha256_of([self.fingerprint, "no value"])

    def _recognized(self, file_cache: FileCache, unnamed: Sequence[Path]) -> Iterable[Path]:
        """Of files without such a suffix, those that are images by their first bytes; none for a
        subclass that has suffixes of its own."""
        if self.suffixes is not SUFFIXES:
            return ()
        known = file_cache.look_up(unnamed, "image by its first bytes, 1", looks_like_image)
        return compress(unnamed, known)

    def range(self, values: np.ndarray) -> LowHigh:
        """Of an image of one range, for readers of one's own."""
        return self.ranges([values])[0]

    def read_image(self, item: int) -> Levels:
        data = self.file_cache.read_bytes(self.files[item])
        image = read_image_file(data, self.ranges)
        if self.opacity:
            bands = read_image_file(data, self.ranges_of_bands, opacity=False)
            if isinstance(bands, np.ndarray) and not isinstance(picture := seen(image), np.ndarray):
                return Translucent(picture, bands)
        return image


def _tell_of_opacity(found: Mapping[Path, Any], n: int) -> str:
    """Where most of what TIFFs mark as opacity varies as a band does, see ImageReader.opacity.

    Args:
        found: "opacity" of look_at_tiff, of each.
        n: files in all.
    """
    marked = {file: about for file, about in found.items() if about}
    like = [file for file, about in marked.items() if about[1]]
    if len(like) <= len(marked) / 2:
        return ""
    channels = marked[like[0]][0]
    others = ",".join(map(str, range(1, channels)))
    return (
        f"what {len(like)} of {n} files mark as opacity, such as {like[0]}, varies as a "
        "band does, near infrared say. It is taken as opacity and the image laid on white; "
        f"data.channels={channels} takes it as a band, with a range of its own, and "
        f"data.bands=[{others}] data.channels={channels - 1} leaves it out"
    )
