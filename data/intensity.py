"""From numbers of any range (16-bit files, CT, MRI, arrays) to the 256 levels of a picture."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from runtime.errors import UserError


class Translucent(NamedTuple):
    """Gray or colour whose opacity has more than 8 bits, which Pillow has no image of.

    Attributes:
        on_white: what is seen of it.
        bands: [H, W, 2 or 4], 0..255, its opacity last.
    """

    on_white: Image.Image
    bands: np.ndarray


# a picture, gray or in colour, or bands: [H, W, C], 0..255
Levels = Image.Image | Translucent | np.ndarray


def seen(image: Levels) -> Image.Image | np.ndarray:
    """A picture, or bands."""
    return image.on_white if isinstance(image, Translucent) else image


LowHigh = tuple[float, float]  # the values that are shown black and white
Range = Callable[[np.ndarray], LowHigh]  # of an image; value_range is one
TAILS = (0.001, 0.999)  # a hot pixel, a metal clip or a burnt-in label must not darken all the rest
REACH = 2.5  # typical ranges that others may reach beyond it
OUTER = 3  # interquartile ranges between a quartile and its outer fence
DRAWN = 1 << 20  # values that a quantile is taken from, where there are more
LABELS = 16  # different values, of which so few are labels


def of_bytes(pixels: np.ndarray) -> Levels:
    """[H, W, C] uint8, which are levels already: gray, colour or bands."""
    channels = pixels.shape[-1]
    if channels not in (1, 3):
        return pixels
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def to_levels(values: np.ndarray, low: float, high: float) -> Image.Image:
    """An image in which low is black (0) and high is white (255), clipped; NaN is black. low above
    high turns black and white around; low = high makes black all up to it.

    Args:
        values: [H, W], [H, W, 1] or [H, W, 3], of any type.

    Returns:
        Gray in Pillow's mode "F", 0..255 and not rounded, so that resizing comes before rounding;
        colour in RGB of 8 bits.
    """
    if values.ndim < 2 or values.shape[2:] not in ((), (1,), (3,)):
        raise ValueError(f"an image is [H, W] or [H, W, 3], not {list(values.shape)}.")
    values = np.asarray(values[..., 0] if values.shape[2:] == (1,) else values, dtype=np.float64)
    levels = (values - low) * (255 / (high - low)) if high != low else 255.0 * (values > low)
    levels = np.nan_to_num(np.clip(levels, 0, 255), nan=0.0)
    gray = levels.ndim == 2
    return Image.fromarray(levels.astype(np.float32) if gray else levels.round().astype(np.uint8))


def value_range(values: np.ndarray) -> LowHigh:
    """The range of one image or volume: its 0.1 % and 99.9 % quantiles, or least and greatest value
    where those coincide.

    What is not finite does not count; (0, 0) where nothing is. Of more than a million values, a
    million are drawn, always the same.
    """
    values = _finite(values)
    if not values.size:
        return 0.0, 0.0
    drawn = values
    if values.size > DRAWN:
        drawn = values[np.random.default_rng(0).integers(0, values.size, DRAWN)]
    low, high = np.quantile(drawn.astype(np.float64), TAILS)
    if low == high:
        low, high = values.min(), values.max()
    return float(low), float(high)


def value_apart(values: np.ndarray) -> list[float]:
    """A value that takes more than half of the levels from all others and is so frequent that it
    is in value_range, as -9999 where there is no value: it, its share of the values, and the range
    of the others. [] where none is, and where the others are labels."""
    values = _finite(values)
    if not values.size:
        return []
    low, high = float(values.min()), float(values.max())
    middle = low / 2 + high / 2
    for value, beside in ((low, values <= middle), (high, values >= middle)):
        n = np.count_nonzero(beside)
        if n > TAILS[0] * values.size and n == np.count_nonzero(values == value):
            others = values[~beside]
            if len(np.unique(others[:: 1 + others.size // DRAWN])) > LABELS:
                return [value, float(n / values.size), *value_range(others)]
    return []


def _finite(values: np.ndarray) -> np.ndarray:
    values = values.ravel()
    return values[np.isfinite(values)] if values.dtype.kind == "f" else values


def hull(ranges: Iterable[Sequence[float]]) -> LowHigh:
    """The range that holds all of these, one at least."""
    lows, highs = zip(*ranges)
    return float(min(lows)), float(max(highs))


def fences(ranges: Sequence[LowHigh]) -> LowHigh:
    """Beyond these a range lies far from the others: metal in one file, or one file of 16 bits
    among those of 12, must not darken the rest.

    They are Tukey's outer fences, and no nearer than what would leave a typical range less than two
    sevenths of the levels.

    Source: Tukey 1977, Exploratory Data Analysis.
    """
    low, high = np.median(ranges, axis=0)
    # the quartiles that are values of files: of three files, too, one must not decide
    low_1, high_1 = np.quantile(ranges, 0.25, axis=0, method="higher")
    low_3, high_3 = np.quantile(ranges, 0.75, axis=0, method="lower")
    lowest = min(low - REACH * (high - low), low_1 - OUTER * (low_3 - low_1))
    highest = max(high + REACH * (high - low), high_3 + OUTER * (high_3 - high_1))
    return float(lowest), float(highest)


def check_range(low_high: Sequence[float]) -> LowHigh:
    """data.range as numbers. Raises UserError where they are not two that rise."""
    if len(low_high) != 2 or not -math.inf < low_high[0] < low_high[1] < math.inf:
        raise UserError(
            f"data.range={list(low_high)}: two different numbers are needed, [LOW, HIGH], what is "
            "shown black and what white."
        )
    return float(low_high[0]), float(low_high[1])
