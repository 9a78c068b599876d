"""KID: the squared maximum mean discrepancy of two feature matrices under a cubic kernel, and its
bootstrap."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metrics.checks import check_pair
from metrics.distances import slices
from metrics.resampling import resampled


def kid(x: Tensor, y: Tensor) -> float:
    """The unbiased MMD^2 under k(a, b) = (a.b / D + 1)^3, over all pairs.

    0 on average where both come from one distribution, so it may fall below 0.

    Args:
        x: [N, D].
        y: [M, D].
    Raises:
        UserError: where either has fewer than 2 rows, or holds NaN.
    Source:
        Binkowski et al. 2018, section 4.
    """
    check_pair(x, y)
    return float(_mmd(x, y, torch.ones(1, len(x)), torch.ones(1, len(y))))


def kid_replicates(x: Tensor, y: Tensor, draws: int = 200, key: Sequence[int | str] = ()) -> Tensor:
    """kid with the rows of x and of y resampled, pairs of one and the same row left out.

    The counts of x are a function of key and N, those of y of key and M: replicates of two models
    with as many images each, on the same y, are paired. Of Gaussians that differ clearly their 95%
    interval holds the truth 93 to 95 times of 100; nearer to equality it is wider than it need be,
    up to 3 times in variance.

    Returns:
        [draws] float64, on the CPU.
    Raises:
        UserError: as of kid.
    """
    check_pair(x, y)
    return _mmd(x, y, _counts(len(x), draws, *key, "x"), _counts(len(y), draws, *key, "y")).cpu()


def _counts(n: int, draws: int, *key: int | str) -> Tensor:
    """resampled, where a draw of one row only, which has no pair, is drawn again."""
    counts, again = resampled(n, draws, *key), 0
    while (lone := counts.amax(1) == n).any():
        again += 1
        counts[lone] = resampled(n, draws, *key, "again", again)[lone]
    return counts


def _mmd(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """[draws]: x[i] taken a[draw, i] times, y[j] taken b[draw, j] times; for counts of 1 the
    unbiased estimate."""
    x, y, a, b = x.double(), y.double(), a.to(x.device).double(), b.to(y.device).double()
    return _within(x, a) + _within(y, b) - 2 * _sum(x, y, a, b) / (len(x) * len(y))


def _within(x: Tensor, a: Tensor) -> Tensor:
    """The mean kernel of pairs of different rows."""
    same = a.square()
    own = (x.square().mean(1) + 1) ** 3
    return (_sum(x, x, a, a) - same @ own) / (len(x) ** 2 - same.sum(1))


def _sum(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """[draws]: sum over i, j of a_i k(x_i, y_j) b_j."""
    total = torch.zeros(len(a), dtype=torch.float64, device=x.device)
    for rows in slices(len(x), len(y)):
        kernel = (x[rows] @ y.T / x.shape[1] + 1) ** 3
        total += ((a[:, rows] @ kernel) * b).sum(1)
    return total
