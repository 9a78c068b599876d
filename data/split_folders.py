"""Which split and class each file of a folder belongs to, by the folders that it lies in."""

import glob
import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

from data.mask_names import is_mask
from data.name_words import split_said_by
from data.splits import SPLITS
from runtime.as_typed import as_typed
from runtime.errors import UserError, near

Given = dict[str, Any] | None  # the folder, or a list of folders, of each split

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}

log = logging.getLogger("data")


def splits_and_classes(
    root: Path, names: Sequence[str], classes: bool, given: Given = None
) -> tuple[list[str | None], list[str]]:
    """What the folders of each path say.

    Args:
        given: data.splits.

    Returns:
        The split that its first folder says, or None, and the class that the next one says, or "".

    Raises:
        UserError: where some paths have one and others not; where folders may be splits in another
            spelling, or inside the classes.
    """
    folders = [name.split("/")[:-1] for name in names]
    if given is None:
        given = _splits_found(root, folders, classes)
    patterns = _patterns(given)
    placed = [_place(parts, patterns) for parts in folders]
    splits = [split for split, _ in placed]
    if not any(splits):
        _check_single_folder(root, folders, classes)
    elif not all(splits):
        stray = [name for name, split in zip(names, splits) if not split]
        raise UserError(
            f"{root}: {len(stray)} images lie beside the folders of the splits "
            f"({', '.join(patterns)}), such as {root / stray[0]}: move them into one of these, or "
            f"leave them out by {as_typed('data.exclude', _beside(stray[0]))}. Where these are no "
            f"splits but classes: {as_typed('data.splits', {})}"
        )
    class_names = [rest[0] if rest else "" for _, rest in placed]
    if classes:
        _check_classes(root, names, splits, class_names)
    return splits, class_names


def _beside(name: str) -> str:
    """A glob of what lies in the same first folder."""
    first, slash, _ = name.partition("/")
    return glob.escape(first) + "/*" * bool(slash)


def _patterns(given: Mapping[str, Any]) -> dict[str, str]:
    """Split by folder."""
    patterns = {}
    for key, folders in given.items():
        if key not in SPLIT_NAMES:
            raise UserError(f"data.splits: there is no split {key}; {near(key, SPLITS)}")
        for folder in folders if isinstance(folders, list) else [folders]:
            patterns[str(folder).strip("/")] = SPLIT_NAMES[key]
    if given and "train" not in patterns.values():
        raise UserError("data.splits says no folder to train on: data.splits={train:FOLDER,...}.")
    return patterns


def _place(parts: Sequence[str], patterns: Mapping[str, str]) -> tuple[str | None, Sequence[str]]:
    """The split of a path, and the folders below it, after those that a * stands for."""
    for pattern, split in patterns.items():
        asked = pattern.split("/")
        if len(parts) >= len(asked) and all(map(fnmatchcase, parts, asked)):
            starred = [part for part, ask in zip(parts, asked) if ask == "*"]
            return split, [*starred, *parts[len(asked) :]]
    return None, parts


def _splits_found(root: Path, folders: Sequence[Sequence[str]], classes: bool) -> dict[str, Any]:
    """data.splits, by the names of the first folders."""
    firsts = dict.fromkeys(glob.escape(parts[0]) for parts in folders if parts)
    exact = {name: split for name in firsts if (split := SPLIT_NAMES.get(name.lower()))}
    if "train" in exact.values():
        return _by_split(exact)
    said = exact | _other_spellings([name for name in firsts if name not in exact])
    kinds, whole = {*said.values()}, len(said) == len(firsts) and all(folders)
    inside = _splits_inside(folders)
    if (len(kinds) > 1 and ("train" in kinds or whole)) or len({*inside.values()}) > 1:
        _ask(root, said if len(kinds) > 1 else inside, classes)
    if kinds == {"train"} and whole:
        none = f"{as_typed('data.splits', {})} takes it for no split"
        log.info(f"{root}: {', '.join(said)}: taken for the folder train; {none}")
        return _by_split(said)
    return {}


