"""What is known of files from an earlier start, so that hundreds of thousands of them are not read
again to be named; and that what is decoded of a file later is what was hashed."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from data.library_warnings import heard
from data.threads import threads
from runtime.errors import UserError
from runtime.files import Damaged, locked, put_aside, read_sealed, sha256, write_sealed

FRESH = 2.0  # seconds; a file changed so recently can change again without its time showing it
KEPT_EVERY = 60.0  # seconds
AGAIN = "Nothing was kept of it: run the same command again, when nothing writes to it any more."

T = TypeVar("T")
Stamp = list[int]  # size in bytes; the later one of the times of change, in ns


class Changed(UserError):
    """A file has another content than it had when it was hashed. Never a reason to leave an image
    out: all ends with it."""


class FileCache:
    """Values of files, kept in a folder and found again by path, size and time of change (of
    content or attributes).

    All that it tells of a file is of one content: look_up raises Changed where a file has another
    one than it had for an earlier value, read_bytes and unchanged where it is not the one whose
    sha256 was told.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._sha256: dict[Path, str] = {}
        self._stores_of_sha256: set[Path] = set()
        self._stamps: dict[Path, Stamp] = {}  # of the content that something was told of
        self._hashed: dict[Path, tuple[int, ...]] = {}  # when they were found to have their sha256

    def look_up(
        self, paths: Sequence[Path], what: str, compute: Callable[[Path], Any]
    ) -> list[Any]:
        """[compute(path), ...], computed on threads for the files that are new or have changed.

        Args:
            what: names what compute computes, version included.
            compute: returns what JSON holds. None is not remembered: the next start tries again.

        Raises:
            UserError: where the system does not give a file out.
            Changed: where one changes while it is read, or has changed since an earlier value of it
                was told.
        """
        if not paths:
            return []
        real = _resolved(paths)
        root = os.path.commonpath({os.path.dirname(path) for path in real})
        key = hashlib.sha256(f"{what}\n{root}".encode(errors="surrogateescape")).hexdigest()[:16]
        store = self.folder / f"{key}.json"
        if compute is sha256:
            self._stores_of_sha256.add(store)
        stamps = [_opened(_stamp, path) for path in real]
        names = [path[len(root) :].lstrip("/") for path in real]
        known = self._read_store(store)
        missing = [k for k, name in enumerate(names) if known.get(name, [None])[0] != stamps[k]]
        started, kept, fresh = time.time(), time.monotonic(), {}
        # what libraries warn of is told of the image, when it is decoded
        with heard(), threads() as pool:
            computed = pool.map(lambda k: _opened(compute, paths[k]), missing)
            shown = tqdm(computed, f"reading {root}: {what}", len(missing), unit="file", delay=2)
            for k, value in zip(missing, shown):
                if _opened(_stamp, real[k]) != stamps[k]:
                    raise Changed(f"{paths[k]} changed while it was read. {AGAIN}")
                fresh[names[k]] = [stamps[k], value]
                # an interrupted start goes on from there
                if time.monotonic() - kept > KEPT_EVERY:
                    self._add(store, fresh, started)
                    kept = time.monotonic()
        if missing:
            self._add(store, fresh, started)
        self._check_same(paths, stamps)
        known |= fresh
        return [known[name][1] for name in names]

    def sha256(self, paths: Sequence[Path]) -> list[str]:
        digests = self.look_up(paths, "sha256", sha256)
        self._sha256.update(zip(paths, digests))
        return digests

    def read_bytes(self, path: Path) -> bytes:
        """The bytes that have the sha256 that was told.

        Raises:
            Changed: where there are others, or none any more.
        """
        data = _opened_again(Path.read_bytes, path)
        if hashlib.sha256(data).hexdigest() != self._sha256[path]:
            raise self._changed(path)
        return data

    @contextlib.contextmanager
    def unchanged(self, path: Path) -> Iterator[None]:
        """What is read of path inside, by whatever reads it, is of the content whose sha256 was
        told: for what is too large to be held twice. The file is hashed once, and its stamps are
        equal before and after.

        Raises:
            Changed: where it is not, also in place of what is raised inside.
        """
        before = _opened_again(whole_stamp, path)
        try:
            yield
        finally:
            same = False
            with contextlib.suppress(OSError):  # it is gone
                known = self._hashed.get(path) == before or sha256(path) == self._sha256[path]
                same = known and whole_stamp(path) == before
            if not same:
                raise self._changed(path)
            self._hashed[path] = before

    def note_reading(self, path: Path) -> None:
        """This file is about to be read by its own reader: what is told of it later has to be of
        the same content."""
        with contextlib.suppress(OSError):  # that reader says so
            self._check_same([path], [_stamp(path)])

    def _check_same(self, paths: Sequence[Path], stamps: Sequence[Stamp]) -> None:
        for path, stamp in zip(paths, stamps):
            if self._stamps.setdefault(path, stamp) != stamp:
                raise self._changed(path)

    def _changed(self, path: Path) -> Changed:
        """The hashes are forgotten: should the file's time not show its change, the next start
        would trust them again."""
        for store in self._stores_of_sha256:
            with contextlib.suppress(OSError):  # of a cache that may be read alone
                store.unlink(missing_ok=True)
        return Changed(f"{path} changed between being hashed and being decoded. {AGAIN}")

    def _read_store(self, store: Path) -> dict[str, Any]:
        """What a store holds; one that is damaged is put aside, and its files are read again."""
        try:
            return read_sealed(store)
        except FileNotFoundError:
            return {}
        except Damaged as error:
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                put_aside(store, str(error))
            return {}

    def _add(self, store: Path, entries: dict[str, Any], started: float) -> None:
        lasting = {
            name: [stamp, value]
            for name, (stamp, value) in entries.items()
            if value is not None and started - stamp[1] / 1e9 > FRESH
        }
        with locked(store.with_suffix(".lock")):
            write_sealed(store, self._read_store(store) | lasting)


def _resolved(paths: Sequence[Path]) -> list[str]:
    """Where they really lie. Folders are resolved once and not for each of their files: that is
    most of a second start's time."""
    real = cache(os.path.realpath)
    found = [os.path.join(real(folder), name) for folder, name in map(os.path.split, paths)]
    return [os.path.realpath(path) if os.path.islink(path) else path for path in found]


def _opened(compute: Callable[[Any], T], path: str | Path) -> T:
    """compute(path), with a message where the system does not give the file out: no permission, or
    a link to nothing."""
    try:
        return compute(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be opened ({error.strerror or error}). Mend it, or remove it from "
            "the folder."
        ) from error


def _opened_again(compute: Callable[[Path], T], path: Path) -> T:
    """compute(path) of a file that was hashed before."""
    try:
        return compute(path)
    except OSError as error:
        raise Changed(
            f"{path} cannot be opened any more, after it was hashed ({error.strerror or error}). "
            f"{AGAIN}"
        ) from error


def _stamp(path: str | Path) -> Stamp:
    stat = os.stat(path)
    return [stat.st_size, max(stat.st_mtime_ns, stat.st_ctime_ns)]


def whole_stamp(path: Path) -> tuple[int, ...]:
    """Other numbers than before where the file is another, or was written to."""
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
