"""Section data of a config."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from data.file_cache import FileCache
from data.folder_reader import FolderReader
from data.image_reader import ImageReader
from data.named_masks import warn_of_masks
from data.pixels import check_shown
from runtime.config_schema import Settings, bind, check_arguments, make, resolve
from runtime.content import sha256_of
from runtime.errors import UserError, near

log = logging.getLogger("data")

READERS = ["data.sources"]  # what defines the target of section data


@dataclass(frozen=True)
class DataSettings(Settings):
    """Which images, and what is made of them.

    Attributes:
        reader: of the images, bound to its own settings.
        size: [height, width] or one number for both.
        channels: 1 (colour becomes luma, ITU-R 601), 3 (gray is repeated), or as many as the images
            have.
        flip: mirror half of the images while training, at random, where left and right do not
            matter; never in radiographs.
        n_train: train on so many images; null for all.
        subset_seed: draws them; null is the run's seed, so that each seed of a run sees others.
        fold: [k, K], the k-th, counted from 0, of K parts of the training images is the test; null
            for the reader's own.
        validation_of_train: the share of the images to train on, when fold and n_train have been
            drawn, that is taken out of them for validation (data.splits.take_validation); null for
            the reader's own validation images.
        upscale: enlarge images that are smaller than size.
        resample: the filter that scales, antialiased in each case.
        skip_broken: leave out what is broken, foreign or too small, instead of stopping.
        fit: crop fills the size and cuts off what is beside it; pad keeps all, with black around.
        bands: the channels of a file that are taken, in this order, counted from 1 as GDAL counts.
        shown: the channels that pictures and image features show, of these, counted from 1: three
            or one; null for the first three (data.pixels.to_picture).
    """

    reader: partial[ImageReader]
    size: int | Sequence[int]
    channels: int
    flip: bool
    n_train: int | None = None
    subset_seed: int | None = None
    upscale: bool = False
    resample: Literal["lanczos", "bicubic", "hamming", "bilinear", "box"] = "lanczos"
    skip_broken: bool = False
    fit: Literal["crop", "pad"] = "crop"
    bands: Sequence[int] | None = None
    shown: Sequence[int] | None = None
    fold: Sequence[int] | None = None
    validation_of_train: float | None = None

    def __post_init__(self) -> None:
        self._check_channels()
        if self.fold is not None and not (len(self.fold) == 2 and 0 <= self.fold[0] < self.fold[1]):
            raise ValueError(
                f"fold={list(self.fold)}: [k, K] is the k-th of K folds, counted from 0: [0, 5] to "
                "[4, 5] of five."
            )
        if self.validation_of_train is not None and not 0 < self.validation_of_train <= 0.5:
            raise ValueError(
                f"validation_of_train={self.validation_of_train} is a share above 0 and at most "
                "0.5, or null."
            )
        sides = 2 if isinstance(self.size, int) else len(self.size)
        if sides != 2 or min(self.height_width) < 1:
            raise ValueError(
                f"size must be one positive number or [height, width], not {self.size}."
            )
        if self.subset_seed is not None and self.n_train is None:
            raise ValueError(
                f"subset_seed={self.subset_seed} draws n_train of the images, and n_train is "
                "null: set n_train too, or leave subset_seed at null."
            )

    def _check_channels(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, not {self.channels}.")
        if self.bands is not None:
            if not self.bands or min(self.bands) < 1:
                raise ValueError(f"bands={list(self.bands)}: the first band is 1, as GDAL counts.")
            if len(self.bands) not in (self.channels, 1 if self.channels == 3 else self.channels):
                raise ValueError(
                    f"bands={list(self.bands)} are {len(self.bands)} and channels={self.channels}: "
                    f"set data.channels={len(self.bands)}."
                )
        check_shown(self.shown, self.channels)

    @property
    def height_width(self) -> tuple[int, int]:
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return height, width

    @property
    def resizing(self) -> tuple[Any, ...]:
        """What data.resize.to_array takes beside an image, without what came later and is at its
        default: memory maps are named by it."""
        first = (self.height_width, self.channels, self.upscale, self.resample)
        later = (self.fit, self.bands)
        return first if later == ("crop", None) else first + later

    def open_reader(self, cache: Path) -> ImageReader:
        """cache: a folder, in which it is kept what was found out about files."""
        reader = make(self.reader, "data", FileCache(cache / "memory"))
        if isinstance(reader, FolderReader):
            kinds = type(reader).__mro__  # the class below it knows nothing of its subclasses' own
            known = inspect.signature(kinds[kinds.index(FolderReader) - 1]).parameters
            others = {*known, *reader.places}
            if own := {k: v for k, v in self.reader.keywords.items() if k not in others}:
                reader.fingerprint = sha256_of([reader.fingerprint, own])
            warn_of_masks(reader)
        on_white = self.channels in (1, 3) and self.bands is None
        if reader.opacity and on_white:
            log.warning(f"{reader.name}: {reader.opacity}")
        elif reader.otherwise_as_bands:
            reader.fingerprint = sha256_of([reader.fingerprint, "opacity as a band"])
        return reader


OWN_KEYS = {field.name for field in fields(DataSettings)} - {"reader"}  # of section data


def reader_keys(section: Mapping[str, Any]) -> set[str]:
    """The settings, in section data, of what reads the images."""
    target = resolve(section.get("_target_"), READERS, "data")
    return {name.rstrip("_") for name in inspect.signature(target).parameters} - {"file_cache"}


def parse_data(section: Mapping[str, Any]) -> DataSettings:
    """Section data of a config: the keys of DataSettings, and beside them those of what reads the
    images. Raises UserError at the first that is wrong."""
    known = OWN_KEYS | reader_keys(section)
    for key in section:
        if key not in known | {"_target_"}:
            raise UserError(f"data.{key}: no such setting; {near(key, known)}")
    own = {key: section[key] for key in section if key in OWN_KEYS}
    check_arguments(DataSettings, own, [], "data", ["reader"])
    node = {key: section[key] for key in section if key not in OWN_KEYS}
    return make(DataSettings, "data", bind(node, READERS, "data", ["file_cache"]), **own)
