"""What the folders of a folder of files say: which files count, which split, class and patient each
belongs to."""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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


def list_files(root: Path) -> list[Path]:
    """All files below root in the order of their names, but hidden ones, such as the ._x that macOS
    leaves. Links are followed.

    Raises:
        UserError: for a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror}).")

    found = []
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        here = os.path.realpath(folder)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not _leads_back(os.path.join(folder, name), here)
        ]
        found += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    return [Path(path) for path in sorted(found, key=lambda path: path.split("/"))]


def _leads_back(folder: str, here: str) -> bool:
    return os.path.islink(folder) and f"{here}/".startswith(f"{os.path.realpath(folder)}/")


def count_names(names: Iterable[str]) -> str:
    """ "a 3, b 1", the most frequent first."""
    return ", ".join(f"{name} {n}" for name, n in Counter(sorted(names)).most_common(12))


def count_suffixes(files: Iterable[Path]) -> str:
    return count_names(p.suffix.lower() or "without suffix" for p in files)


def list_folder(folder: str | Path, given: str) -> tuple[Path, list[Path]]:
    """The folder, and all files in it.

    Args:
        given: how a message calls the folder.

    Raises:
        UserError: where there is none.
    """
    root = Path(folder).expanduser()
    if root.is_file():
        raise UserError(
            f"{given} is a file, and a folder is needed. Unpack it, or name the folder that it "
            "lies in."
        )
    if not root.is_dir():
        raise UserError(f"{given}: there is no such folder. Name the folder of your images.")
    return root, list_files(root)


def none_found(
    given: str, what: str, suffixes: Collection[str], others: Collection[Path], known_by: str = ""
) -> UserError:
    """That a folder holds none of what was looked for, and what it holds."""
    beside = f"it has {len(others)} other files: {count_suffixes(others)}"
    return UserError(
        f"{given}: no {what} in it (looked for {', '.join(sorted(suffixes))}{known_by}; "
        f"{beside if others else 'it has no files'})."
    )


def find_files(
    path: str,
    what: str,
    suffixes: Collection[str],
    also: Callable[[list[Path]], Iterable[Path]] = lambda unnamed: (),
    known_by: str = "",
) -> tuple[Path, list[Path]]:
    """The folder data.path, and the files in it that have one of these suffixes; the log tells of
    the others.

    Args:
        what: they are, for messages.
        also: of the files that have none of the suffixes, those that count all the same.
        known_by: how these are known, for messages.

    Raises:
        UserError: where there is no folder, or no such file in it.
    """
    root, found = list_folder(path, f"data.path={path}")
    unnamed = [file for file in found if not file.name.lower().endswith(tuple(suffixes))]
    others = set(unnamed).difference(also(unnamed))
    files = [file for file in found if file not in others]
    if not files:
        raise none_found(f"data.path={path}", what, suffixes, others, known_by)
    if others:
        left = (
            f"{len(others)} files that are no {what}"
            if len(others) > 1
            else f"1 file that is no {what.removesuffix('s')}"
        )
        log.info(f"{path}: left out {left}: {count_suffixes(others)}")
    return root, files


def tell_of_odd(path: str, odd: Mapping[Path, Sequence[str]]) -> None:
    """A warning of each thing that is odd in files, with their count and one of them. What differs
    in its numbers alone is one thing.

    Args:
        odd: of each file.
    """
    found: dict[str, list[str]] = {}
    for file, texts in odd.items():
        for text in texts:
            found.setdefault(re.sub(r"\d+", "0", text), []).append(f"{file}: {text}")
    for files in found.values():
        log.warning(
            f"{path}: {len(files)} of {len(odd)} files have an odd header, for one {files[0]}"
        )


def find_patients(pattern: str, names: Sequence[str]) -> list[str]:
    """For each path, what the regular expression finds in it: its first group, or all that it
    matches.

    Raises:
        UserError: where it is none, or finds nothing in a path.
    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.patient={pattern}: not a regular expression ({error}).") from error
    group = min(regex.groups, 1)
    found: list[Any] = [match and match[group] for match in map(regex.search, names)]
    if without := [name for name, patient in zip(names, found) if patient is None]:
        matched = "none" if len(without) == len(names) else "not all"
        raise UserError(
            f"data.patient={pattern} matches {matched} of the paths: {len(without)} of "
            f"{len(names)} are without, such as {without[0]}. It is searched in the path below "
            "data.path, and its first group names the patient."
        )
    return found


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
