"""Intra-cluster distance: by hand, pair by pair."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from metrics.intra_cluster import Intra, intra_distance
from runtime.errors import UserError


def normal(n, width, seed):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)).double()


def by_pairs(generated, train):
    clusters = [[] for _ in train]
    for row in generated:
        clusters[
            min(range(len(train)), key=lambda k: (row - train[k]).square().sum().item())
        ].append(row)
    pairs = [
        [(a - b).square().sum().item() for a, b in combinations(cluster, 2)] for cluster in clusters
    ]
    means = [sum(p) / len(p) for p in pairs if p]
    return Intra(
        sum(means) / len(means), len(train), len(means), [len(cluster) for cluster in clusters]
    )


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_mean_over_clusters_of_the_mean_over_pairs(seed):
    generated, train = normal(25, 6, seed), 1.5 * normal(10, 6, 10 + seed)
    found, other = intra_distance(generated, train), by_pairs(generated, train)
    assert found[1:] == other[1:] and found.mean == pytest.approx(other.mean)
    assert 1 < found.occupied < found.clusters  # seeds at which some cluster has no pair


def test_a_known_value():
    """Clusters of 2, 1, 3 and no rows: pairs 3^2; none; 1, 1 and 2^2."""
    train = torch.tensor([[0.0, 0], [100, 0], [0, 100], [100, 100]])
    generated = torch.tensor([[0.0, 1], [0, 4], [99, 0], [0, 100], [0, 101], [0, 102]])
    assert intra_distance(generated, train) == (
        pytest.approx((9 + (1 + 1 + 4) / 3) / 2),
        4,
        2,
        [2, 1, 3, 0],
    )


def test_a_memoriser_and_single_images():
    train = normal(5, 3, 0)
    assert intra_distance(train.repeat(3, 1), train) == (pytest.approx(0, abs=1e-12), 5, 5, [3] * 5)
    assert intra_distance(train, train) == (None, 5, 0, [1] * 5)


def test_what_cannot_be_judged_is_said():
    train = normal(5, 3, 0)
    for generated, message in [
        (train[:0], "generated images: 0"),
        (train * float("nan"), "5 of 5 rows"),
    ]:
        with pytest.raises(UserError, match=message):
            intra_distance(generated, train)
