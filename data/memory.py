"""What is known of files from an earlier start, so that hundreds of thousands of them are not read again to be named."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from runtime.errors import UserError
from runtime.files import locked, sha256, write_atomically

FRESH = 2.0  # seconds; a file changed so recently can change again without its time of change showing it
KEPT_EVERY = 60.0  # seconds


class Memory:
    """Values of files, kept in a folder and found again by path, size and time of change (of content or attributes)."""

    def __init__(self, folder: Path):
        self.folder = folder

    def of(self, paths: Sequence[Path], what: str, compute: Callable[[Path], Any]) -> list[Any]:
        """[compute(path), ...], computed on threads for those files that are new or have changed since. compute returns what JSON
        holds; what it computes, version included, is named by `what`. None is not remembered: the next start tries again."""
        if not paths:
            return []
        real = _resolved(paths)
        root = os.path.commonpath({os.path.dirname(path) for path in real})
        key = hashlib.sha256(f"{what}\n{root}".encode(errors="surrogateescape")).hexdigest()[:16]
        store, stamps = self.folder / f"{key}.json", list(map(_told(_stamp), real))
        names = [path[len(root):].lstrip("/") for path in real]
        known = json.loads(store.read_text()) if store.exists() else {}
        missing = [k for k, (name, stamp) in enumerate(zip(names, stamps, strict=True)) if known.get(name, [None])[0] != stamp]
        if missing:
            started, kept, fresh = time.time(), time.monotonic(), {}
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                computed = tqdm(pool.map(_told(compute), [paths[k] for k in missing]), desc=f"reading {root}: {what}", unit="file",
                                total=len(missing), delay=2)
                for k, value in zip(missing, computed, strict=True):
                    fresh[names[k]] = [stamps[k], value]
                    if time.monotonic() - kept > KEPT_EVERY:  # a start that is interrupted goes on from there
                        self._add(store, fresh, started)
                        kept = time.monotonic()
            self._add(store, fresh, started)
            known = known | fresh
        return [known[name][1] for name in names]

    def sha256(self, paths: Sequence[Path]) -> list[str]:
        return self.of(paths, "sha256", sha256)

    def _add(self, store: Path, entries: dict[str, Any], started: float) -> None:
        lasting = {name: entry for name, entry in entries.items() if entry[1] is not None and started - entry[0][1] / 1e9 > FRESH}
        with locked(store.with_suffix(".lock")):
            known = json.loads(store.read_text()) if store.exists() else {}
            write_atomically(store, json.dumps(known | lasting))


def _resolved(paths: Sequence[Path]) -> list[str]:
    """Where they really lie. Folders are resolved once and not for each of their files: that is most of a second start's time."""
    folders = {folder: os.path.realpath(folder) for folder in {os.path.dirname(path) for path in paths}}
    found = [os.path.join(folders[os.path.dirname(path)], os.path.basename(path)) for path in paths]
    return [os.path.realpath(path) if os.path.islink(path) else path for path in found]


def _told(compute: Callable) -> Callable:
    """compute, with a message where the system does not give the file out: no permission, or a link to nothing."""

    def told(path):
        try:
            return compute(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be opened ({error.strerror or error}). Mend it, or remove it from the folder.") from error

    return told


def _stamp(path: str) -> list[int]:
    stat = os.stat(path)
    return [stat.st_size, max(stat.st_mtime_ns, stat.st_ctime_ns)]
