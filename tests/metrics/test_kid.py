"""KID against two libraries, its expectation on Gaussians, and its bootstrap."""

from __future__ import annotations

import runtime.torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.kid import poly_mmd

from metrics import distances
from metrics.intervals import interval
from metrics.kid import _counts, kid, kid_replicates
from runtime.errors import UserError
from runtime.seeds import generator


def normal(n, width, seed, shift=0.0):
    return torch.randn(n, width, generator=generator("kid", seed)).double() + shift


def by_hand(x, y):
    xx, yy, xy = (
        polynomial_kernel(a.double().numpy(), b.double().numpy())
        for a, b in ((x, x), (y, y), (x, y))
    )
    n, m = len(x), len(y)
    return (
        (xx.sum() - xx.trace()) / (n * (n - 1))
        + (yy.sum() - yy.trace()) / (m * (m - 1))
        - 2 * xy.mean()
    )


def expected(shift, width):
    """MMD^2 of N(shift, 1) and N(0, 1) in each of width features: (s / D + 1)^3 by the moments of
    the two, up to the third."""

    def moments(mean):
        mean, one = torch.full((width,), mean).double(), torch.eye(width).double()
        crossed = sum(torch.einsum(f"ij,k->{order}", one, mean) for order in ("ijk", "ikj", "kij"))
        return [
            mean,
            torch.outer(mean, mean) + one,
            torch.einsum("i,j,k->ijk", mean, mean, mean) + crossed,
        ]

    def kernel(a, b):
        return 1 + sum(
            binomial * float((p * q).sum()) / width**power
            for power, binomial, p, q in zip((1, 2, 3), (3, 3, 1), moments(a), moments(b))
        )

    return kernel(shift, shift) + kernel(0.0, 0.0) - 2 * kernel(shift, 0.0)


@pytest.mark.parametrize("entries", [2**23, 100])
def test_it_equals_other_implementations(monkeypatch, entries):
    monkeypatch.setattr(distances, "ENTRIES", entries)
    x, y = normal(60, 24, 0), normal(60, 24, 1, shift=0.3)
    found = kid(x, y)
    whole = kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=60, verbose=False)[
        "kernel_inception_distance_mean"
    ]
    assert found == pytest.approx(float(poly_mmd(x, y)), rel=1e-9)
    assert found == pytest.approx(whole, rel=1e-9)
    assert kid(x, y[:37]) == pytest.approx(by_hand(x, y[:37]), rel=1e-9)
    assert kid(x.float(), y.float()) == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_it_is_unbiased_over_200_draws(shift):
    """Of 30 rows against 20: an estimate over all pairs, a row with itself among them, would be
    over 40 errors off."""
    draws = torch.tensor(
        [kid(normal(30, 16, 2 * seed, shift), normal(20, 16, 2 * seed + 1)) for seed in range(200)]
    )
    assert abs(draws.mean() - expected(shift, 16)) < 3 * draws.std() / 200**0.5
    assert expected(0.0, 16) == 0 < expected(0.3, 16)


def test_the_expectation_used_above_is_that_of_many_rows():
    assert kid(normal(3000, 4, 0, shift=1.0), normal(3000, 4, 1)) == pytest.approx(
        expected(1.0, 4), rel=0.1
    )


def test_a_replicate_is_the_kid_of_repeated_rows_without_pairs_of_one_row():
    x, y = normal(6, 5, 0), normal(4, 5, 1, shift=1.0)
    found = kid_replicates(x, y, draws=3, key=("k",))
    assert found.shape == (3,) and found.dtype == torch.float64

    def within(rows, of):
        pairs = [(i, j) for i in rows for j in rows if i != j]
        return sum(((of[i] @ of[j] / 5 + 1) ** 3).item() for i, j in pairs) / len(pairs)

    for draw in range(3):
        a, b = (
            [
                i
                for i, count in enumerate(_counts(n, 3, "k", of)[draw].long().tolist())
                for _ in range(count)
            ]
            for n, of in ((6, "x"), (4, "y"))
        )
        cross = sum(((x[i] @ y[j] / 5 + 1) ** 3).item() for i in a for j in b) / 24
        assert found[draw].item() == pytest.approx(within(a, x) + within(b, y) - 2 * cross)


def test_two_rows_always_have_a_pair():
    found = kid_replicates(normal(2, 3, 0), normal(3, 3, 1), draws=50)
    assert torch.isfinite(found).all()


def test_the_interval_covers_the_truth_at_its_level():
    """Where the distributions differ, about 95% of 200; where they are equal it is wider than it
    need be."""

    def covered(shift):
        hits = 0
        for seed in range(200):
            low, high = interval(
                kid_replicates(
                    normal(50, 12, 2 * seed, shift), normal(50, 12, 2 * seed + 1), key=(seed,)
                )
            )
            hits += low <= expected(shift, 12) <= high
        return hits / 200

    assert 0.91 <= covered(0.5) <= 0.98
    assert covered(0.0) >= 0.95


def test_replicates_of_two_models_are_paired():
    """A model and the same one with a little noise: the difference is known far better than
    either."""
    x, y = normal(80, 6, 0, shift=0.5), normal(70, 6, 1)
    a, b = kid_replicates(x, y, key=(3,)), kid_replicates(x + 0.05 * normal(80, 6, 2), y, key=(3,))
    width = [
        high - low
        for low, high in (
            interval(a - b),
            interval(a - kid_replicates(x, y, key=(4,))),
            interval(a),
        )
    ]
    assert width[0] < width[2] / 5 < width[1] / 5
    assert torch.equal(a[:20], kid_replicates(x, y, draws=20, key=(3,)))


def test_what_cannot_be_judged_is_said():
    x, y = normal(10, 4, 0), normal(10, 4, 1)
    for a, b, message in [
        (x[:1], y, "images judged: 1, where this metric needs 2"),
        (x * float("nan"), y, "10 of 10 rows"),
    ]:
        for metric in (kid, kid_replicates):
            with pytest.raises(UserError, match=message):
                metric(a, b)
    assert kid(torch.ones(5, 3), torch.ones(4, 3)) == 0
