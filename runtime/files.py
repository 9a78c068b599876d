"""Files that are whole or absent, whenever the process is killed. Everything that a run keeps is
written through here, and what is read again is checked here: damage is told by one message that
names the file, and what can be made anew is put aside first."""

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import PLACE, Busy, UserError
from runtime.lock_file import lock_file

SEAL = b'\n"sha256 of the rest": "'  # the last key of a sealed JSON, of all bytes before it
# what a file system says that does not know a call
CANNOT = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.ENOTTY}
DIGEST = hashlib.sha256().digest_size  # bytes, at the end of a checked file
log = logging.getLogger(__name__)

# the names below which something is written or removed: .NAME.PID and the like
ASIDE = re.compile(r"\..+\.(\d+|removed|replaced)")


class Damaged(UserError):
    """A file is not what was written."""


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(fd: int) -> None:
    """Makes a file, or the names in a directory, durable, as far as the file system can."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in CANNOT:
            raise


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        sync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes) -> None:
    """Creates path with data, on the disk when this returns."""
    with open(path, "wb") as file:
        write_all(file.fileno(), data)
        sync(file.fileno())


def write_all(fd: int, data: bytes) -> None:
    """os.write may stop short, as it does where the disk fills up."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


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


def write_directory(path: Path, contents: dict[str, bytes], cure: str = "") -> None:
    """Creates the directory path with these files, by NAME or FOLDER/NAME: it appears with all of
    them or not at all. One that is there is replaced; a kill between the two renames leaves it to
    remove_leftovers to put the old one back. cure: see raise_if_full."""
    replaced = path.with_name(f".{path.name}.replaced")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    discard(aside)
    make_directory(aside)
    try:
        for name, data in contents.items():
            (aside / name).parent.mkdir(exist_ok=True)
            write_durably(aside / name, data)
        for folder in {(aside / name).parent for name in contents} | {aside}:
            sync_directory(folder)
        if path.exists():
            discard(replaced)
            os.replace(path, replaced)
        os.replace(aside, path)
    except OSError as error:
        discard(aside)
        raise_if_full(error, path, cure)
        raise
    sync_directory(path.parent)
    discard(replaced)


def make_directory(path: Path) -> None:
    """With what is above it, where it is not there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # what is above it is there, or was made
        raise UserError(f"{path}: no directory can be made there. {PLACE}") from error


def discard(directory: Path) -> None:
    """Deletes what can be deleted of it, where it is there."""
    shutil.rmtree(directory, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Deletes a directory so that no half of it is ever seen under its name."""
    aside = path.with_name(f".{path.name}.removed")
    discard(aside)
    os.replace(path, aside)
    discard(aside)


def remove_leftovers(parent: Path) -> None:
    """Deletes what a killed process left aside, and nothing else: a user may name any folder as
    run.directory. Only under the lock of the run that owns parent."""
    for path in parent.glob(".*"):
        if not ASIDE.fullmatch(path.name):
            continue
        whole = parent / path.name[1:].rpartition(".")[0]
        if path.suffix == ".replaced" and not whole.exists():
            os.replace(path, whole)
        elif path.is_dir():
            discard(path)
        else:
            path.unlink(missing_ok=True)


def put_aside(path: Path, why: str) -> None:
    """Moves what is damaged out of the way and says so: it is made anew."""
    aside = path.with_name(f"{path.name}.damaged")
    os.replace(path, aside)
    log.warning(f"{why}; it is put aside as {aside.name} and made anew")


def write_checked(path: Path, data: bytes) -> None:
    """Of a cache: data, and its sha256 behind it."""
    write_atomically(path, data + hashlib.sha256(data).digest())


