"""The area under the ROC curve of two samples and of several classes, and its bootstrap."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metrics.estimate import Estimate
from metrics.intervals import share_interval
from metrics.resampling import Groups, resampled


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


def resampled_by_class(
    labels: Tensor, draws: int, *key: int | str, groups: Groups = None
) -> Tensor:
    """[draws, N] float64: how often each row is drawn, with replacement among those of its own
    class, so that no draw is without a class.

    With groups these are drawn whole, among those whose most frequent class is the same. A class
    that only groups of others hold may then be missing in a draw, which is drawn again."""
    stratum = labels if groups is None else _most_frequent(labels, groups)
    counts, again = _by_stratum(stratum, draws, *key, groups=groups), 0
    own = torch.stack([labels == c for c in labels.unique()]).double()
    while (lacking := (counts @ own.T == 0).any(1)).any():
        again += 1
        anew = _by_stratum(stratum, draws, *key, "again", again, groups=groups)
        counts[lacking] = anew[lacking]
    return counts


def _by_stratum(stratum: Tensor, draws: int, *key: int | str, groups: Groups) -> Tensor:
    counts = torch.zeros(draws, len(stratum), dtype=torch.float64)
    for c in stratum.unique().tolist():
        own = stratum == c
        inside = None if groups is None else groups[own.numpy()]
        counts[:, own] = resampled(int(own.sum()), draws, *key, c, groups=inside)
    return counts


def _most_frequent(labels: Tensor, groups: np.ndarray) -> Tensor:
    """[N]: the class that most rows of the row's group have, of equals the first."""
    found = labels.numpy().copy()
    for group in np.unique(groups):
        own = groups == group
        found[own] = np.bincount(found[own]).argmax()
    return torch.from_numpy(found)


def within_its_range(found: Estimate) -> Estimate:
    """An AUROC's interval ends at 0 and 1; where all replicates are alike, as those of perfectly
    separated samples are, which a bootstrap gives no width, it is Wilson's of as many images, or
    groups of them."""
    low, high = found["low"], found["high"]
    if low is None or high is None:
        return found
    low, high = share_interval(found["value"], low, high, found["images"])
    return {**found, "low": max(0.0, low), "high": min(1.0, high)}