def _other_spellings(names: Sequence[str]) -> dict[str, str]:
    """Split by name, of those that say a split alone, and those that differ in the split alone, as
    lungs_train and lungs_test do."""
    found = {name: said for name in names if (said := split_said_by(name))}
    kinds: dict[str, set[str]] = {}
    for split, rest in found.values():
        kinds.setdefault(rest, set()).add(split)
    return {
        name: split
        for name, (split, rest) in found.items()
        if not rest or ("train" in kinds[rest] and len(kinds[rest]) > 1)
    }


def _splits_inside(folders: Sequence[Sequence[str]]) -> dict[str, str]:
    """As in cat/train/1.png beside dog/train/1.png: split by pattern, {} where none of them is
    train, or all are in one folder."""
    if len({parts[0] for parts in folders if parts}) < 2:
        return {}
    seconds = dict.fromkeys(parts[1] if len(parts) > 1 else "" for parts in folders)
    found = {f"*/{name}": split for name in seconds if (split := SPLIT_NAMES.get(name.lower()))}
    return found if "train" in found.values() else {}


def _by_split(found: Mapping[str, str]) -> dict[str, Any]:
    by_split: dict[str, Any] = {}
    for split in SPLITS:
        folders = [name for name, its in found.items() if its == split]
        by_split |= {split: folders if len(folders) > 1 else folders[0]} if folders else {}
    return by_split


def _ask(root: Path, said: Mapping[str, str], classes: bool) -> NoReturn:
    """Raises UserError."""
    masks = [name for name in said if is_mask(f"{name}/x")]
    images = {name: split for name, split in said.items() if name not in masks} or said
    by_split = _by_split(images)
    cures = [f"{as_typed('data.splits', by_split)} says so"]
    if "train" not in by_split:
        cures = ["none of them is to train on: name that folder train"]
    if masks and len(images) < len(said):
        globs = [f"{name}/*" for name in masks]
        left_out = as_typed("data.exclude", globs if len(globs) > 1 else globs[0])
        cures.append(f"{left_out} leaves out what looks like masks ({', '.join(masks)})")
    cures.append(f"{as_typed('data.splits', {})} takes them for {'classes' if classes else 'none'}")
    raise UserError(
        f"{root}: the folders {', '.join(said)} look like splits in another spelling or place than "
        f"train, val and test. Rename them; or {'; '.join(cures)}."
    )


def _check_single_folder(root: Path, folders: Sequence[Sequence[str]], classes: bool) -> None:
    """Where all files are in one folder, the splits or the classes may be those inside it."""
    above = {p[0] if p else "" for p in folders}
    inside = {p[1] for p in folders if len(p) > 1}
    if len(above) > 1 or "" in above:
        return
    single = above.pop()
    if "train" in {SPLIT_NAMES.get(name.lower()) for name in inside}:
        raise UserError(
            f"{root}: all its images are in {single}, which holds the folders of the splits. Name "
            f"that one: data.path={root / single}"
        )
    if classes and len(inside) > 1:
        log.warning(
            f"{root}: all its images are in {single}, which is one class; "
            f"data.path={root / single} takes the folders in it for classes"
        )


def _check_classes(
    root: Path, names: Sequence[str], splits: Sequence[str | None], class_names: Sequence[str]
) -> None:
    """Refuses images beside class folders, and splits without classes beside a train folder that
    has them."""
    found = zip(reversed(splits), reversed(class_names))
    first_class = {split: name for split, name in found if name}  # of each split
    stray = [
        (name, beside)
        for name, split, class_name in zip(names, splits, class_names)
        if not class_name and (beside := first_class.get(split, first_class.get("train")))
    ]
    if stray:
        name, beside = stray[0]
        raise UserError(
            f"{root}: {len(stray)} images lie beside class folders such as {beside}, or where "
            f"these should be; for one {root / name}. Move them into a class, or set "
            "data.classes=false for no classes."
        )
