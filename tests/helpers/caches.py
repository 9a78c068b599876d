"""Caches of decoded images for tests that share one."""

from __future__ import annotations

import tempfile
from pathlib import Path

from data.file_cache import FileCache

_held = []  # a folder is removed with its object, at the end of the process


def new_cache() -> FileCache:
    _held.append(tempfile.TemporaryDirectory())
    return FileCache(Path(_held[-1].name))
