"""What all folders of image files have in common: their splits, classes and patients."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.file_cache import FileCache
from data.folder_layout import find_patients, splits_and_classes
from data.image_reader import ImageReader
from data.intensity import LowHigh, join_ranges
from data.splits import SPLITS, check_shares, draw_splits, strata
from runtime.content import sha256_of
from runtime.errors import UserError

NO_SPLITS = "data.validation=0 data.test=0 draws no splits"

log = logging.getLogger("data")


class FolderReader(ImageReader):
    """Files in a folder, at any depth, each of one or more frames: the items are (file, frame). Its
    subclasses know what is in a file.

    Subfolders named train, val (valid, validation) and test are the splits; what is missing of
    validation and test is drawn from train, by the shares given, in each class alike. With classes,
    the first level of folders below that gives them. A patient is never drawn into two splits.

    Args:
        frames: for each file, which frames it has.
        patients: for each file, whose it is where the regular expression `patient` is null; None
            where the file stands for itself.
        settings: what else changes pixels.
    """

    def __init__(
        self,
        file_cache: FileCache,
        root: Path,
        files: Sequence[Path],
        frames: Sequence[Sequence[int]],
        patients: Sequence[str | None],
        validation: float,
        test: float,
        patient: str | None,
        classes: bool,
        settings: Sequence[Any],
    ):
        check_shares(validation, test)
        kind = type(self).__name__.lower()
        self.root, self.name, self.file_cache = root, f"{kind} {root}", file_cache
        names = [p.relative_to(root).as_posix() for p in files]
        if patient is not None:
            patients = find_patients(patient, names)
        splits, class_names = splits_and_classes(root, names, classes)
        self.classes = sorted(set(class_names)) if classes and all(class_names) else []
        label = {name: k for k, name in enumerate(self.classes)}
        self.items = [(k, frame) for k in range(len(files)) for frame in frames[k]]
        self.files = [files[k] for k, _ in self.items]  # one an item
        self.labels = [label.get(class_names[k], 0) for k, _ in self.items]
        hashes = file_cache.sha256(files)
        self.fingerprint = sha256_of(
            [kind, 2, validation, test, patient, classes, *settings, list(zip(names, hashes))]
        )
        owners = [None if whose is None else f"patient {whose}" for whose in patients]
        groups = [owners[k] or names[k] for k, _ in self.items]
        self.check_files()
        self.splits = self._split([splits[k] for k, _ in self.items], groups, validation, test)
        self._warn_of_shared("patients", [owners[k] for k, _ in self.items])
        self._warn_of_shared("files of the same content", [hashes[k] for k, _ in self.items])

    def _split(
        self, given: Sequence[str | None], groups: Sequence[str], validation: float, test: float
    ) -> dict[str, Sequence[int]]:
        found: dict[str, list[int]] = {split: [] for split in SPLITS}
        for item, split in enumerate(given):
            if split:
                found[split].append(item)
        shares = {
            "validation": 0 if found["validation"] else validation,
            "test": 0 if found["test"] else test,
        }
        cut = found["train"] or list(range(len(given)))
        if any(shares.values()):
            self._check_drawable(cut, groups)
        splits: dict[str, Sequence[int]] = {**draw_splits(cut, self.labels, groups, **shares)}
        splits |= {split: found[split] for split in shares if found[split]}
        for split in SPLITS:
            if not splits[split] and shares.get(split, 1):
                log.warning(
                    "%s: too few images for any in %s at data.%s=%s",
                    self.name,
                    split,
                    split,
                    shares.get(split),
                )
        trained = {self.labels[i] for i in splits["train"]}
        if absent := sorted(set(self.labels) - trained):
            log.warning(
                "%s: class %s has no training images",
                self.name,
                ", ".join(self.classes[k] for k in absent),
            )
        return splits

    def _check_drawable(self, items: Sequence[int], groups: Sequence[str]) -> None:
        counts = Counter(self.labels[i] for i in items)
        alone = [k for k in sorted(counts) if counts[k] == 1]
        if self.classes and alone:
            others = f" (and {len(alone) - 1} other classes)" if len(alone) > 1 else ""
            raise UserError(
                f"{self.name}: class {self.classes[alone[0]]} has a single image{others}, which "
                "cannot be split: give it more, remove its folder, set data.classes=false for no "
                "classes, or make the splits yourself, as folders train, val and test "
                f"({NO_SPLITS})."
            )
        if len(items) > 1 and len({groups[i] for i in items}) == 1:
            raise UserError(
                f"{self.name}: all {len(items)} images are of one patient, and a patient is not "
                "split. data.patient=REGEX says otherwise whose a file is, by its path; "
                f"{NO_SPLITS}."
            )
        found = strata(items, self.labels, groups)
        if alone := [k for k in sorted(found) if len(found[k]) == 1 < len(found)]:
            log.warning(
                "%s: all images of class %s are of one patient, so they are to train on and in "
                "no other split",
                self.name,
                " and of class ".join(self.classes[k] for k in alone),
            )

    def _warn_of_shared(self, what: str, keys: Sequence[str | None]) -> None:
        """A word on what stands in two splits. Drawn splits keep patients whole; given ones may
        not, nor copies of a file."""
        first: dict[str, tuple[str, int]] = {}
        shared: dict[str, tuple[int, int]] = {}
        for split in SPLITS:
            for item in self.splits[split]:
                key = keys[item]
                if key is not None and first.setdefault(key, (split, item))[0] != split:
                    shared.setdefault(key, (first[key][1], item))
        if shared:
            one, other = next(iter(shared.values()))
            log.warning(
                "%s: %s in more than one split: %d, so held-out numbers will look better than "
                "they are; for one: %s and %s",
                self.name,
                what,
                len(shared),
                self.item_name(one),
                self.item_name(other),
            )

    def measure_range(self, what: str, range_of_file: Callable[[Path], Any]) -> tuple[LowHigh, int]:
        """The range that holds those of the training files, or of all files where none of these has
        one; and of how many."""
        ranges: list[Any] = []
        for items in (self.splits["train"], range(len(self))):
            files = list(dict.fromkeys(self.files[item] for item in items))
            ranges = ranges or [r for r in self.file_cache.look_up(files, what, range_of_file) if r]
        return join_ranges(ranges), len(ranges)

    def check_files(self) -> None:
        self.file_cache.check_unchanged(self.files)

    def item_name(self, item: int) -> str:
        return str(self.files[item])
