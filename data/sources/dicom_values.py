"""Values of DICOM tags, one or several, that may be empty, cut or no numbers."""

import math
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue


def values(about: Dataset, tag: str | int) -> list[Any]:
    if tag not in about:
        return []
    try:
        value = about[tag].value
    except Exception:  # a text that is not of the type of its tag
        value = about.get_item(tag).value
    if isinstance(value, bytes):
        if about.get_item(tag).VR in ("OB", "OW", "UN"):
            return [int.from_bytes(value, "little" if about.original_encoding[1] else "big")]
        value = value.decode("latin-1").split("\\")
    several = isinstance(value, (list, tuple, MultiValue))
    return list(value) if several else [] if value is None else [value]


def text(about: Dataset, tag: str) -> str:
    """Without spaces around it; "" where there is none."""
    return str(about.get(tag) or "").strip()


def numbers(about: Dataset, tag: str | int) -> list[float | None]:
    """None in the place of each that is empty, no number, or not finite."""

    def finite(value: Any) -> float | None:
        try:
            found = float(str(value).strip("\0 ").replace(",", "."))
        except ValueError:
            return None
        return found if math.isfinite(found) else None

    return [finite(value) for value in values(about, tag)]


def number(about: Dataset, tag: str | int) -> float | None:
    return next(iter(numbers(about, tag)), None)


def whole(about: Dataset, tag: str | int) -> int | None:
    found = number(about, tag)
    return None if found is None else int(found)
