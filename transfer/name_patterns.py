"""Globs on the names of a network."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from runtime.errors import UserError, near


def check_pattern(pattern: str, names: Sequence[str], where: str, kind: str = "parameter") -> None:
    """Raises UserError, with near names, where a glob matches none. kind: what they name."""
    if not any(fnmatchcase(name, pattern) for name in names):
        prefixes = {
            ".".join(name.split(".")[:depth])
            for name in names
            for depth in range(1, name.count(".") + 1)
        }
        raise UserError(
            f"{where}: {pattern} matches no {kind}; "
            f"{near(pattern.rstrip('.*'), prefixes | set(names))}"
        )