def read_checked(path: Path) -> bytes | None:
    """What write_checked wrote. None where it is not there, or damaged, and then put aside: it has
    to be made."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    data, digest = content[:-DIGEST], content[-DIGEST:]
    if hashlib.sha256(data).digest() == digest:
        return data
    put_aside(path, f"{path} is damaged, or of an earlier version: it does not end with its sha256")
    return None


def read_json(path: Path, mend: str = "", kind: type = dict, keys: Collection[str] = ()) -> Any:
    """What a JSON file holds.

    Args:
        mend: the way to mend it, for the message.
        kind: what it must hold, and at least with these keys.
    Raises:
        Damaged: where it holds anything else.
    """
    return _parsed(path, path.read_bytes(), mend, kind, keys)


def _parsed(path: Path, data: bytes, mend: str, kind: type, keys: Collection[str]) -> Any:
    try:
        found: Any = json.loads(data.decode())
    except (ValueError, RecursionError) as error:  # of JSON, or of the encoding
        raise _damaged(path, error, mend) from error
    if not issubclass(type(found), kind):
        raise _damaged(
            path, f"it holds a {type(found).__name__}, and a {kind.__name__} belongs there", mend
        )
    if lacking := [key for key in keys if key not in found]:
        raise _damaged(path, f"it lacks {', '.join(lacking)}", mend)
    return found


def _damaged(path: Path, why: object, mend: str) -> Damaged:
    return Damaged(f"{path} is damaged ({why})" + (f": {mend}" if mend else ""))


def write_sealed(path: Path, content: dict[str, Any], indent: int | None = None) -> None:
    """A JSON object whose last key is the sha256 of the rest."""
    body = json.dumps(content, indent=indent).removesuffix("}").rstrip().encode() + (
        b"," if content else b""
    )
    write_atomically(path, body + SEAL + hashlib.sha256(body).hexdigest().encode() + b'"}\n')


def read_sealed(
    path: Path, mend: str = "", keys: Collection[str] = (), unsealed: bool = False
) -> dict[str, Any]:
    """What write_sealed wrote, with at least these keys.

    Args:
        mend: the way to mend it, for the message.
        unsealed: a JSON object of an earlier version, without a seal, is taken as it is.
    Raises:
        Damaged: where it holds anything else.
    """
    data = path.read_bytes()
    body, seal, digest = data.rpartition(SEAL)
    if not seal:
        if unsealed:
            return _parsed(path, data, mend, dict, keys)
        raise _damaged(path, "or of an earlier version: it does not end with its sha256", mend)
    if digest != hashlib.sha256(body).hexdigest().encode() + b'"}\n':
        raise _damaged(path, "its content does not have the sha256 that it says", mend)
    return _parsed(path, body.removesuffix(b",") + b"}", mend, dict, keys)


def raise_if_full(error: OSError, path: Path, cure: str = "") -> None:
    """One message, and any other error has the name of the file, which a write does not know.

    Args:
        cure: another one than to free some space.
    """
    why = usual = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        why, usual = "the disk is full", f"Free some space{cure and f' (or {cure})'}"
    elif error.errno == errno.EFBIG:
        why, usual = "files may not be as large here", "Raise the limit (ulimit -f)"
    if why:
        raise UserError(
            f"{why}: {path} was not written, and what was there is unharmed. {usual} and run the "
            "same command again."
        ) from error
    if error.filename is None:
        error.filename = str(path)


@contextlib.contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[None]:
    """Holds an exclusive lock on path, which the system drops when the process dies. Where the file
    system has no locks, a file beside path stands for it.

    Args:
        busy: what to say where another process holds it; None waits for it.
    Raises:
        Busy: with busy.
    """
    make_directory(path.parent)
    with open(path, "a") as file, contextlib.ExitStack() as instead:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise Busy(busy) from None
        except OSError as error:
            if error.errno not in CANNOT | {errno.ENOLCK}:
                raise
            held = path.with_name(f"{path.name}.held")
            instead.enter_context(lock_file(held, str(error.strerror), busy))
        yield


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    write_atomically(path, buffer.getvalue())
