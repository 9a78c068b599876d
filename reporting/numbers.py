"""Numbers as text: as many digits as the interval allows, and no more than a reader wants."""

from __future__ import annotations

import math

MISSING = "-"


def decimals(value: float, low: float | None = None, high: float | None = None) -> int:
    """Digits after the point: two of the interval's half, but at least two and at most four of the value; three of it without one."""
    def shown(size: float, digits: int) -> int:
        return max(0, digits - 1 - math.floor(math.log10(size))) if size > 1e-12 else 0

    if low is None or high is None:
        return min(8, shown(abs(value), 3))
    return min(8, max(min(shown((high - low) / 2, 2), shown(abs(value), 4)), shown(abs(value), 2)) if abs(value) > 1e-12
               else shown((high - low) / 2, 2))


def number(value: float | None, low: float | None = None, high: float | None = None, signed: bool = False) -> str:
    if value is None:
        return MISSING
    return f"{value:{'+' if signed else ''}.{decimals(value, low, high)}f}"


def interval(value: float, low: float | None, high: float | None, signed: bool = False) -> str:
    """[low, high], "" where it is not known."""
    if low is None or high is None:
        return ""
    digits = f"{'+' if signed else ''}.{decimals(value, low, high)}f"
    return f"[{low:{digits}}, {high:{digits}}]"


def share(value: float) -> str:
    return f"{100 * value:.3g}%"


def count(value: float) -> str:
    return f"{value:,.0f}"


def rate(value: float) -> str:
    return f"{value:.3g}"
