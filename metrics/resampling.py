"""The bootstrap over images: rows drawn with replacement, alike for all that is compared. Where
images belong together, as the slices of a patient do, their groups are drawn in place of them."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from runtime.seeds import generator

Groups: TypeAlias = np.ndarray | None  # [n], the same for rows of one group; None: each is alone


def resampled_rows(n: int, draws: int, *key: int | str) -> Tensor:
    """[draws, n] int64: n rows of range(n) with replacement. A draw is a function of n, key and its
    number: two models judged on equal numbers of images under one key get the same rows, and their
    replicates are paired."""
    return torch.stack(
        [torch.randint(n, (n,), generator=generator(*key, draw)) for draw in range(draws)]
    )


def resampled(n: int, draws: int, *key: int | str, groups: Groups = None) -> Tensor:
    """[draws, n] float64: how often each row is among resampled_rows. With groups these are drawn,
    as many as there are, by the same key, and a row is drawn as often as its group. A group is
    taken whole: what varies inside it is in it already.

    Source:
        Davison and Hinkley 1997, Bootstrap Methods and their Application, section 3.8, strategy 1.
    """
    if groups is not None:
        number, count = _numbered(groups)
        return resampled(count, draws, *key)[:, number]
    rows = resampled_rows(n, draws, *key)
    return torch.stack([row.bincount(minlength=n) for row in rows]).double()


def bootstrap_mean(
    values: Tensor, draws: int = 200, key: Sequence[int | str] = (), groups: Groups = None
) -> Tensor:
    """[draws] float64: the mean of values [n] in each draw.

    A draw of groups has more or fewer rows than n, and its mean is a ratio: the sum over the rows
    drawn by their number. The mean of all is this ratio, too, each group drawn once. Over n in
    place of their number, how many rows the groups have would pass for uncertainty of the mean, and
    a constant that is added to all values would widen it.

    Source:
        Cameron, Gelbach and Miller 2008 (Review of Economics and Statistics 90, 414): clusters
        drawn whole, and the estimator, here a mean, computed anew in each draw.
    """
    values = values.double().cpu()
    drawn = resampled(len(values), draws, *key, groups=groups)
    return drawn @ values / drawn.sum(1)


def groups_of(groups: Groups, rows: np.ndarray) -> Groups:
    """Of some rows, in their order. groups: of all."""
    return None if groups is None else groups[rows]


def count_units(n: int, groups: Groups) -> int:
    """How many are drawn from: groups, or else rows."""
    return n if groups is None else len(np.unique(groups))


def drawn_from(*sets: tuple[int, Groups]) -> tuple[int, int | None]:
    """(units, images), as metrics.estimate.estimate takes them: how many units the smallest set is
    drawn from; and how many images these are, None where no set has groups of several. sets: (how
    many images, their groups)."""
    counts = [(count_units(n, groups), n) for n, groups in sets]
    units, images = min(counts)
    return units, images if any(fewer < n for fewer, n in counts) else None


def _numbered(groups: np.ndarray) -> tuple[Tensor, int]:
    """(the number of each row's group [n] int64, how many groups there are), in the order of their
    first rows: where each row is a group, its own place."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    place = np.empty(len(first), np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    return torch.from_numpy(place[inverse.reshape(-1)]), len(first)
