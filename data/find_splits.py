"""Which folders or files are splits, by their names; asked about where they are called or lie
otherwise than train, val and test do."""

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from data.mask_names import is_mask
from data.name_words import (
    MASKS,
    PLACES,
    SPLIT_NAMES,
    WORD,
    split_said_by,
    split_word,
    stem_of,
    words_of,
)
from data.splits import SPLITS
from runtime.as_typed import as_typed
from runtime.errors import UserError, numbers_as_0

Said = Mapping[str, str]  # split by a glob of folders, or of files
NEARLY_ALL = 0.9  # of the files: where so many are named for a split, the others are strays
LISTED = 6  # folders, of which more are named by a *

NONE = as_typed("data.splits", {})

log = logging.getLogger("data")


def find_splits(root: Path, names: Sequence[str], classes: bool) -> dict[str, Any]:
    """data.splits, by the names of the first folders.

    Args:
        names: paths below root.

    Raises:
        UserError: where folders or files look like splits, in another spelling or place.
    """
    folders = [name.split("/")[:-1] for name in names]
    _check_path(root, folders)
    firsts = dict.fromkeys(parts[0] for parts in folders if parts)
    exact = {name: split for name in firsts if (split := SPLIT_NAMES.get(name.lower()))}
    trains = "train" in exact.values()
    said = (
        exact
        if trains
        else exact | _other_spellings([name for name in firsts if name not in exact])
    )
    kinds, whole = {*said.values()}, len(said) == len(firsts) and all(folders)
    taken = trains or (kinds == {"train"} and whole)
    if taken or (len(kinds) > 1 and ("train" in kinds or whole)):
        inner = _innermost(said, folders)
        if not taken or any("/" in place for place in inner):
            _ask(root, inner, classes)
        if not trains:
            named = ", ".join(said)
            log.info(f"{root}: {named}: taken for the folder train; {NONE} takes it for no split")
        return by_split(inner)
    if {"train"} < {*(found := _splits_inside(folders)).values()}:
        _ask(root, found, classes)
    if found := _splits_of_files(names):
        _ask(root, found, classes=False)
    return {}


def by_split(said: Said) -> dict[str, Any]:
    """As data.splits has it."""
    found: dict[str, Any] = {}
    for split in SPLITS:
        folders = [name for name, its in said.items() if its == split]
        found |= {split: folders if len(folders) > 1 else folders[0]} if folders else {}
    return found


def _says(folder: str) -> str | None:
    """The split that a folder's name says, and nothing else."""
    said = split_said_by(folder)
    return said[0] if said and not said[1] else None


def _check_path(root: Path, folders: Sequence[Sequence[str]]) -> None:
    """Refuses a folder whose images are all in one folder that holds the splits."""
    shared = os.path.commonpath({"/".join(parts) for parts in folders} or {""})
    if not shared:
        return
    above = shared.split("/")
    above = above[: next((k for k, name in enumerate(above) if k and _says(name)), None)]
    inside = {parts[len(above)] if len(parts) > len(above) else "" for parts in folders}
    kinds = {split for name in inside if (split := _says(name))}
    alone = inside <= SPLIT_NAMES.keys() or not _says(above[-1])
    exact = any(SPLIT_NAMES.get(name.lower()) == "train" for name in inside)
    if (exact and alone) or {"train"} < kinds:
        single = "/".join(above)
        raise UserError(
            f"{root}: all its images are in {single}, which holds the folders of the splits. Name "
            f"that one: {as_typed('data.path', str(root / single))}; {NONE} says that they are none"
        )


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


def _innermost(said: Said, folders: Sequence[Sequence[str]]) -> dict[str, str]:
    """Of train/train, as archives unpack, the inner one: split by place."""
    found = {}
    for name, split in said.items():
        below = [parts for parts in folders if parts and parts[0] == name]
        depth = 1
        while len(inside := {parts[depth] if len(parts) > depth else "" for parts in below}) == 1:
            if (split_said_by(inside.pop()) or ("",))[0] != split:
                break
            depth += 1
        found["/".join(map(glob.escape, below[0][:depth]))] = split
    return found


def _splits_inside(folders: Sequence[Sequence[str]]) -> dict[str, str]:
    """As in cat/train/1.png beside dog/train/1.png: split by place. Folders that the splits are in
    are classes, by a *, unless the splits have folders inside that may be."""
    places: dict[tuple[str, ...], str] = {}
    classes = False
    for parts in dict.fromkeys(map(tuple, folders)):
        for k, name in enumerate(parts):
            if k and (split := _says(name)):
                places[parts[: k + 1]] = split
                classes |= any({*words_of(each)} - PLACES - MASKS for each in parts[k + 1 :])
                break
    above = {place[:-1] for place in places}
    if not classes or len(above) > LISTED:
        return {"/".join(_starred(place, above)): split for place, split in places.items()}
    return {"/".join(map(glob.escape, place)): split for place, split in places.items()}


def _starred(place: Sequence[str], above: Iterable[Sequence[str]]) -> list[str]:
    """With a * for each folder that differs among those so deep."""
    levels = zip(*(each for each in above if len(each) == len(place) - 1))
    starred = [glob.escape(names[0]) if len({*names}) == 1 else "*" for names in levels]
    return [*starred, glob.escape(place[-1])]


def _splits_of_files(names: Sequence[str]) -> dict[str, str]:
    """As in train_01.png beside test_01.png, where nearly all files are named so: split by glob."""
    images = [name for name in names if not is_mask(name)]
    alike = Counter("*/" * n.count("/") + numbers_as_0(n.rpartition("/")[2]) for n in images)
    said = {name: each for name in alike if (each := _said_by_file(name))}
    kinds: dict[str, set[str]] = {}
    for split, rest, _ in said.values():
        kinds.setdefault(rest, set()).add(split)
    said = {name: each for name, each in said.items() if {"train"} < kinds[each[1]]}
    if sum(alike[name] for name in said) < NEARLY_ALL * len(images):
        return {}
    return {found: split for split, _, found in said.values()}


def _said_by_file(path: str) -> tuple[str, str, str] | None:
    """The split that a file's name says, what else it says, and a glob of such files."""
    folders, slash, _ = path.rpartition("/")
    stem = stem_of(path)
    split, rest = split_said_by(stem) or ("", "")
    for word in WORD.finditer(stem):
        if split and split_word(word[0].lower()) == split:
            before, after = "*" * bool(word.start()), ".*" if word.end() == len(stem) else "*"
            return split, rest, f"{folders}{slash}{before}{word[0]}{after}"
    return None


def _ask(root: Path, said: Said, classes: bool) -> NoReturn:
    """Raises UserError."""
    masks = [name for name in said if is_mask(f"{name}/x")]
    images = {name: split for name, split in said.items() if name not in masks} or said
    splits = by_split(images)
    cures = [f"{as_typed('data.splits', splits)} says so"]
    if "train" not in splits:
        cures = ["none of them is to train on: name that folder train"]
    if masks and len(images) < len(said):
        globs = [f"{name}/*" for name in masks]
        left_out = as_typed("data.exclude", globs if len(globs) > 1 else globs[0])
        cures.append(f"{left_out} leaves out what looks like masks ({', '.join(masks)})")
    cures.append(f"{NONE} takes them for {'classes' if classes else 'none'}")
    raise UserError(
        f"{root}: {', '.join(said)} look like splits in another spelling or place than the "
        f"folders train, val and test. Rename them; or {'; '.join(cures)}."
    )
