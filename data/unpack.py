"""Published archives of images: what belongs out of one lies in its folder whole, or not at all."""

import gzip
import logging
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from runtime import download
from runtime.errors import UserError
from runtime.files import discard, raise_if_full, sync_directory

DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError, zipfile.BadZipFile)
AGAIN = "Remove it, and the same command fetches the official one."
log = logging.getLogger("data")


def unpack(
    archive: Path, folder: Path, place: Callable[[str], str | None], count: int, instead: str
) -> None:
    """Makes folder of an archive, once for all processes that want it. An archive that is not there
    is fetched and, when it is unpacked, removed; one that was there is the user's and stays. A
    folder without any file that counts is put aside.

    Args:
        place: by the name of a file in the archive, where below folder it goes, and None for one
            that does not count: nothing is written where an archive says. In the archive, too, what
            counts lies below a folder of folder's name.
        count: files that count.
        instead: see runtime.download.fetch.
    Raises:
        UserError: where the archive cannot be had, is damaged or another one, or the folder cannot
            be written.
    """
    try:
        with download.alone(folder):
            if not _is_made(folder, place):  # else another process was faster
                fetched = _bring(archive, instead)
                _make(folder, archive, place, count)
                if fetched:
                    archive.unlink()
    except OSError as error:
        raise_if_full(error, folder)
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}): name another folder than "
            f"{folder.parent}."
        ) from error


def _is_made(folder: Path, place: Callable[[str], str | None]) -> bool:
    """Whether a file that counts is there. All are, then: folder gets its name with all of them."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return any(place(path.relative_to(folder.parent).as_posix()) for path in files)


def _bring(archive: Path, instead: str) -> bool:
    """Whether it had to be fetched; one that was there is compared with what is published of it."""
    if not archive.is_file():
        download.fetch(archive.name, archive, instead)
        return True
    if known := download.published().get(archive.name):
        try:
            known.check(archive)
        except UserError as error:
            raise UserError(f"{error} {AGAIN}") from error
    return False


def _make(folder: Path, archive: Path, place: Callable[[str], str | None], count: int) -> None:
    aside = folder.with_name(f".{folder.name}.unpacking")
    discard(aside)  # of a process that was killed
    log.info("%s: unpacking it to %s", archive, folder)
    try:
        written = _write_files(aside, archive, place)
        if written != count:
            raise UserError(
                f"{archive} holds {written:,} of the {count:,} files that belong in it: it is "
                f"another archive. {AGAIN}"
            )
        os.sync()  # once for all: thousands of small files, each by itself, take minutes
        if folder.is_dir() and any(folder.iterdir()):  # of nothing that counts
            before = folder.with_name(f"{folder.name}.before_{os.getpid()}")
            os.replace(folder, before)
            log.warning("%s: what was there is put aside as %s", folder, before.name)
        os.replace(aside, folder)
        sync_directory(folder.parent)
    except DAMAGE as error:
        raise UserError(f"{archive} is damaged ({error}). {AGAIN}") from error
    finally:
        discard(aside)


def _write_files(folder: Path, archive: Path, place: Callable[[str], str | None]) -> int:
    """Returns how many files were written."""
    written = set()
    for name, content in _files(archive):
        if inside := place(name):
            path = folder / inside
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
            written.add(path)
    return len(written)


def _files(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The name and the content of each file, in the archive's order: a .tar.gz is read once. Links,
    folders and devices are no files."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                if not (entry.is_dir() or stat.S_ISLNK(entry.external_attr >> 16)):
                    with opened.open(entry) as content:
                        yield entry.filename, content
        return
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if member.isreg() and (file := tar.extractfile(member)):
                yield member.name, file
