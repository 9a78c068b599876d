"""A lock for file systems that have none: a file that says who holds it, and goes on changing as
long as that process lives."""

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import Busy, UserError

BEAT, GONE = 5.0, 30.0  # seconds between two changes; without one the holder is taken for dead
LOOK, SETTLE = 0.2, 1.0  # seconds between two looks; for two that take it over at once
log = logging.getLogger(__name__)
_told = set[str]()


@contextlib.contextmanager
def lock_file(path: Path, why: str, busy: str | None) -> Iterator[None]:
    """Holds path.

    Args:
        why: the system has no lock.
        busy: what to say where another process holds it; None waits for it.
    Raises:
        Busy: with busy and the holder.
    """
    if why not in _told:
        _told.add(why)
        log.warning(
            f"the file system of {path.parent} has no locks ({why}): files such as {path.name}, "
            "with host, process and heartbeat, stand for them"
        )
    me = f"process {os.getpid()} on {socket.gethostname()}, {uuid.uuid4().hex[:8]}"
    _take(path, me, busy)
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(path, me, ended), daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        if _read(path).startswith(me):
            path.unlink(missing_ok=True)


def _take(path: Path, me: str, busy: str | None) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    while not _created(path, me):
        before = _read(path)
        holder = before.partition("\n")[0]
        if _changes(path, before):
            if busy and holder and _read(path).startswith(holder):
                raise Busy(f"{busy} ({path}: held by {holder}.)")
        elif _read(path) == before:
            log.info(f"{path}: {holder} is gone, and this process takes its place")
            aside.write_text(f"{me}\n")
            os.replace(aside, path)
            time.sleep(SETTLE)  # should two take it over, the later one has it
            if _read(path).startswith(me):
                return


def _created(path: Path, me: str) -> bool:
    try:
        with open(path, "x") as file:
            file.write(f"{me}\n")
        return True
    except FileExistsError:
        return False
    except OSError as error:
        raise UserError(
            f"{path}: the file system has no locks, and the file that stands for one cannot be "
            f"written ({error.strerror}). Choose another place: run.root and run.cache of "
            "train.py, out and cache of evaluate.py."
        ) from error


def _read(path: Path) -> str:
    """What it says; nothing where it is gone."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _changes(path: Path, before: str) -> bool:
    """Waits until it says another thing, at most for as long as a living holder needs."""
    end = time.monotonic() + GONE
    while time.monotonic() < end:
        if _read(path) != before:
            return True
        time.sleep(LOOK)
    return False


def _beat(path: Path, me: str, ended: threading.Event) -> None:
    count = 0
    while not ended.wait(BEAT):
        count += 1
        if not _read(path).startswith(me):
            log.error(
                f"{path} was taken over by another process while this one stood still: one of "
                "them has to be stopped"
            )
            return
        with contextlib.suppress(OSError), open(path, "r+") as file:  # a full disk, for a moment
            file.write(f"{me}\n{count}\n")
