"""The area under the ROC curve of two samples and of several classes, and its bootstrap."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metrics.estimate import Estimate
from metrics.intervals import share_interval
from metrics.resampling import resampled


def auroc(positive: Tensor, negative: Tensor) -> float:
    """P(x > y) + P(x = y) / 2 for a score x of positive [n] and y of negative [m]: Mann and
    Whitney's U over n m (Hanley and McNeil 1982). 0.5 is chance."""
    ones = [torch.ones(1, len(scores)) for scores in (positive, negative)]
    return float(weighted_auroc(positive, negative, *ones))


def weighted_auroc(positive: Tensor, negative: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """[draws] float64: auroc of each draw, in which positive[i] was drawn a[draw, i] times and
    negative[j] b[draw, j] times.

    Args:
        positive: [n], on the CPU, finite.
        negative: [m].
        a: [draws, n].
        b: [draws, m].
    """
    a, b = a.double(), b.double()
    values, place = torch.cat([positive, negative]).unique(return_inverse=True)
    none = torch.zeros(len(a), len(values), dtype=torch.float64)
    ours = none.index_add(1, place[: len(positive)], a)
    theirs = none.index_add(1, place[len(positive) :], b)
    below = theirs.cumsum(1) - theirs / 2  # ties count half
    return (ours * below).sum(1) / (a.sum(1) * b.sum(1))


def macro_auroc(
    scores: Tensor, labels: Tensor, classes: Sequence[int], counts: Tensor | None = None
) -> Tensor:
    """[draws]: each of the classes against all others, and the mean of these. Of two classes whose
    scores are each other's negative it is the auroc of either.

    Args:
        scores: [N, K], of each class.
        labels: [N].
        classes: those of the K that are judged, each among labels.
        counts: [draws, N], how often each row was drawn; None for once.
    """
    counts = torch.ones(1, len(labels)) if counts is None else counts
    each = []
    for c in classes:
        own = labels == c
        each.append(
            weighted_auroc(scores[own, c], scores[~own, c], counts[:, own], counts[:, ~own])
        )
    return torch.stack(each).mean(0)


def resampled_by_class(labels: Tensor, draws: int, *key: int | str) -> Tensor:
    """[draws, N] float64: how often each row is drawn, with replacement among those of its own
    class, so that no draw is without a class."""
    counts = torch.zeros(draws, len(labels), dtype=torch.float64)
    for c in labels.unique().tolist():
        own = labels == c
        counts[:, own] = resampled(int(own.sum()), draws, *key, c)
    return counts


def within_its_range(found: Estimate) -> Estimate:
    """An AUROC's interval ends at 0 and 1; where all replicates are alike, as those of perfectly
    separated samples are, which a bootstrap gives no width, it is Wilson's of as many images."""
    low, high = found["low"], found["high"]
    if low is None or high is None:
        return found
    low, high = share_interval(found["value"], low, high, found["images"])
    return {**found, "low": max(0.0, low), "high": min(1.0, high)}
