"""What all folders of image files have in common: which files count, which split, class and patient each belongs to."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from data.file_cache import FileCache
from data.image_reader import hash_of
from data.intensity import join_ranges
from data.splits import SPLITS, check_shares, draw_splits, strata
from runtime.errors import UserError

SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
               "test": "test", "testing": "test"}

log = logging.getLogger("data")


class FolderReader:
    """Files in a folder, at any depth, each of one or more frames: the items are (file, frame). Its subclasses know what is in a file.

    Subfolders named train, val (valid, validation) and test are the splits; what is missing of validation and test is drawn
    from train, by the shares given, in each class alike. With classes, the first level of folders below that gives them. A
    patient's images are never drawn into two splits.

    frames: for each file, which frames it has. patients: for each file, whose it is where the regular expression `patient` is null;
    None where the file stands for itself. settings: what else changes pixels.
    """

    def __init__(self, file_cache: FileCache, root: Path, files: Sequence[Path], frames: Sequence[Sequence[int]], patients: Sequence[str | None],
                 validation: float, test: float, patient: str | None, classes: bool, settings: Sequence[Any]):
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
        self.fingerprint = hash_of(kind, 2, validation, test, patient, classes, *settings, list(zip(names, hashes, strict=True)))
        groups = [names[k] if patients[k] is None else f"patient {patients[k]}" for k, _ in self.items]
        self.check_files()
        self.splits = self._split([splits[k] for k, _ in self.items], groups, validation, test)
        self._warn_of_shared("patients", [group if group.startswith("patient ") else None for group in groups])
        self._warn_of_shared("files of the same content", [hashes[k] for k, _ in self.items])

    def _split(self, given: list[str | None], groups: list[str], validation: float, test: float) -> dict[str, list[int]]:
        found = {split: [i for i, s in enumerate(given) if s == split] for split in SPLITS}
        shares = {"validation": 0 if found["validation"] else validation, "test": 0 if found["test"] else test}
        cut = found["train"] or list(range(len(given)))
        if any(shares.values()):
            self._check_drawable(cut, groups)
        drawn = draw_splits(cut, self.labels, groups, **shares)
        splits = {split: found[split] if split != "train" and found[split] else drawn[split] for split in SPLITS}
        for split in SPLITS:
            if not splits[split] and shares.get(split, 1):
                log.warning("%s: too few images for any in %s at data.%s=%s", self.name, split, split, shares.get(split))
        if absent := {self.labels[i] for i in range(len(given))} - {self.labels[i] for i in splits["train"]}:
            log.warning("%s: class %s has no training images", self.name, ", ".join(self.classes[k] for k in sorted(absent)))
        return splits

    def _check_drawable(self, items: list[int], groups: list[str]) -> None:
        cure = "data.validation=0 data.test=0 draws no splits"
        if self.classes:
            counts = Counter(self.labels[i] for i in items)
            if alone := [k for k in sorted(counts) if counts[k] == 1]:
                raise UserError(f"{self.name}: class {self.classes[alone[0]]} has a single image"
                                + (f" (and {len(alone) - 1} other classes)" if len(alone) > 1 else "")
                                + ", which cannot be split: give it more, remove its folder, set data.classes=false for no "
                                f"classes, or make the splits yourself, as folders train, val and test ({cure}).")
        if len(items) > 1 and len({groups[i] for i in items}) == 1:
            raise UserError(f"{self.name}: all {len(items)} images are of one patient, and a patient is not split. "
                            f"data.patient=REGEX says otherwise whose a file is, by its path; {cure}.")
        found = strata(items, self.labels, groups)
        if alone := [k for k in sorted(found) if len(found[k]) == 1 < len(found)]:
            log.warning("%s: all images of class %s are of one patient, so they are to train on and in no other split", self.name,
                        " and of class ".join(self.classes[k] for k in alone))

    def _warn_of_shared(self, what: str, keys: list[str | None]) -> None:
        """A word on what stands in two splits. Drawn splits keep patients whole; given ones may not, nor copies of a file."""
        first: dict[str, tuple[str, int]] = {}
        shared: dict[str, tuple[int, int]] = {}
        for split in SPLITS:
            for item in self.splits[split]:
                if keys[item] is not None and first.setdefault(keys[item], (split, item))[0] != split:
                    shared.setdefault(keys[item], (first[keys[item]][1], item))
        if shared:
            one, other = next(iter(shared.values()))
            log.warning("%s: %s in more than one split: %d, so held-out numbers will look better than they are; for one: %s and %s",
                        self.name, what, len(shared), self.item_name(one), self.item_name(other))

    def measure_range(self, what: str, range_of_file: Callable[[Path], list[float] | None]) -> tuple[tuple[float, float], int]:
        """The range that holds those of the training files, or of all files where none of these has one; and of how many."""
        training, every = (list(dict.fromkeys(self.files[item] for item in items)) for items in (self.splits["train"], range(len(self))))
        ranges = next(found for files in (training, every) if (found := [r for r in self.file_cache.look_up(files, what, range_of_file) if r]))
        return join_ranges(ranges), len(ranges)

    def __len__(self) -> int:
        return len(self.items)

    def check_files(self) -> None:
        """Raises Changed where what was found out about a file and its hash are of two contents."""
        self.file_cache.check_unchanged(self.files)

    def item_name(self, item: int) -> str:
        """How a message calls this item."""
        return str(self.files[item])


def find_folder(path: str) -> Path:
    root = Path(path).expanduser()
    if root.is_file():
        raise UserError(f"data.path={path} is a file, and a folder is needed. Unpack it, or name the folder that it lies in.")
    if not root.is_dir():
        raise UserError(f"data.path={path}: there is no such folder. Set data.path to the folder of your images.")
    return root


def list_files(root: Path) -> list[Path]:
    """All files below root in the order of their names, but hidden ones, such as the ._x that macOS leaves. Links are followed."""

    def refused(error: OSError):
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror}).")

    found = []
    for folder, folders, names in os.walk(root, onerror=refused, followlinks=True):
        here = os.path.realpath(folder)
        folders[:] = [name for name in folders if not name.startswith(".") and not _leads_back(os.path.join(folder, name), here)]
        found += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    return [Path(path) for path in sorted(found, key=lambda path: path.split("/"))]


def _leads_back(folder: str, here: str) -> bool:
    return os.path.islink(folder) and f"{here}/".startswith(f"{os.path.realpath(folder)}/")


def count_names(names: Iterable[str]) -> str:
    """"a 3, b 1", the most frequent first."""
    return ", ".join(f"{name} {n}" for name, n in sorted(Counter(names).items(), key=lambda pair: (-pair[1], pair[0]))[:12])


def count_suffixes(files: Iterable[Path]) -> str:
    return count_names(p.suffix.lower() or "without suffix" for p in files)


def check_found_files(path: str, found: Sequence[Path], others: Sequence[Path], what: str, looked_for: str) -> None:
    """Refuses a folder without the files that are looked for, and says what else lies beside them."""
    if not found:
        beside = f"; it has {len(others)} other files: {count_suffixes(others)}" if others else ", and no other files"
        raise UserError(f"data.path={path}: no {what} in it (looked for {looked_for}{beside}).")
    if others:
        log.info("%s: left out %s: %s", path, f"{len(others)} files that are no {what}" if len(others) > 1 else
                 f"1 file that is no {what.removesuffix('s')}", count_suffixes(others))


def find_patients(pattern: str, names: Sequence[str]) -> list[str]:
    """For each path, what the regular expression finds in it: its first group, or all that it matches."""
    try:
        matches = [re.search(pattern, name) for name in names]
    except re.error as error:
        raise UserError(f"data.patient={pattern}: not a regular expression ({error}).") from error
    without = [name for name, match in zip(names, matches, strict=True) if not match or (match.re.groups and match[1] is None)]
    if without:
        raise UserError(f"data.patient={pattern} matches {'none' if len(without) == len(names) else 'not all'} of the paths: "
                        f"{len(without)} of {len(names)} are without, such as {without[0]}. It is searched in the path below "
                        "data.path, and its first group names the patient.")
    return [match[1] if match.re.groups else match[0] for match in matches]


def splits_and_classes(root: Path, names: Sequence[str], classes: bool) -> tuple[list[str | None], list[str]]:
    """For each path: the split that its first folder says, or None, and the class that the next one says, or ""."""
    parts = [name.split("/") for name in names]
    splits = [SPLIT_NAMES.get(p[0].lower()) if len(p) > 1 else None for p in parts]
    if "train" not in splits:  # no such layout: "test" may then be a class like any other
        splits = [None] * len(parts)
        if len({p[0] for p in parts}) == 1 and any(len(p) > 2 and SPLIT_NAMES.get(p[1].lower()) == "train" for p in parts):
            raise UserError(f"{root}: all its images are in {parts[0][0]}, which holds the folders of the splits. Name that one: "
                            f"data.path={root / parts[0][0]}")
    if any(splits) and not all(splits):
        stray = root / names[splits.index(None)]
        raise UserError(f"{root}: {stray} lies beside the folders train and test: move it into one of them.")
    inside = [p[1:] if split else p for p, split in zip(parts, splits, strict=True)]
    class_names = [p[0] if len(p) > 1 else "" for p in inside]
    if classes and len(set(class_names)) == 1 and all(class_names) and not any(splits) and len({p[1] for p in parts if len(p) > 2}) > 1:
        log.warning("%s: all its images are in %s, which is one class; data.path=%s takes the folders in it for classes", root,
                    class_names[0], root / class_names[0])
    if classes:
        _check_classes(root, names, splits, class_names)
    return splits, class_names


def _check_classes(root: Path, names: Sequence[str], splits: Sequence[str | None], class_names: Sequence[str]) -> None:
    """Refuses images beside class folders, and splits without classes beside a train folder that has them."""
    trained = next((name for name, split in zip(class_names, splits, strict=True) if name and split in (None, "train")), "")
    for split in dict.fromkeys(splits):
        inside = [k for k, s in enumerate(splits) if s == split]
        named = next((class_names[k] for k in inside if class_names[k]), trained)
        stray = [k for k in inside if not class_names[k]]
        if named and stray:
            raise UserError(f"{root}: {len(stray)} images lie beside class folders such as {named}, or where these should be; for one "
                            f"{root / names[stray[0]]}. Move them into a class, or set data.classes=false for no classes.")
