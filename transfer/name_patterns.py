"""Globs on the names of a network."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from itertools import accumulate

from runtime.errors import UserError, near


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name matches one of some globs."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def checked_matches(
    patterns: Sequence[str], names: Collection[str], where: str, kind: str = "parameter"
) -> list[str]:
    """The names that match one of some globs, in their own order. kind: what they name. Raises
    UserError, with near names, where a glob matches none."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            known = set(names)
            for name in names:
                known.update(accumulate(name.split("."), "{}.{}".format))
            raise UserError(
                f"{where}: {pattern} matches no {kind}; {near(pattern.rstrip('.*'), known)}"
            )
    return [name for name in names if matches(name, patterns)]
