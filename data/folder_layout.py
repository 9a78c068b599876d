"""Which files of a folder count."""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from runtime.errors import UserError

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
