"""Files that are whole or absent, whenever the process is killed. Everything that a run keeps is written through here."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import UserError

ASIDE = re.compile(r"\..+\.(\d+|removed|replaced)")  # the names below which something is written or removed: .NAME.PID and the like


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes) -> None:
    """Creates path with data, on the disk when this returns."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """os.write may stop short, as it does where the disk fills up."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replaces path by data: a reader sees the old file or the new one, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_durably(aside, data.encode() if isinstance(data, str) else data)
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise_if_full(error, path)
        raise
    sync_directory(path.parent)


def write_directory(path: Path, contents: dict[str, bytes]) -> None:
    """Creates the directory path with these files: it appears with all of them or not at all. One that is there is replaced; a
    kill between the two renames leaves it to remove_leftovers to put the old one back."""
    replaced = path.with_name(f".{path.name}.replaced")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        for name, data in contents.items():
            write_durably(aside / name, data)
        sync_directory(aside)
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(path, replaced)
        os.replace(aside, path)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise_if_full(error, path)
        raise
    sync_directory(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Deletes a directory so that no half of it is ever seen under its name."""
    aside = path.with_name(f".{path.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(parent: Path) -> None:
    """Deletes what a killed process left aside, and nothing else: a user may name any folder as run.directory. Only under the
    lock of the run that owns parent."""
    for path in parent.glob(".*"):
        if not ASIDE.fullmatch(path.name):
            continue
        whole = parent / path.name[1:].rpartition(".")[0]
        if path.suffix == ".replaced" and not whole.exists():
            os.replace(path, whole)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def raise_if_full(error: OSError, path: Path) -> None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise UserError(f"the disk is full: {path} was not written, and what was there is unharmed. Free some space "
                        "(or set run.keep_last lower) and run the same command again.") from error


@contextlib.contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[None]:
    """Holds an exclusive lock on path, which the system drops when the process dies. busy: what to say where another process
    holds it; None waits for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise UserError(busy) from None
        yield
