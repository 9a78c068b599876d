"""What the values of an array of images are: its range, and which of its images lie beside it."""

import logging

import numpy as np

from data.intensity import LowHigh, fences, value_range
from runtime.errors import UserError

log = logging.getLogger("data")

DRAWN_IMAGES = (
    1024  # whose ranges are compared, where there are more; one of more is 0.1 % of pixels
)
USUAL = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))  # ranges in which images are kept


def without_numbers(images: np.ndarray) -> np.ndarray:
    """Which images hold values that are not finite."""
    if images.dtype.kind != "f":
        return np.array([], int)
    return np.flatnonzero([not np.isfinite(image).all() for image in images])


def far_images(images: np.ndarray) -> list[int]:
    """Of so many images as are drawn, always the same, those whose range lies far from those of the
    others."""
    rows = np.arange(len(images))
    if len(rows) > DRAWN_IMAGES:
        rows = np.sort(np.random.default_rng(0).choice(rows, DRAWN_IMAGES, replace=False))
    ranges = [value_range(images[row]) for row in rows]
    lowest, highest = fences([each for each in ranges if each[0] < each[1]] or ranges)
    return [int(k) for k, (low, high) in zip(rows, ranges) if low < lowest or highest < high]


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
