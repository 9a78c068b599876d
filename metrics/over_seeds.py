"""Several trainings of each strategy: the mean over seeds, with what seeds and images change in one
interval, and which strategies differ."""

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from scipy import special
from scipy.optimize import brentq

from metrics.intervals import LEVEL, finite, t_quantile

Key = TypeVar("Key", bound=Hashable)


class Spread(NamedTuple):
    """variance: between seeds, of a difference of two strategies. freedom: its degrees of
    freedom."""

    variance: float
    freedom: float


@dataclass(frozen=True)
class Mean:
    """value: over n trainings. variance: of value, None where nothing tells it; freedom: its
    degrees of freedom."""

    value: float
    n: int
    variance: float | None = None
    freedom: float = math.inf

    def interval(self, level: float = LEVEL) -> tuple[float, float] | tuple[None, None]:
        """Student's t."""
        if self.variance is None:
            return None, None
        half = t_quantile(self.freedom, level) * self.variance**0.5
        return self.value - half, self.value + half

    def holds_zero(self, level: float = LEVEL) -> bool:
        """Also where no interval is known."""
        low, high = self.interval(level)
        return low is None or high is None or low <= 0 <= high


def mean_over(
    values: Sequence[float],
    replicates: Sequence[Sequence[float]] = (),
    images: int | None = None,
    spread: Spread | None = None,
) -> Mean:
    """The mean of one value for each training, with the variance that the trainings and the images
    add to it.

    values [n]. replicates [n, draws]: of each its bootstrap over images, drawn alike for all; ()
    where there is none, and Student's t over the trainings is all, as it is of one image, which
    tells nothing of others. images: how many were drawn from, the fewest where there are several
    sets; of images in groups, such as patients, how many groups. spread: the variance between
    trainings (moderated), in place of that of values.

    With x_s = mu + b_s + e + e_s (b_s: training s, e: the images, alike for all; e_s: the images,
    for s alone),
        var(mean) = var(e) + var(e_s) / n + var(b_s) / n = I + max(0, S^2 - W) / n,
    where I is the variance of the replicates' mean, W that of a replicate about this mean, which
    estimates var(e_s), and S^2 that of values, which estimates var(b_s) + var(e_s). I and W are
    images / (images - 1) times those of the replicates, as a bootstrap's variance is too small by
    this. I has images - 1 degrees of freedom, S^2 n - 1 or those of spread, f say, and their sum,
    after Satterthwaite 1946 (Biometrics Bulletin 2, 110), (A + I)^2 / (A^2 / f + I^2 / (images -
    1)) with A = (1 + 2 / f) S^2 / n. His A is S^2 / n, which of one or two degrees is often far too
    small by chance, and its interval then too narrow: 87 of 100 in place of 95.

    A single training tells nothing of S^2: its variance is I, which is of these weights and not of
    another training. Of differences that are none the 95% interval holds 0 in 93 to 99 of 100
    (tests/metrics/test_over_seeds.py), fewest where most of the spread is that of the trainings.
    """
    found, n = finite(values), len(values)
    value = float(found.mean())
    seeds, free = (spread or spread_of(values)) if n > 1 else (0.0, 0)
    if not len(replicates) or images == 1:
        return Mean(value, n, seeds / n, free) if n > 1 else Mean(value, n)
    drawn = torch.stack([finite(r) for r in replicates])  # [n, draws]
    together = drawn.mean(0)
    larger = images / (images - 1) if images else 1.0
    of_images = larger * float(together.var())
    apart = larger * float((drawn - together).var(1).sum()) / max(1, n - 1)
    variance = of_images + max(0.0, seeds - apart) / n
    draws = drawn.shape[1]
    known = max(1, min(images or draws, draws) - 1)
    if n == 1 or not variance > 0:
        return Mean(value, n, variance, known)
    seeds *= (1 + 2 / free) / n
    freedom = (seeds + of_images) ** 2 / (seeds**2 / free + of_images**2 / known)
    return Mean(value, n, variance, freedom)


def spread_of(values: Sequence[float]) -> Spread:
    """Of n > 1 values."""
    return Spread(float(finite(values).var()), len(values) - 1)


