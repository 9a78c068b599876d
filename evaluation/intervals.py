"""Intervals: a bootstrap over images, and of several trainings what the seeds and the images change, in one."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from runtime.randomness import generator

Key = TypeVar("Key", bound=Hashable)
NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)


class Pooled(NamedTuple):
    """variance: of one training about its strategy and its seed. freedom: its degrees of freedom."""

    variance: float
    freedom: int


@dataclass(frozen=True)
class Mean:
    """value: over n trainings. variance: of value, None where nothing tells it; freedom: its degrees of freedom."""

    value: float
    n: int
    variance: float | None = None
    freedom: float = math.inf

    def interval(self, level: float = 0.95) -> tuple[float, float] | tuple[None, None]:
        """Student's t."""
        if self.variance is None:
            return None, None
        half = t_quantile(self.freedom, level) * self.variance**0.5
        return self.value - half, self.value + half

    def holds_zero(self, level: float = 0.95) -> bool:
        """Also where no interval is known."""
        low, high = self.interval(level)
        return low is None or low <= 0 <= high


def resampled_rows(n: int, draws: int, *key: int | str) -> Tensor:
    """[draws, n] int64: n rows of range(n) with replacement. A draw is a function of n, key and its number: two models judged on equal
    numbers of images under one key get the same rows, and their replicates are paired."""
    return torch.stack([torch.randint(n, (n,), generator=generator(*key, draw)) for draw in range(draws)])


def resampled(n: int, draws: int, *key: int | str) -> Tensor:
    """[draws, n] float64: how often each row is among resampled_rows."""
    rows = resampled_rows(n, draws, *key)
    return torch.zeros(draws, n, dtype=torch.float64).scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.float64))


def bootstrap_mean(values: Tensor, draws: int = 200, key: Sequence[int | str] = ()) -> Tensor:
    """[draws] float64: the mean of values [n] in each draw."""
    values = values.double().cpu()
    return resampled(len(values), draws, *key) @ values / len(values)


