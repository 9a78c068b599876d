"""What is known of files from an earlier start, so that hundreds of thousands of them are not read
again to be named; and that what is decoded of a file later is what was hashed."""

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
        self._closed: dict[Path, str] = {}  # why the system does not give them out

    def look_up(
        self, paths: Sequence[Path], what: str, compute: Callable[[Path], Any]
    ) -> list[Any]:
        """[compute(path), ...], computed on threads for the files that are new or have changed.

        Args:
            what: names what compute computes, version included.
            compute: returns what JSON holds. None is not remembered: the next start tries again.

        Returns:
            None of a file that the system does not give out; read_bytes and unchanged say why.
        Raises:
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
        for path in paths:
            self._closed.pop(path, None)
        stamps = [self._of_open(path, _stamp) for path in paths]
        names = [path[len(root) :].lstrip("/") for path in real]
        known = self._read_store(store)
        opened = [k for k, stamp in enumerate(stamps) if stamp]
        missing = [k for k in opened if known.get(names[k], [None])[0] != stamps[k]]
        started, kept, fresh = time.time(), time.monotonic(), {}
        # what libraries warn of is told of the image, when it is decoded
        with heard(), threads() as pool:
            computed = pool.map(lambda k: self._of_open(paths[k], compute), missing)
            shown = tqdm(computed, f"reading {root}: {what}", len(missing), unit="file", delay=2)
            for k, value in zip(missing, shown):
                if self._of_open(paths[k], _stamp) != stamps[k]:
                    raise Changed(f"{paths[k]} changed while it was read. {AGAIN}")
                fresh[names[k]] = [stamps[k], value]
                # an interrupted start goes on from there
                if time.monotonic() - kept > KEPT_EVERY:
                    self._add(store, fresh, started)
                    kept = time.monotonic()
        if missing:
            self._add(store, fresh, started)
        self._check_same([(paths[k], stamps[k]) for k in opened])
        known |= fresh
        return [known[name][1] if stamp else None for name, stamp in zip(names, stamps)]

    def digests(self, paths: Sequence[Path]) -> list[str | None]:
        """The sha256 of each; None of one that the system does not give out."""
        found = self.look_up(paths, "sha256", sha256)
        self._sha256.update({path: digest for path, digest in zip(paths, found) if digest})
        return found

    def sha256(self, paths: Sequence[Path]) -> list[str]:
        """Raises UserError, which names them all, where the system does not give some out."""
        digests = [digest for digest in self.digests(paths) if digest]
        if closed := [f"{p}: {self._closed[p]}" for p in paths if p in self._closed]:
            raise UserError("\n".join(closed) + ". Mend it, or remove it.")
        return digests

    def _of_open(self, path: Path, compute: Callable[[Path], T]) -> T | None:
        """compute(path). None where the system does not give the file out, as for want of a
        permission or of a link's target, which is noted."""
        try:
            return compute(path)
        except OSError as error:
            link = f", a link to {os.readlink(path)}" if path.is_symlink() else ""
            self._closed[path] = f"cannot be opened ({error.strerror or error}{link})"
            return None

    def _check_open(self, path: Path) -> None:
        if path in self._closed:
            raise UserError(self._closed[path])

    def read_bytes(self, path: Path) -> bytes:
        """The bytes that have the sha256 that was told.

        Raises:
            UserError: where the system has not given them out.
            Changed: where there are others, or none any more.
        """
        self._check_open(path)
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
            UserError: where the system has not given it out.
            Changed: where it is not, also in place of what is raised inside.
        """
        self._check_open(path)
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
            self._check_same([(path, _stamp(path))])

    def _check_same(self, stamps: Iterable[tuple[Path, Any]]) -> None:
        for path, stamp in stamps:
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


def _opened_again(compute: Callable[[Path], T], path: Path) -> T:
    """compute(path) of a file that was hashed before."""
    try:
        return compute(path)
    except OSError as error:
        raise Changed(
            f"{path} cannot be opened any more, after it was hashed ({error.strerror or error}). "
            f"{AGAIN}"
        ) from error


def _stamp(path: Path) -> Stamp:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):  # a pipe, which would never end
        raise OSError(errno.EINVAL, "no regular file")
    return [found.st_size, max(found.st_mtime_ns, found.st_ctime_ns)]


def whole_stamp(path: Path) -> tuple[int, ...]:
    """Other numbers than before where the file is another, or was written to."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
