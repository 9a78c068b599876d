"""What all folders of image files have in common: their splits, classes and patients."""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from data.common_range import CommonRange, find_common_range, find_ranges_of_bands, of_cache
from data.deep_image import Ranges
from data.file_cache import FileCache
from data.find_splits import find_splits
from data.image_reader import ImageReader
from data.intensity import LowHigh, Range
from data.odd_classes import listed, tell_classes
from data.patient_names import find_patients, tell_patients
from data.split_folders import Given, pooled, splits_and_classes
from data.splits import (
    SPLITS,
    Splits,
    check_shares,
    complete_splits,
    items_by_split,
    strata,
    tell_empty,
)
from runtime.content import sha256_of
from runtime.errors import UserError

NO_SPLITS = "data.validation=0 data.test=0 draws no splits"

T = TypeVar("T")
log = logging.getLogger("data")


class FolderReader(ImageReader):
    """Files in a folder, at any depth, each of one or more frames: the items are (file, frame). Its
    subclasses know what is in a file.

    Subfolders train, val (valid, validation, dev) and test are the splits, or those that `splits`
    names; what is missing of validation and test is drawn from train, by the shares given, in each
    class alike. With classes, the first level of folders below that gives them. A patient is never
    drawn into two splits.

    Args:
        frames: by file, which frames it has.
        patients: by file, whose it is where the regular expression `patient` is null; a file that
            is nobody's stands for itself.
        settings: what else changes pixels.
        splits: the folder, or a list of folders, of each split, below root: {"train": "imagesTr"};
            * stands for a folder that is then a class; globs of files too: {"train": "train_*"}.
            {} for no splits; null: by their names.
    """

    together = (
        "data.patient=REGEX keeps together what belongs together; or make the splits yourself."
    )
    places: Collection[str] = ()  # settings of a subclass that say where it lies, not what it is

    def __init__(
        self,
        file_cache: FileCache,
        root: Path,
        frames: Mapping[Path, Sequence[int]],
        patients: Mapping[Path, str | None],
        validation: float,
        test: float,
        patient: str | None,
        classes: bool,
        settings: Sequence[Any],
        splits: Given = None,
    ):
        check_shares(validation, test)
        kind = type(self).__name__.lower()
        self.root, self.name, self.file_cache = root, f"{kind} {root}", file_cache
        files = list(frames)
        names = [p.relative_to(root).as_posix() for p in files]
        whose = find_patients(patient, names) if patient is not None else map(patients.get, files)
        owners = [None if owner is None else f"patient {owner}" for owner in whose]
        given = find_splits(root, names, classes) if splits is None else splits
        found, class_names = splits_and_classes(root, names, classes, given)
        self.classes = sorted(set(class_names)) if classes and all(class_names) else []
        hashes = file_cache.digests(files)
        self.fingerprint = sha256_of(
            [kind, 2, validation, test, patient, classes, *settings, list(zip(names, hashes))]
            + [splits] * (splits is not None)
        )
        self.items = [(p, frame) for p in files for frame in frames[p]]

        def of_items(of_files: Iterable[T]) -> list[T]:
            return [each for each, p in zip(of_files, files) for _ in frames[p]]

        if self.classes:
            for told in tell_classes(dict(zip(names, class_names)), dict(zip(names, hashes))):
                log.warning(f"{self.name}: {told}")
        self.files = of_items(files)
        label = {name: k for k, name in enumerate(self.classes)}
        self.labels = of_items(label.get(name, 0) for name in class_names)
        self.groups = of_items(owner or name for owner, name in zip(owners, names))
        self._shares = {"validation": validation, "test": test}
        self.splits = self._split(of_items(found), self.groups)
        self._pooled = pooled(given)
        self._warn_of_shared("patients", of_items(owners))
        self._warn_of_shared("files of the same content", of_items(hashes))
        if patient is None:
            self._warn_of_patients(of_items(names), of_items(owners))

    def _split(self, given: Sequence[str | None], groups: Sequence[Hashable]) -> Splits:
        shares = self._shares
        found = items_by_split(given)
        found["train"] = found["train"] or range(len(given))
        if any(share and not found[split] for split, share in shares.items()):
            self._check_drawable(found["train"], groups)
        splits = complete_splits(found, self.labels, groups, **shares)
        for line in tell_empty(splits, shares):
            log.warning(f"{self.name}: {line}")
        trained = {self.labels[i] for i in splits["train"]}
        if absent := sorted(set(self.labels) - trained):
            names = listed([self.classes[k] for k in absent])
            log.warning(f"{self.name}: class {names} has no training images")
        return splits

    def _check_drawable(self, items: Sequence[int], groups: Sequence[Hashable]) -> None:
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
            names = listed([self.classes[k] for k in alone])
            log.warning(
                f"{self.name}: all images of class {names} are of one patient, so they are to "
                "train on and in no other split"
            )

    def _warn_of_shared(self, what: str, keys: Sequence[str | None]) -> None:
        """A word on what stands in two splits. Drawn splits keep patients whole; given ones may
        not, nor copies of a file."""
        firsts: defaultdict[str | None, dict[str, int]] = defaultdict(dict)  # items, by split
        for split in SPLITS:
            for item in self.splits[split]:
                firsts[keys[item]].setdefault(split, item)
        firsts.pop(None, None)
        shared = [list(items.values()) for items in firsts.values() if len(items) > 1]
        keeps = what == "patients" and bool(self._pooled)
        if shared:
            one, other, *_ = shared[0]
            log.warning(
                f"{self.name}: {what} in more than one split: {len(shared)}, so held-out numbers "
                "will look better than they are; for one: "
                f"{self.item_name(one)} and {self.item_name(other)}"
                + f". {self._pooled} draws other splits, which keep patients whole"
                * keeps
            )

    def _warn_of_patients(self, names: Sequence[str], owners: Sequence[str | None]) -> None:
        """Those that only names show."""
        split_of = {item: split for split in SPLITS for item in self.splits[split]}
        firsts = {names[item]: item for item, owner in enumerate(owners) if owner is None}
        told = tuple(split_of[item] for item in firsts.values())
        labels = tuple(self.labels[item] for item in firsts.values())
        shares = self._shares["validation"], self._shares["test"]
        if torn := _torn_patients(
            tuple(firsts), told, labels, tuple(self.classes), self._pooled, shares
        ):
            log.warning(f"{self.name}: {torn}")

    def file_of(self, item: int) -> Path:
        return self.files[item]

    def measure_range(self, what: str, ranges_of_file: Callable[[Path], Any], said: str) -> Range:
        """One range for all images that need one, see data.common_range; called by a subclass when
        its splits are known. It is part of the fingerprint where it leaves out files.

        Args:
            what: names what ranges_of_file computes, see FileCache.look_up.
            ranges_of_file: an OwnRange for each image that needs one; None of a broken file.
            said: to the log, with low, high and n, of how many files it is; behind "; " stand the
                settings that choose another.
        """
        way_out = said.partition("; ")[2]
        if not (measured := of_cache(self._look_up(what, ranges_of_file))):
            return lambda values: _no_range(way_out)
        found = find_common_range(self.name, measured, self._trained, way_out)
        log.info(f"{self.name}: {said.format(low=found.low, high=found.high, n=found.n)}")
        self._count_range([found])
        return lambda values: (found.low, found.high)

    def measure_ranges(
        self, what: str, ranges_of_file: Callable[[Path], Any], said: str, mixed: str
    ) -> Ranges:
        """As measure_range, a range for each band; images of so many bands have ranges of their
        own.

        Args:
            ranges_of_file: an OwnRange for each band of the image, one of gray or colour; none
                where its values are levels.
            mixed: to the log where only some files need one, with n of them and one, the number of
                the others and another.
        """
        way_out, known = said.partition("; ")[2], self._look_up(what, ranges_of_file)
        measured = of_cache(known)
        if measured and (others := [path for path, ranges in known.items() if ranges == []]):
            counts = {"n": len(measured), "one": next(iter(measured))}
            others_counts = {"others": len(others), "another": others[0]}
            log.warning(f"{self.name}: {mixed.format(**counts, **others_counts)}")
        joined: dict[int, list[LowHigh]] = {}
        for bands in sorted(set(map(len, measured.values()))):
            same = {path: ranges for path, ranges in measured.items() if len(ranges) == bands}
            if bands == 1:
                found = [find_common_range(self.name, same, self._trained, way_out)]
                told = said.format(low=found[0].low, high=found[0].high, n=found[0].n)
            else:
                found = find_ranges_of_bands(self.name, same, self._trained, way_out)
                listed = ", ".join(f"{each.low:g} .. {each.high:g}" for each in found)
                told = (
                    f"each of the {bands} bands from black to white by a range of its own, "
                    f"{listed}, measured over the {found[0].n} images to train on; {way_out}"
                )
            log.info(f"{self.name}: {told}")
            self._count_range(found)
            joined[bands] = [(each.low, each.high) for each in found]
        return lambda parts: joined.get(len(parts)) or [_no_range(way_out)]

    def _look_up(self, what: str, ranges_of_file: Callable[[Path], Any]) -> dict[Path, Any]:
        files = list(dict.fromkeys(self.files))
        return dict(zip(files, self.file_cache.look_up(files, what, ranges_of_file)))

    @property
    def _trained(self) -> set[Path]:
        return {self.files[item] for item in self.splits["train"]}

    def _count_range(self, found: Sequence[CommonRange]) -> None:
        """A range that leaves out files is part of what the images are."""
        if any((each.low, each.high) != each.plain for each in found):
            limits = [limit for each in found for limit in (each.low, each.high)]
            self.fingerprint = sha256_of([self.fingerprint, "range", limits])


def _no_range(way_out: str) -> LowHigh:
    raise UserError(f"no file has a range that could be measured: {way_out}")


@lru_cache(maxsize=4)  # the cells of a sweep open the same two folders again and again
def _torn_patients(
    names: Sequence[str],
    split_of: Sequence[str],
    labels: Sequence[int],
    classes: Sequence[str],
    pooled: str,
    shares: tuple[float, float],
) -> str | None:
    """See tell_patients. shares: of validation and test."""

    def can_be_drawn(groups: Sequence[str | None]) -> bool:
        every = items_by_split(["train"] * len(labels))
        whose = [group or name for group, name in zip(groups, names)]
        return not tell_empty(complete_splits(every, labels, whose, *shares), wanted)

    wanted = dict(zip(("validation", "test"), shares))
    return tell_patients(names, split_of, classes, pooled, can_be_drawn)
