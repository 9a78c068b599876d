"""Diversity around the training images: whether a model draws variants of them or repeats
itself."""

from typing import NamedTuple

import torch
from torch import Tensor

from metrics.checks import check_pair
from metrics.distances import chunks


class Intra(NamedTuple):
    """mean: squared distance, None where no cluster is occupied. clusters: training images;
    occupied: those with two images or more, over which the mean is. sizes: [clusters] generated
    images of each."""

    mean: float | None
    clusters: int
    occupied: int
    sizes: list[int]


def intra_distance(generated: Tensor, train: Tensor) -> Intra:
    """Each generated row joins its nearest training row (the first, if several); the mean squared
    distance of pairs in a cluster, averaged over the occupied clusters.

    Lower is less diverse; 0 for a memoriser.

    Args:
        generated: [N, D].
        train: [M, D].
    Raises:
        UserError: where either has no rows, or holds NaN.
    Source:
        Ojha et al. 2021, section 4: Intra-LPIPS, in features whose squared distance is LPIPS.
    """
    check_pair(generated, train, "the generated images", "the training images", least=1)
    nearest = torch.cat([distances.argmin(1) for _, distances in chunks(generated, train)])
    sizes = torch.bincount(nearest, minlength=len(train)).tolist()
    # Over the pairs of n rows, mean |a - b|^2 = 2 tr C, with their covariance C over n - 1.
    means = [
        2 * float(generated[nearest == row].double().var(0).sum())
        for row, size in enumerate(sizes)
        if size > 1
    ]
    return Intra(sum(means) / len(means) if means else None, len(train), len(means), sizes)
