"""Whose the images of an .npz are: a patient's are not drawn into two splits."""

import re
from collections.abc import Hashable
from pathlib import Path

from data.sources.npz_content import Header, read_array
from data.sources.npz_keys import Keys

# a "group" may be an arm of a trial
KEYS = r"(train_)?(patient|subject|person|study|case|donor)(s|_?ids?)?(_train)?"


def find_owners(headers: dict[str, Header], keys: Keys) -> str | None:
    """The array that names a patient, subject or the like for each of the images to train on."""
    count = headers[keys["train"][0]].shape[0]
    used = {key for pair in keys.values() for key in pair}
    for key, (shape, dtype) in headers.items():
        one_each = shape in ((count,), (count, 1)) and not dtype.hasobject
        if one_each and key not in used and re.fullmatch(KEYS, key, re.IGNORECASE):
            return key
    return None


def read_owners(path: Path, key: str) -> list[Hashable]:
    """For each image to train on, what is the same for all that are of one patient; an image of
    nobody ("", NaN) stands for itself. [] where they are all of one, or each of another."""
    values = read_array(path, key).ravel().tolist()
    owners: list[Hashable] = [
        item if value in ("", b"") or value != value else (key, value)
        for item, value in enumerate(values)
    ]
    return owners if 1 < len(set(owners)) < len(owners) else []
