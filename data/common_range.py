"""One range of values for all files of a set, which none of them decides alone."""

import logging
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from data.intensity import LowHigh, fences, hull, value_apart, value_range
from runtime.errors import UserError

DIM = 8  # a file that fills less than an eighth of the range has less than 32 levels
GAP = 32  # [0, 1] beside [0, 255]: widths of one unit, however bright, do not leave such a gap
K = TypeVar("K")
log = logging.getLogger("data")


class OwnRange(NamedTuple):
    """Of one image of a file.

    Attributes:
        kind: the type that its numbers are stored in, such as uint16.
        padding: a value that was taken for none, though the file does not say so.
        apart: see intensity.value_apart.
    """

    low: float
    high: float
    kind: str
    padding: float | None = None
    apart: Sequence[float] = ()

    @classmethod
    def of(cls, values: np.ndarray, kind: str, padding: float | None = None) -> "OwnRange":
        return cls(*value_range(values), kind, padding, value_apart(values))

    @property
    def floats(self) -> bool:
        return self.kind.startswith("float")


class CommonRange(NamedTuple):
    """
    Attributes:
        n: of how many files it is.
        plain: the range that holds those of all these files, near or far.
    """

    low: float
    high: float
    n: int
    plain: LowHigh


class Apart(NamedTuple):
    """A value of many pixels that leaves few levels to all others.

    Attributes:
        low, high: the range of the others.
        share: of the pixels of the files that have it.
    """

    low: float
    high: float
    value: float
    share: float
    files: Sequence[Path]


Measured = Mapping[Path, Sequence[OwnRange]]  # of each file its images


def of_cache(measured: Mapping[Path, Any]) -> Measured:
    """From what FileCache remembers; without the files that have no range."""
    return {
        path: [OwnRange(*each) for each in ranges] for path, ranges in measured.items() if ranges
    }


def by_band(measured: Measured) -> list[Measured]:
    """Of files whose images are bands, as many in each."""
    bands = range(len(next(iter(measured.values()))))
    return [{path: [ranges[k]] for path, ranges in measured.items()} for k in bands]


def find_common_range(
    name: str, measured: Measured, trained: Collection[Path], way_out: str
) -> CommonRange:
    """
    Args:
        name: of the set, for messages.
        measured: one file at least.
        trained: the files that count for it; where none of them is measured, all do.
        way_out: the settings that choose a range, for messages.

    Raises:
        UserError: for integers beside floats.
    """
    _check_kinds(name, measured, way_out)
    found, limits = _common_range(measured, trained)
    shown = f"{found.low:g} .. {found.high:g}"
    _tell_of_padding(name, measured)
    warn_of_apart(name, [measured], trained, way_out)
    _warn_of_far(name, measured, _far_files(measured, limits), shown, way_out)
    _warn_of_dim(name, measured, found, way_out)
    return found


def find_ranges_of_bands(
    name: str, measured: Measured, trained: Collection[Path], way_out: str
) -> list[CommonRange]:
    """As find_common_range, of files whose images are bands, as many in each, each of which has a
    range of its own. Little contrast in some is in the nature of bands."""
    _check_kinds(name, measured, way_out)
    each_band = by_band(measured)
    found = [_common_range(band, trained) for band in each_band]
    far: dict[Path, LowHigh] = {}
    for band, (_, limits) in zip(each_band, found):
        far |= _far_files(band, limits)
    warn_of_apart(name, each_band, trained, way_out)
    _warn_of_far(name, measured, far, "of a band", way_out)
    return [common for common, _ in found]


def _common_range(measured: Measured, trained: Collection[Path]) -> tuple[CommonRange, LowHigh]:
    """And beyond which values a file lies far."""
    counted = [path for path in measured if path in trained] or list(measured)
    ranges = [(each.low, each.high) for path in counted for each in measured[path]]
    wide = [each for each in ranges if each[0] < each[1]] or ranges  # not those of one value
    lowest, highest = fences(wide)
    near = [each for each in wide if lowest <= each[0] and each[1] <= highest]
    paddings = [each.padding for path in counted for each in measured[path]]
    plain = hull([*ranges, *((each, each) for each in paddings if each is not None)])
    return CommonRange(*hull(near or wide), len(counted), plain), (lowest, highest)


def _find_apart(measured: Measured, trained: Collection[Path]) -> Apart | None:
    values = Counter(each.apart[0] for ranges in measured.values() for each in ranges if each.apart)
    value = max(values, key=values.__getitem__, default=math.nan)
    shares: dict[Path, float] = {}
    others: dict[Path, list[OwnRange]] = {}
    for path, ranges in measured.items():
        for each in ranges:
            if value in each.apart[:1]:
                _, shares[path], low, high = each.apart
                others.setdefault(path, []).append(OwnRange(low, high, each.kind))
            elif value not in (each.low, each.high):  # else it holds little or nothing beside it
                others.setdefault(path, []).append(each)
    (black, white, *_), _ = _common_range(measured, trained)
    if not black <= value <= white:  # of none, or of few files, which are named as far
        return None
    (low, high, *_), _ = _common_range(others, trained)
    far = max(low - value, value - high) > high - low
    return Apart(low, high, value, float(np.mean([*shares.values()])), [*shares]) if far else None


