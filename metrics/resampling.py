"""The bootstrap over images: rows drawn with replacement, alike for all that is compared."""

from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.seeds import generator


def resampled_rows(n: int, draws: int, *key: int | str) -> Tensor:
    """[draws, n] int64: n rows of range(n) with replacement. A draw is a function of n, key and its
    number: two models judged on equal numbers of images under one key get the same rows, and their
    replicates are paired."""
    return torch.stack(
        [torch.randint(n, (n,), generator=generator(*key, draw)) for draw in range(draws)]
    )


def resampled(n: int, draws: int, *key: int | str) -> Tensor:
    """[draws, n] float64: how often each row is among resampled_rows."""
    rows = resampled_rows(n, draws, *key)
    return torch.stack([row.bincount(minlength=n) for row in rows]).double()


def bootstrap_mean(values: Tensor, draws: int = 200, key: Sequence[int | str] = ()) -> Tensor:
    """[draws] float64: the mean of values [n] in each draw."""
    values = values.double().cpu()
    return resampled(len(values), draws, *key) @ values / len(values)
