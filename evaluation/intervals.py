"""Intervals: a bootstrap over images, paired where two models are compared, and Student's t over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.randomness import generator


class Seeds(NamedTuple):
    """A mean over n seeds and its t interval, None for a single seed."""

    mean: float
    low: float | None
    high: float | None
    n: int


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


def paired(a: Tensor | Sequence[float], b: Tensor | Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The interval of a - b for replicates [draws] of two models that were drawn under one key."""
    a, b = _finite(a), _finite(b)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} replicates cannot be paired with {len(b)}.")
    return interval(a - b, level)


def over_seeds(values: Sequence[float], level: float = 0.95) -> Seeds:
    """The mean of one value for each seed, with Student's t interval of n - 1 degrees of freedom."""
    values, n = _finite(values), len(values)
    mean = float(values.mean())
    if n < 2:
        return Seeds(mean, None, None, n)
    half = t_quantile(n - 1, level) * float(values.std()) / n**0.5
    return Seeds(mean, mean - half, mean + half, n)


def paired_over_seeds(a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95) -> Seeds | None:
    """over_seeds of a - b, by seed, over the seeds that both have; None where they share none."""
    both = sorted(a.keys() & b.keys())
    return over_seeds([a[seed] - b[seed] for seed in both], level) if both else None


def t_quantile(freedom: int, level: float = 0.95) -> float:
    """The t with P(|T| < t) = level, of Student's distribution with so many degrees of freedom."""
    low, high = 0.0, math.pi / 2
    for _ in range(100):  # bisection to the last bit
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < level else (low, angle)
    return math.tan(low) * freedom**0.5


def _within(angle: float, freedom: int) -> float:
    """P(|T| < tan(angle) sqrt(freedom)); Abramowitz and Stegun 1964, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if not odd:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if freedom > 1 else 0.0))


def _finite(values: Tensor | Sequence[float]) -> Tensor:
    values = torch.as_tensor(values, dtype=torch.float64).cpu()
    if values.ndim != 1 or not len(values) or not torch.isfinite(values).all():
        raise ValueError(f"An interval needs finite numbers, not {values}.")
    return values
