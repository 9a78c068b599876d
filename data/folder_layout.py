"""Which files of a folder count."""

import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from data.image_formats import SUFFIXES
from runtime.as_typed import as_typed
from runtime.errors import UserError, numbers_as_0

# of thumbnails, bins and the like, which servers, archives and systems put beside one's files
SYSTEM_FOLDERS = {
    "__macosx",
    "@eadir",
    "@__thumb",
    "@recycle",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "lost+found",
    "system volume information",
}
# of a file beside another, behind its whole name: GDAL's overviews and masks, copies of editors and
# what is not fetched yet; their first bytes may be an image's
BESIDE = (".ovr", ".msk", ".bak", ".part", ".tmp", "~")
READERS = {  # data=: suffixes
    "dicom": (".dcm", ".dicom", ".ima"),
    "nifti": (".nii", ".nii.gz"),
    "npz": (".npz",),
    "folder": SUFFIXES,
}
ARRAYS = (
    " One .npz of all arrays is read: numpy.savez('images.npz', images=numpy.stack([numpy.load(f) "
    "for f in FILES])), then data=npz data.path=images.npz."
)
LOOKED_AT = 1000  # files, of which the most frequent suffix says the reader

Globs = str | Sequence[str] | None

log = logging.getLogger("data")


def list_files(root: Path) -> list[Path]:
    """All files below root in the order of their names, but hidden ones, such as the ._x that macOS
    leaves, and those in SYSTEM_FOLDERS. Links are followed.

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
            if not name.startswith(".")
            and name.lower() not in SYSTEM_FOLDERS
            and not _leads_back(os.path.join(folder, name), here)
        ]
        found += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    return [Path(path) for path in sorted(found, key=lambda path: path.split("/"))]


def beside_others(files: Collection[Path]) -> set[Path]:
    """Those whose names are another's with a suffix of BESIDE."""
    known = set(files)
    return {
        file
        for file in files
        for suffix in BESIDE
        if file.name.lower().endswith(suffix)
        and file.with_name(file.name[: -len(suffix)] or ".") in known
    }


def _leads_back(folder: str, here: str) -> bool:
    return os.path.islink(folder) and f"{here}/".startswith(f"{os.path.realpath(folder)}/")


def count_names(names: Iterable[str]) -> str:
    """ "a 3, b 1", the most frequent first."""
    return ", ".join(f"{name} {n}" for name, n in Counter(sorted(names)).most_common(12))


def count_suffixes(files: Iterable[Path]) -> str:
    return count_names(p.suffix.lower() or "without suffix" for p in files)


def reader_for(path: str) -> str:
    """The data= that reads what lies there, by the first files."""
    root = Path(path).expanduser()
    files = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    found = [root] if root.is_file() else itertools.islice(files, LOOKED_AT)
    return _reader_of(found) or "folder"


def _reader_of(files: Iterable[Path]) -> str | None:
    """Of most of these files, by their suffixes."""
    found = Counter(
        data
        for file in files
        for data, suffixes in READERS.items()
        if file.name.lower().endswith(tuple(suffixes))
    )
    return max(found, key=found.__getitem__, default=None)


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


def matching(names: Iterable[str], globs: Globs) -> set[str]:
    """The paths that any of the globs matches; `*` crosses slashes too."""
    each = [globs] if isinstance(globs, str) else globs or []
    return {name for name in names for glob in each if fnmatchcase(name, glob)}


def chosen(root: Path, files: list[Path], include: Globs, exclude: Globs) -> list[Path]:
    """The files that the globs leave, by their paths below root; the log tells of the others.

    Raises:
        UserError: where include matches nothing.
    """
    if not include and not exclude:
        return files
    names = [file.relative_to(root).as_posix() for file in files]
    kept = matching(names, include) if include else {*names}
    out = matching(names, exclude)
    for key, globs, found in (("data.include", include, kept), ("data.exclude", exclude, out)):
        if names and globs and not found:
            said = (
                f"{as_typed(key, globs)} matches none of the {len(names)} files in {root}, such as "
                f"{names[0]}: it is a glob on the path below data.path"
            )
            if globs is include:
                raise UserError(f"{said}.")
            log.warning(said)
    left = [file for file, name in zip(files, names) if name in kept and name not in out]
    if names and not left:
        raise UserError(
            f"{root}: data.include and data.exclude leave none of its {len(names)} files."
        )
    if gone := next((name for name in names if name in out or name not in kept), None):
        n = len(names) - len(left)
        log.info(f"{root}: data.include and data.exclude leave out {n} files, such as {gone}")
    return left


def none_found(
    given: str,
    what: str,
    suffixes: Collection[str],
    others: Collection[Path],
    known_by: str = "",
    reader: str | None = None,
) -> UserError:
    """That a folder holds none of what was looked for, what it holds, and what reads that."""
    arrays = any(file.suffix.lower() == ".npy" for file in others)
    beside = f"it has {len(others)} other files: {count_suffixes(others)}"
    return UserError(
        f"{given}: no {what} in it (looked for {', '.join(sorted(suffixes))}{known_by}; "
        f"{beside if others else 'it has no files'})."
        + (f" {reader} reads such files." if reader else ARRAYS * arrays)
    )


def find_files(
    path: str,
    what: str,
    suffixes: Collection[str],
    also: Callable[[list[Path]], Iterable[Path]] = lambda unnamed: (),
    known_by: str = "",
    include: Globs = None,
    exclude: Globs = None,
) -> tuple[Path, list[Path]]:
    """The folder data.path, and the files in it that have one of these suffixes; the log tells of
    the others.

    Args:
        what: they are, for messages.
        also: of the files that have none of the suffixes, those that count all the same.
        known_by: how these are known, for messages.
        include, exclude: see chosen.

    Raises:
        UserError: where there is no folder, or no such file in it.
    """
    root, found = list_folder(path, f"data.path={path}")
    beside = beside_others(found)
    found = chosen(root, found, include, exclude)
    unnamed = [file for file in found if not file.name.lower().endswith(tuple(suffixes))]
    others = set(unnamed).difference(also([file for file in unnamed if file not in beside]))
    files = [file for file in found if file not in others]
    if not files:
        other = _reader_of(others)
        raise none_found(
            f"data.path={path}", what, suffixes, others, known_by, other and f"data={other}"
        )
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
            found.setdefault(numbers_as_0(text), []).append(f"{file}: {text}")
    for files in found.values():
        log.warning(
            f"{path}: {len(files)} of {len(odd)} files have an odd header, for one {files[0]}"
        )