def interval(replicates: Tensor | Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of bootstrap replicates [draws]: (1 - level) / 2 of them lie below it and as many above."""
    low, high = torch.quantile(_finite(replicates), torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high


def mean_over(values: Sequence[float], replicates: Sequence[Sequence[float]] = (), images: int | None = None,
              pooled: Pooled | None = None) -> Mean:
    """The mean of one value for each training, with the variance that the trainings and the images add to it.

    values [n]. replicates [n, draws]: of each its bootstrap over images, drawn alike for all; () where there is none, and Student's t over
    the trainings is all. images: how many were drawn from, the fewest where there are several sets. pooled: the variance between
    trainings that several strategies tell together, in place of that of values.

    With x_s = mu + b_s + e + e_s (b_s: training s, e: the images, alike for all; e_s: the images, for s alone),
        var(mean) = var(e) + var(e_s) / n + var(b_s) / n = I + max(0, S^2 - W) / n,
    where I is the variance of the replicates' mean, W that of a replicate about this mean, which estimates var(e_s), and S^2 that of
    values, which estimates var(b_s) + var(e_s). I has images - 1 degrees of freedom, S^2 n - 1 or those of pooled, f say, and their sum,
    after Satterthwaite 1946 (Biometrics Bulletin 2, 110), (A + I)^2 / (A^2 / f + I^2 / (images - 1)) with A = (1 + 2 / f) S^2 / n. His A
    is S^2 / n, which of one or two degrees is often far too small by chance, and its interval then too narrow: 87 of 100 in place of 95.

    A single training tells nothing of S^2: its variance is I, which is of these weights and not of another training. Of differences that
    are none the 95% interval holds 0 in 93 to 98 of 100 (tests/test_intervals.py), of two strategies and two seeds, where most of the
    spread is that of the trainings, in 90.
    """
    found, n = _finite(values), len(values)
    value, seeds, free = float(found.mean()), 0.0, n - 1
    if n > 1:
        seeds, free = pooled or (float(found.var()), n - 1)
    if not len(replicates):
        return Mean(value, n, seeds / n, free) if n > 1 else Mean(value, n)
    drawn = torch.stack([_finite(r) for r in replicates])  # [n, draws]
    together = drawn.mean(0)
    of_images, apart = float(together.var()), float((drawn - together).var(1).sum()) / max(1, n - 1)
    variance = of_images + max(0.0, seeds - apart) / n
    known = min(images or drawn.shape[1], drawn.shape[1]) - 1
    if n == 1 or not variance > 0:
        return Mean(value, n, variance, max(1, known))
    seeds *= (1 + 2 / free) / n
    return Mean(value, n, variance, (seeds + of_images) ** 2 / (seeds**2 / free + of_images**2 / max(1, known)))


def between_trainings(values: Mapping[Key, Mapping[Hashable, float]]) -> Pooled | None:
    """What one training varies by about its strategy and its seed: strategy -> seed -> value. Over the seeds that all strategies have; None
    where these, or the strategies, are fewer than two.

    The residual mean square of the two-way table without interaction, of (strategies - 1) (seeds - 1) degrees of freedom. It takes all
    strategies to vary alike: one that varies more than the others has too narrow an interval by it.
    """
    seeds = sorted(set.intersection(*(set(v) for v in values.values())), key=str) if values else []
    if len(values) < 2 or len(seeds) < 2:
        return None
    table = _finite([by_seed[s] for by_seed in values.values() for s in seeds]).reshape(len(values), len(seeds))
    rest = table - table.mean(1, keepdim=True) - table.mean(0, keepdim=True) + table.mean()
    freedom = (len(values) - 1) * (len(seeds) - 1)
    return Pooled(float(rest.square().sum()) / freedom, freedom)


def told_apart(differences: Mapping[Key, Mean], level: float = 0.95) -> dict[Key, float]:
    """Which of several differences are not 0, so that with the probability level none is called so wrongly: Holm 1979 (Scandinavian
    Journal of Statistics 6, 65). Each with the level at which its interval was asked; of those that are told apart this does not hold 0,
    of the others it does. What has no interval is left out and not counted."""
    left = {key: d for key, d in differences.items() if d.variance is not None}
    asked: dict[Key, float] = {}
    while left:
        at = 1 - (1 - level) / len(left)
        asked |= dict.fromkeys(left, at)
        if not (found := [key for key, d in left.items() if not d.holds_zero(at)]):
            break
        left = {key: d for key, d in left.items() if key not in found}
    return asked


def is_best(behind: Collection[Mean], level: float = 0.95) -> bool:
    """Whether the strategy with the lowest value is the best: whether each of the others lies above it by an interval of the difference
    that does not hold 0. Though the lowest was chosen by the data, no correction is needed: with the probability level no strategy is
    called best that is not (Gutmann and Maymin 1987, Annals of Statistics 15, 456). behind: the others minus the lowest. Never of a
    single training each, which tells two networks apart and not two strategies."""
    return bool(behind) and all(d.variance is not None and d.n > 1 and d.value > 0 and not d.holds_zero(level) for d in behind)


def wilson(count: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a share, count of n: Wilson 1927 (Journal of the American Statistical Association 22, 209). Not a point at 0 of n."""
    z, share = t_quantile(math.inf, level), count / n
    middle, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, (middle - half) / (1 + z**2 / n)), min(1.0, (middle + half) / (1 + z**2 / n))


@lru_cache(maxsize=4096)
def t_quantile(freedom: float, level: float = 0.95) -> float:
    """The t with P(|T| < t) = level, of Student's distribution with freedom >= 1 degrees, whole or not; inf is the normal one.

    By Newton's steps in the angle of tan(angle) = t / sqrt(freedom), in which the probability is concave: from below none goes too far."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    if freedom > 1e5:
        return z
    angle, whole = math.atan(z / freedom**0.5), _whole(freedom)
    for _ in range(100):
        step = (level - _upto(angle, freedom) / whole) * whole / math.cos(angle) ** (freedom - 1)
        angle += step
        if abs(step) < 1e-14 * angle:
            break
    return math.tan(angle) * freedom**0.5


def _upto(angle: float, freedom: float) -> float:
    """The integral of cos^(freedom - 1) from 0 to angle, by Gauss and Legendre."""
    return 0.5 * angle * float(WEIGHTS @ np.cos(0.5 * angle * (NODES + 1)) ** (freedom - 1))


def _whole(freedom: float) -> float:
    """The same to pi / 2: B(1/2, freedom / 2) / 2."""
    return 0.5 * math.exp(math.lgamma(0.5) + math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2))


def _finite(values: Tensor | Sequence[float]) -> Tensor:
    values = torch.as_tensor(values, dtype=torch.float64).cpu()
    if values.ndim != 1 or not len(values) or not torch.isfinite(values).all():
        raise ValueError(f"An interval needs finite numbers, not {values}.")
    return values
