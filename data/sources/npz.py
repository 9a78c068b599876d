"""Any .npz of images: with the keys of MedMNIST, of Keras or of guided-diffusion's samples, or with
keys that are named."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.common_range import OwnRange, warn_of_apart
from data.deep_image import DeepImage
from data.file_cache import FileCache
from data.image_reader import ImageReader
from data.intensity import Levels, LowHigh, check_range, of_bytes
from data.recent import Recent
from data.sources.npz_axes import check_axes
from data.sources.npz_content import list_headers, of_array, read_array, read_headers
from data.sources.npz_keys import choose_keys, tell_unused
from data.sources.npz_labels import read_labels
from data.sources.npz_layout import channels_last, check_images, count_channels
from data.sources.npz_owners import find_owners, read_owners
from data.sources.npz_values import drawn_ranges, find_far, measured_range, without_numbers
from data.splits import Splits, complete_splits, items_by_split, tell_empty
from runtime.content import sha256_of
from runtime.errors import UserError

log = logging.getLogger("data")


class Npz(ImageReader):
    """An .npz file. Its headers and labels are read at once, an array of images when the first of
    them is asked for.

    Arrays of images are [N, H, W], [N, H, W, C] or [N, C, H, W]. Bytes are taken as they are; other
    numbers by `range`. An array patient_id (patients, subject, donor, ...) of one value an image
    keeps those of one value in one drawn split, where there are enough of them.

    Args:
        validation: the share of the training images to draw where the file has no such split, class
            by class where there are labels.
        test: as validation.
        images: key of the array of images, null for the usual ones.
        labels: key of the array of labels, as images.
        range: the values that become black and white; null measures them over the training images,
            of other channels than gray and colour each by itself, and the log tells them.
        classes: names of the labels 0, 1, ..., null for the numbers.
    """

    levels = "data.range=[LOW,HIGH]"
    together = (
        "Save them as images of one split (x_train, x_val, x_test); where splits are drawn, an "
        "array patient_id of one value an image keeps together what belongs together."
    )

    def __init__(
        self,
        file_cache: FileCache,
        path: str,
        validation: float = 0.1,
        test: float = 0.1,
        images: str | None = None,
        labels: str | None = None,
        range_: Sequence[float] | None = None,
        classes: Sequence[str] | None = None,
    ):
        self.range: LowHigh | None = None
        if range_ is not None:
            check_range(sorted(range_))  # one that falls turns black and white around
            self.range = float(range_[0]), float(range_[1])
        self.path = Path(path).expanduser()
        self.name, self.file_cache = self.path.name, file_cache
        file_cache.note_reading(self.path)
        self.headers = read_headers(self.path, path)
        self.keys = choose_keys(self.headers, images, labels, self.path)
        chosen = {key: self.headers[key] for key, _ in self.keys.values()}
        for key, header in chosen.items():
            check_images(header, f"{self.path}: {key}")
        if len({header.dtype for header in chosen.values()}) > 1:
            raise UserError(
                f"{self.path}: {list_headers(chosen)}: of different types, so perhaps in "
                "different ranges. Save them in one type."
            )
        if (channels := count_channels(chosen[self.keys["train"][0]].shape)) not in (1, 3):
            log.info(f"{self.path}: images of {channels} channels; volumes are saved as slices")
        check_axes(file_cache, self.path, self.headers, self.keys)
        self.counts = {split: chosen[key].shape[0] for split, (key, _) in self.keys.items()}
        self.classes, self.labels = read_labels(self.path, self.headers, self.keys, classes)
        self.places = [(split, k) for split, count in self.counts.items() for k in range(count)]
        given = items_by_split(split for split, _ in self.places)
        self.splits = self._split(given, {"validation": validation, "test": test})
        if images is None:
            tell_unused(self.headers, self.keys, self.owners, self.path)
        self._arrays = Recent(self._load, 2)  # one ends where the next begins
        self._measured = Recent(self._measure)
        self.far = self._find_far()
        digest = file_cache.sha256([self.path])[0]
        # not the names of the classes, which change no number
        self.fingerprint = sha256_of(
            ["npz", 1, digest, sorted(self.keys.items()), validation, test, self.range, self.labels]
        )
        if self.owners:
            self.fingerprint = sha256_of([self.fingerprint, "owners", self.owners])
        if self.far:
            self.fingerprint = sha256_of([self.fingerprint, "far", self.far])

    def _split(self, given: Splits, shares: dict[str, float]) -> Splits:
        """Notes in self.owners which array tells whose images are, where that counts."""
        self.owners = None
        plain = complete_splits(given, self.labels, range(len(self)), **shares)
        key = find_owners(self.headers, self.keys)
        owners = read_owners(self.path, key) if key else []
        self.groups = [*owners, *range(len(owners), len(self))]
        drawn = any(share and not given[split] for split, share in shares.items())
        if not owners or not drawn:
            return plain
        splits = complete_splits(given, self.labels, self.groups, **shares)
        said = f"{self.path}: {key} has {len(set(owners))} values for {len(owners)} images"
        if empty := tell_empty(splits, shares):
            log.warning(
                f"{said}: with those of one value in one split there are {' and '.join(empty)}, so "
                "that they are drawn image by image; if they are of one patient, held-out numbers "
                "will look better than they are"
            )
            return plain
        log.info(
            f"{said}: those of one value are drawn into one split (leave it out of the file to "
            "draw image by image)"
        )
        self.owners = key
        return splits

    def read_image(self, item: int) -> Levels:
        split, k = self.places[item]
        image = channels_last(self._arrays(split)[k][None])[0]
        ranges = [self.range] * image.shape[2] if self.range else self._measured("train")
        if ranges is None:
            return of_bytes(image)
        bands = image.shape[2] not in (1, 3)
        return DeepImage(image, bands).to_levels(lambda parts: ranges[: len(parts)])

    def _load(self, split: str) -> np.ndarray:
        key = self.keys[split][0]
        with self.file_cache.unchanged(self.path):
            array = read_array(self.path, key)
        void = without_numbers(array)
        if len(void):
            log.warning(
                f"{self.path}: {len(void)} of the {len(array)} images of {key} hold NaN or "
                f"infinite values, for one {key}[{void[0]}]; NaN is black, and these values count "
                "for no range"
            )
        return array

    def _find_far(self) -> list[int]:
        """Which of the images to train on, if their range is to be measured, lie far from the
        others."""
        keys = [key for key, _ in self.keys.values()]
        if self.range or self.headers[keys[0]].dtype == np.uint8:
            return []
        found = {
            key: self.file_cache.look_up(
                [self.path], f"ranges of {key}, 1", of_array(key, drawn_ranges)
            )[0]
            for key in keys
        }
        ranges = {
            key: {row: (low, high) for row, low, high in rows}
            for key, rows in found.items()
            if rows  # of an array that is not damaged, which is told when it is read
        }
        return find_far(ranges, self.path) if keys[0] in ranges else []

    def _measure(self, split: str) -> Sequence[LowHigh] | None:
        """One range, or one for each band; None for bytes."""
        array = self._arrays(split)
        rows = np.setdiff1d(self.splits[split], self.far)  # some of the array's may be held out
        trained = array if len(rows) == len(array) else array[rows]
        trained, where = channels_last(trained), f"{self.path}: {self.keys[split][0]}"
        parts = {where: trained}
        if (channels := trained.shape[-1]) not in (1, 3):
            parts = {f"{where}, channel {k + 1}": trained[..., k] for k in range(channels)}
        found = [measured_range(part, which) for which, part in parts.items()]
        if not self.range and trained.dtype != np.uint8:
            kind = trained.dtype.name
            bands = [{self.path: [OwnRange.of(part, kind)]} for part in parts.values()]
            warn_of_apart(where, bands, (), "data.range=[LOW,HIGH]")
        return [each for each in found if each] or None

    def release(self) -> None:
        self._arrays.clear()

    def file_of(self, item: int) -> str:
        return self.places[item][0]  # an array may be damaged, or all of one value

    def item_name(self, item: int) -> str:
        split, k = self.places[item]
        return f"{self.path}: {self.keys[split][0]}[{k}]"
