"""Which split and class each file of a folder belongs to, by the folders that it lies in."""

import logging
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import UserError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}

log = logging.getLogger("data")


def splits_and_classes(
    root: Path, names: Sequence[str], classes: bool
) -> tuple[list[str | None], list[str]]:
    """What the folders of each path say.

    Returns:
        The split that its first folder says, or None, and the class that the next one says, or "".

    Raises:
        UserError: where some paths have one and others not.
    """
    folders = [name.split("/")[:-1] for name in names]
    splits = [SPLIT_NAMES.get(p[0].lower()) if p else None for p in folders]
    if "train" not in splits:  # no such layout: "test" may then be a class like any other
        splits = [None] * len(folders)
        _check_single_folder(root, folders, classes)
    if any(splits) and not all(splits):
        stray = root / names[splits.index(None)]
        raise UserError(
            f"{root}: {stray} lies beside the folders train and test: move it into one of them."
        )
    inside = [p[1:] if split else p for p, split in zip(folders, splits)]
    class_names = [p[0] if p else "" for p in inside]
    if classes:
        _check_classes(root, names, splits, class_names)
    return splits, class_names


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
