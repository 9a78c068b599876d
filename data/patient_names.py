"""Whose image a file is, by its name."""

import re
from collections.abc import Sequence
from typing import Any

from runtime.errors import UserError


def find_patients(pattern: str, names: Sequence[str]) -> list[str]:
    """For each path, what the regular expression finds in it: its first group, or all that it
    matches.

    Raises:
        UserError: where it is none, or finds nothing in a path.
    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.patient={pattern}: not a regular expression ({error}).") from error
    group = min(regex.groups, 1)
    found: list[Any] = [match and match[group] for match in map(regex.search, names)]
    if without := [name for name, patient in zip(names, found) if patient is None]:
        matched = "none" if len(without) == len(names) else "not all"
        raise UserError(
            f"data.patient={pattern} matches {matched} of the paths: {len(without)} of "
            f"{len(names)} are without, such as {without[0]}. It is searched in the path below "
            "data.path, and its first group names the patient."
        )
    return found
