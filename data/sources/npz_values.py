"""What the values of an array of images are: its range, and which of its images lie beside it."""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data.common_range import in_smaller_unit, tell_dim
from data.intensity import LowHigh, fences, hull, value_range
from runtime.errors import UserError

log = logging.getLogger("data")

DRAWN_IMAGES = (
    1024  # whose ranges are compared, where there are more; one of more is 0.1 % of pixels
)
USUAL = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))  # ranges in which images are kept
Ranges = Mapping[int, LowHigh]  # by the row of an image


def without_numbers(images: np.ndarray) -> np.ndarray:
    """Which images hold values that are not finite."""
    if images.dtype.kind != "f":
        return np.array([], int)
    return np.flatnonzero([not np.isfinite(image).all() for image in images])


def drawn_ranges(images: np.ndarray) -> list[tuple[int, float, float]]:
    """Of so many images as are drawn, always the same, the number and the range."""
    rows = np.arange(len(images))
    if len(rows) > DRAWN_IMAGES:
        rows = np.sort(np.random.default_rng(0).choice(rows, DRAWN_IMAGES, replace=False))
    return [(int(row), *value_range(images[row])) for row in rows]


def find_far(ranges: Mapping[str, Ranges], path: Path) -> list[int]:
    """Which of the images to train on do not count for the range, as they lie far from the others;
    a word on those, in whatever array they are, and on images of little contrast.

    Args:
        ranges: by the key of an array of images, those to train on first.

    Raises:
        UserError: where arrays are in different units.
    """
    train, *others = ranges
    lowest, highest = fences([*_with_contrast(ranges[train])] or [*ranges[train].values()])
    every = {(key, row): each for key, rows in ranges.items() for row, each in rows.items()}
    far = [k for k, (low, high) in every.items() if low < lowest or highest < high]
    for other in others:
        _check_units(train, other, ranges, path)
    if far:
        key, row = far[0]
        log.warning(
            f"{path}: the values of {len(far)} of {len(every)} images lie far from those of the "
            f"others, for one {key}[{row}]. They do not count for the range and are cut off there; "
            "data.range=[LOW,HIGH] sets another"
        )
    found = [row for key, row in far if key == train]
    for each in far:
        del every[each]
    _warn_of_dim({f"{key}[{row}]": each for (key, row), each in every.items()}, path)
    return found


def _warn_of_dim(ranges: Mapping[str, LowHigh], path: Path) -> None:
    wide = {name: (low, high) for name, (low, high) in ranges.items() if low < high}
    if wide and (dim := tell_dim(wide, hull(wide.values()), "images")):
        log.warning(
            f"{path}: {dim}. Where they are in another unit than the others, save all in one, such "
            "as 0 .. 255; data.range=[LOW,HIGH] takes them as they are."
        )


def _with_contrast(ranges: Ranges) -> list[LowHigh]:
    return [(low, high) for low, high in ranges.values() if low < high]


def _check_units(train: str, other: str, ranges: Mapping[str, Ranges], path: Path) -> None:
    """Whether images of one array are in [0, 1], say, and those of the other in [0, 255]: a range
    of both would be wrong for one."""
    wide = {k: _with_contrast(ranges[k]) for k in (train, other)}
    narrow = Counter(
        k for k, _ in in_smaller_unit({(k, n): r for k in wide for n, r in enumerate(wide[k])})
    )
    if len(narrow) == 1 and all(n == len(wide[k]) for k, n in narrow.items()):
        (a, b), (c, d) = (hull(each) for each in wide.values())
        raise UserError(
            f"{path}: {train} has values {a:g} .. {b:g} and {other} {c:g} .. {d:g}, so they are in "
            "different units. Save them in one, such as all in 0 .. 255, or choose what is black "
            "and what white in both: data.range=[LOW,HIGH]."
        )


def measured_range(images: np.ndarray, where: str) -> LowHigh | None:
    """The values that become black and white: the least and the greatest, or the usual range that
    these nearly fill. A few pixels far from all others, such as hot ones, do not count. None for
    bytes, which are levels already."""
    if images.dtype == np.uint8:
        if (greatest := images.max()) < 64:  # masks of 0 and 1, or 4 bits, are saved as bytes too
            log.warning(
                f"{where}: no pixel is above {greatest} of 255, so all will be dark; "
                f"data.range=[0,{greatest}] makes that white"
            )
        return None
    robust_low, robust_high = value_range(images)
    values = images[np.isfinite(images)] if images.dtype.kind == "f" else images
    low, high = (float(values.min()), float(values.max())) if values.size else (np.nan, np.nan)
    if not low < high:
        raise UserError(
            f"{where}: all pixels are {low:g}, or none is finite: there is nothing to learn from."
        )
    usual = next(
        ((a, b) for a, b in USUAL if a <= low and high <= b and high - low >= 0.9 * (b - a)), None
    )
    black, white = usual or (low, high)
    if not usual and high - low > 2 * (robust_high - robust_low) > 0:
        black, white = robust_low, robust_high
        log.warning(
            f"{where}: a few pixels lie far outside of {black:g} .. {white:g} and are cut off "
            f"there; data.range=[{low:g},{high:g}] shows them too"
        )
    log.info(
        f"{where} ({images.dtype}): values {low:g} .. {high:g}; black is {black:g} and white "
        f"{white:g} (data.range=[LOW,HIGH] sets others)"
    )
    return black, white
