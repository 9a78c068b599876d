"""Numbers as text: as many digits as the interval allows, and no more than a reader wants."""

import math
from collections.abc import Sequence

MISSING = "-"
ROUNDING = 1e-12  # what is nearer to 0 is 0


def decimals(value: float, low: float | None, high: float | None) -> int:
    """Digits after the point: two of the interval's half, but at least two and at most four of the
    value; three without an interval."""
    size = abs(value)
    if low is None or high is None or high - low <= 1e-9 * size:
        return after_point(size, 3)
    fine = after_point((high - low) / 2, 2)
    return fine if size < ROUNDING else max(min(fine, after_point(size, 4)), after_point(size, 2))


def after_point(size: float, digits: int) -> int:
    """Where the first digits of a number end, at most 8 places after the point."""
    return min(8, max(0, digits - 1 - math.floor(math.log10(size)))) if size >= ROUNDING else 0


def number(
    value: float | None, low: float | None = None, high: float | None = None, signed: bool = False
) -> str:
    return MISSING if value is None else written(value, decimals(value, low, high), signed)


def interval(value: float, low: float | None, high: float | None, signed: bool = False) -> str:
    """[low, high], "" where it is not known. With more digits where an end would read as 0 and is
    not: whether 0 lies inside is shown."""
    if low is None or high is None:
        return ""
    digits = decimals(value, low, high)
    while digits < 8 and any(
        abs(end) >= ROUNDING and not round(end, digits) for end in (low, high)
    ):
        digits += 1
    return f"[{written(low, digits, signed)}, {written(high, digits, signed)}]"


def written(value: float, digits: int, signed: bool) -> str:
    return f"{value:{'+' if signed and value else ''}.{digits}f}"


def counted(n: int, unit: str = "seed") -> str:
    return f"{n} {unit}s" if n > 1 else f"one {unit}"


def join_names(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def as_sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
