"""Globs on the names of a network."""

import fnmatch
from collections.abc import Collection, Sequence
from itertools import accumulate

from runtime.errors import UserError, near


def checked_matches(
    patterns: Sequence[str], names: Collection[str], where: str, kind: str = "parameter"
) -> list[str]:
    """The names that match one of some globs, in their own order.

    Args:
        kind: what they name, for messages.
    Raises:
        UserError: with near names, where a glob matches none.
    """
    found: set[str] = set()
    for pattern in patterns:
        if not (matched := fnmatch.filter(names, pattern)):
            known = {part for name in names for part in accumulate(name.split("."), "{}.{}".format)}
            raise UserError(
                f"{where}: {pattern} matches no {kind}; {near(pattern.rstrip('.*'), known)}"
            )
        found.update(matched)
    return [name for name in names if name in found]