def moderated(own: Mapping[Key, Spread]) -> dict[Key, Spread]:
    """The variances s^2 of several contrasts, d degrees of freedom each, steadied by one another:
    Smyth 2004 (Statistical Applications in Genetics and Molecular Biology 3, article 3, sections 3
    and 6.2).

        s~^2 = (d0 s0^2 + d s^2) / (d0 + d)    with d0 + d degrees of freedom

    d0 and s0^2 by the moments of log s^2: d0 is large where the variances are alike and small where
    they differ.

    Two bounds make it careful, as a few contrasts of two or three seeds tell d0 badly. All of them
    share a strategy, so that of equal ones any two differences correlate by 1/2 and their s^2 by
    1/4: the mean of m has 4 m / (m + 3) times d degrees, and so many the sum d0 + d is at most. And
    where s^2 is larger than s~^2 it counts with its own d: nothing noisy borrows the calm of
    others. A variance of 0 tells nothing to the others; alone, or beside none that is above 0, each
    is its own.
    """
    told = [s for s in own.values() if s.variance > 0]
    if len(told) < 2:
        return dict(own)
    half = np.array([s.freedom / 2 for s in told])
    logs = np.log([s.variance for s in told]) - special.digamma(half) + np.log(half)
    between = logs.var(ddof=1) - special.polygamma(1, half).mean()  # trigamma(d0 / 2)
    prior, common = math.inf, logs.mean()
    if between > 0:
        half0 = trigamma_inverse(between)
        prior, common = 2 * half0, common + special.digamma(half0) - math.log(half0)
    found = {}
    for key, (variance, d) in own.items():
        d0 = min(prior, shared_freedom(len(told), d) - d)
        steadied = (d0 * math.exp(common) + d * variance) / (d0 + d)
        found[key] = max(own[key], Spread(steadied, d0 + d))
    return found


def shared_freedom(contrasts: int, freedom: float) -> float:
    """Degrees of freedom of the mean of so many variances of differences that share a strategy, of
    freedom each: see moderated."""
    return 4 * contrasts / (contrasts + 3) * freedom


def trigamma_inverse(x: float) -> float:
    """The y > 0 with trigamma(y) = x > 0, which lies between 1 / x and 1 / x + 1 / sqrt(x)."""
    return brentq(
        lambda y: special.polygamma(1, y) - x, 1 / x, 1 / x + x**-0.5, xtol=1e-15, rtol=1e-15
    )


def told_apart(differences: Mapping[Key, Mean], level: float = LEVEL) -> dict[Key, float]:
    """Which of several differences are not 0, so that with the probability level none is called so
    wrongly: Holm 1979 (Scandinavian Journal of Statistics 6, 65). Each with the level at which its
    interval was asked; of those that are told apart this does not hold 0, of the others it does.
    What has no interval is left out and not counted."""
    left = {key: d for key, d in differences.items() if d.variance is not None}
    asked: dict[Key, float] = {}
    while left:
        at = 1 - (1 - level) / len(left)
        asked |= dict.fromkeys(left, at)
        holding = {key: d for key, d in left.items() if d.holds_zero(at)}
        if holding == left:
            break
        left = holding
    return asked


def range_level(count: int, freedom: float, level: float = LEVEL) -> float:
    """The level at which Student's interval of a difference is asked, so that with the probability
    level those of all pairs of count means hold together, whichever of them the data name first:
    |difference| <= q / sqrt(2) standard errors, q the quantile of the studentized range (Tukey
    1953; Kramer 1956, Biometrics 12, 307). Of two means it is level itself. freedom counts in
    quarters, rounded down, and at most as 1000."""
    return _range_level(count, max(1, math.floor(4 * min(freedom, 1000.0))), level)


@cache
def _range_level(count: int, quarters: int, level: float) -> float:
    from scipy import stats  # takes a while to import, and its quantile a tenth of a second

    q = stats.studentized_range.ppf(level, count, quarters / 4)
    return float(2 * stats.t.cdf(q / math.sqrt(2), quarters / 4) - 1)


def is_best(behind: Collection[Mean]) -> bool:
    """Whether the strategy with the lowest value is the best: whether each of the others lies above
    it by an interval of the difference that does not hold 0. Though the lowest was chosen by the
    data, no correction is needed: with the probability LEVEL no strategy is called best that is not
    (Gutmann and Maymin 1987, Annals of Statistics 15, 456). behind: the others minus the lowest.
    Never of a single training each, which tells two networks apart and not two strategies."""
    return bool(behind) and all(d.n > 1 and d.value > 0 and not d.holds_zero() for d in behind)