def _far_files(measured: Measured, limits: LowHigh) -> dict[Path, LowHigh]:
    hulls = {path: _hull(ranges) for path, ranges in measured.items()}
    return {p: (a, b) for p, (a, b) in hulls.items() if a < limits[0] or limits[1] < b}


def warn_of_apart(
    name: str, bands: Sequence[Measured], trained: Collection[Path], way_out: str
) -> None:
    """Of a value that seems to stand for none and is not declared: nothing but the files can say
    whether it does."""
    found = [_find_apart(band, trained) for band in bands]
    if not (first := next(filter(None, found), None)):
        return
    each_band = [each or _common_range(band, trained)[0] for each, band in zip(found, bands)]
    low, high = hull((each.low, each.high) for each in each_band)
    setting = way_out.split()[0].removesuffix(",")
    setting = setting.replace("LOW,HIGH", f"{low:g},{high:g}")
    setting = setting.replace("CENTER,WIDTH", f"{(low + high) / 2:g},{high - low:g}")
    log.warning(
        f"{name}: {first.share:.1%} of the pixels in {len(first.files)} of {len(bands[0])} files, "
        f"for one {first.files[0]}, have the value {first.value:g}, far from all others, "
        f"{first.low:g} .. {first.high:g}, to which it leaves few levels. If it stands for no "
        f"value, declare that in the files, or choose: {setting}."
    )


def _hull(ranges: Sequence[OwnRange]) -> LowHigh:
    return hull((each.low, each.high) for each in ranges)


def _check_kinds(name: str, measured: Measured, way_out: str) -> None:
    """Floats may be of any unit, such as shares of 1, where integers are counts."""
    firsts: dict[bool, tuple[Path, str]] = {}
    for path, ranges in measured.items():
        firsts.setdefault(ranges[0].floats, (path, ranges[0].kind))
    if len(firsts) > 1:
        floats = [path for path, ranges in measured.items() if ranges[0].floats]
        (integer, kind), (float_, float_kind) = firsts[False], firsts[True]
        raise UserError(
            f"{name}: {len(measured) - len(floats)} files hold integers, such as {integer} "
            f"({kind}), and {len(floats)} floats, such as {float_} ({float_kind}), so they have no "
            f"range in common. Save them in one type, or take one out; {way_out}."
        )


def _tell_of_padding(name: str, measured: Measured) -> None:
    found = {p: each.padding for p, ranges in measured.items() for each in ranges if each.padding}
    if found:
        path, value = next(iter(found.items()))
        log.info(
            f"{name}: {len(found)} of {len(measured)} files do not say that a value stands for "
            f"none, which is taken for that: it is black and counts for no range; for one {path} "
            f"({value:g})"
        )


def _warn_of_far(
    name: str, measured: Measured, far: Mapping[Path, LowHigh], shown: str, way_out: str
) -> None:
    """shown: the range."""
    if far:
        path, (low, high) = next(iter(far.items()))
        log.warning(
            f"{name}: the values of {len(far)} of {len(measured)} files lie far from those of the "
            f"others, for one {path} ({low:g} .. {high:g}). They do not count for the range "
            f"{shown} and are cut off there. Take them out, or choose: {way_out}."
        )


def _warn_of_dim(name: str, measured: Measured, found: CommonRange, way_out: str) -> None:
    hulls = {path: _hull(ranges) for path, ranges in measured.items()}
    if told := tell_dim(hulls, (found.low, found.high), "files"):
        log.warning(f"{name}: {told}. Choose: {way_out}.")


def tell_dim(hulls: Mapping[Any, LowHigh], black_white: LowHigh, what: str) -> str:
    """Which have so little contrast in this range that they are perhaps of another unit; "" where
    few have.

    Args:
        hulls: the values of each, by its name.
        what: they are, for the message.
    """
    black, white = black_white
    dim = [k for k, (low, high) in hulls.items() if high - low < (white - black) / DIM]
    if len(dim) <= len(hulls) / 4:
        dim = in_smaller_unit(hulls)
    if not dim:
        return ""
    low, high = hulls[dim[0]]
    return (
        f"{len(dim)} of {len(hulls)} {what} fill less than an eighth of the range {black:g} .. "
        f"{white:g}, so they have little contrast, for one {dim[0]} ({low:g} .. {high:g})"
    )


def in_smaller_unit(hulls: Mapping[K, LowHigh]) -> list[K]:
    """Those that are much narrower than all others, with none between, as [0, 1] is beside
    [0, 255]."""
    widths = {k: high - low for k, (low, high) in hulls.items() if low < high}
    ordered = sorted(widths.values())
    gaps = [wide / narrow for narrow, wide in pairwise(ordered)]
    if not gaps or max(gaps) < GAP:
        return []
    least = ordered[gaps.index(max(gaps)) + 1]
    return [k for k, width in widths.items() if width < least]
