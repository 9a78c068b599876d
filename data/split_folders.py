"""Which split and class each file of a folder belongs to, by the folders that it lies in."""

import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from data.find_splits import find_splits
from data.mask_names import leave_out
from data.name_words import SPLIT_NAMES
from data.splits import SPLITS
from runtime.as_typed import as_typed
from runtime.errors import UserError, near

Given = dict[str, Any] | None  # a glob of folders or files, or a list of them, of each split

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
    patterns = _patterns(find_splits(root, names, classes) if given is None else given)
    placed = [_place(name, patterns) for name in names]
    splits = [split for split, _ in placed]
    if classes and not any(splits):
        _tell_single_folder(root, [parts for _, parts in placed])
    if any(splits) and not all(splits):
        stray = [name for name, split in zip(names, splits) if not split]
        raise UserError(
            f"{root}: {len(stray)} images lie beside the folders of the splits "
            f"({', '.join(patterns)}), such as {root / stray[0]}: move them into one of these, or "
            f"{leave_out(stray, names)}. Where these are no splits but "
            f"classes: {as_typed('data.splits', {})}"
        )
    class_names = [rest[0] if rest else "" for _, rest in placed]
    if classes and not patterns:
        _tell_splits_as_classes(root, [parts for _, parts in placed])
    if classes:
        _check_classes(root, names, splits, class_names)
    return splits, class_names


def pooled(given: Mapping[str, Any]) -> str:
    """The setting that makes one split of those given, from which others are drawn; "" where they
    are none or one."""
    found = _patterns(given)
    return as_typed("data.splits", {"train": list(found)}) if len(found) > 1 else ""


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


def _place(path: str, patterns: Mapping[str, str]) -> tuple[str | None, Sequence[str]]:
    """The split of a path, and the folders below it, after those that a * stands for."""
    parts = path.split("/")
    for pattern, split in patterns.items():
        asked = pattern.split("/")
        if len(parts) >= len(asked) and all(map(fnmatchcase, parts, asked)):
            starred = [part for part, ask in zip(parts[:-1], asked) if ask == "*"]
            return split, [*starred, *parts[len(asked) : -1]]
    return None, parts[:-1]


def _tell_single_folder(root: Path, folders: Sequence[Sequence[str]]) -> None:
    """Where all files are in one folder, the classes may be those inside it."""
    above = {p[0] if p else "" for p in folders}
    inside = {p[1] for p in folders if len(p) > 1}
    if len(above) == 1 and "" not in above and len(inside) > 1:
        single = above.pop()
        log.warning(
            f"{root}: all its images are in {single}, which is one class; "
            f"data.path={root / single} takes the folders in it for classes"
        )


def _tell_splits_as_classes(root: Path, folders: Sequence[Sequence[str]]) -> None:
    """Where data.splits={} makes classes of train and test, and these have folders inside."""
    above = sorted({p[0] for p in folders if p})
    if any(len(p) > 1 for p in folders) and all(name.lower() in SPLIT_NAMES for name in above):
        log.warning(
            f"{root}: the classes are {', '.join(above)}, and not the folders inside these; "
            f"{as_typed('data.splits', {'train': above})} makes them one split, from which others "
            "are drawn, and keeps the folders inside as classes"
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
