"""Intervals of one number: percentiles of a bootstrap, Student's t, and Wilson's of a share."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import special
from torch import Tensor

FEW = 50  # images: below, percentiles of a bootstrap are too narrow
FEW_PATIENTS = 5  # below, an interval over them is wide and its own width a guess
LEVEL = 0.95  # of intervals


def interval(replicates: Tensor | Sequence[float]) -> tuple[float, float]:
    """The percentile interval of bootstrap replicates [draws]: (1 - LEVEL) / 2 of them lie below it
    and as many above."""
    ends = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    low, high = np.quantile(finite(replicates).numpy(), ends).tolist()
    return low, high


def image_interval(
    value: float, replicates: Tensor | Sequence[float], images: int
) -> tuple[float, float] | tuple[None, None]:
    """The interval of one run's value over its images. images: how many the replicates [draws] were
    drawn from, or how many groups of them.

    From FEW images on the percentiles. Below, value +- t s sqrt(images / (images - 1)), with s the
    standard deviation of the replicates and Student's t of images - 1 degrees: of a mean this is
    Student's own interval, where the percentiles, which cannot leave the range of the images, hold
    the truth in 51 (2 images), 65 (3), 83 (5) and 91 (20) of 100. One image tells no interval.
    """
    if images >= FEW:
        return interval(replicates)
    found = finite(replicates)
    if images < 2:
        return None, None
    half = t_quantile(images - 1) * (float(found.var()) * images / (images - 1)) ** 0.5
    return value - half, value + half


def wilson(count: float, n: int) -> tuple[float, float]:
    """The interval of a share, count of n: Wilson 1927 (Journal of the American Statistical
    Association 22, 209). Not a point at 0 of n."""
    z, share = t_quantile(math.inf), count / n
    middle, scale = share + z**2 / (2 * n), 1 + z**2 / n
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # exactly, where rounding would leave a trace
    low = (middle - half) / scale if count else 0.0
    return low, (middle + half) / scale if count < n else 1.0


def share_interval(share: float, low: float, high: float, n: int) -> tuple[float, float]:
    """[low, high], a bootstrap's of a share of n images; Wilson's where all are alike, as 0 of 60:
    a bootstrap of them has no width."""
    return wilson(share * n, n) if low == high else (low, high)


def t_quantile(freedom: float, level: float = LEVEL) -> float:
    """The t with P(|T| < t) = level, of Student's distribution with freedom >= 1 degrees, whole or
    not; inf is the normal one."""
    below = (1 + level) / 2
    return float(special.stdtrit(freedom, below) if freedom <= 1e5 else special.ndtri(below))


def finite(values: Tensor | Sequence[float]) -> Tensor:
    values = torch.as_tensor(values, dtype=torch.float64).cpu()
    if values.ndim != 1 or not len(values) or not torch.isfinite(values).all():
        raise ValueError(f"An interval needs finite numbers, not {values}.")
    return values
