"""Intervals: t against scipy, the bootstrap against what it estimates, pairing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch

from metrics import intervals, resampling
from metrics.estimate import estimate


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99, 0.999])
@pytest.mark.parametrize("freedom", [1, 2, 2.7, 3, 4, 5, 8, 9.1, 30, 31, 1000, math.inf])
def test_t_quantiles_equal_scipys(freedom, level):
    theirs = (
        scipy.stats.norm.ppf((1 + level) / 2)
        if freedom == math.inf
        else scipy.stats.t.ppf((1 + level) / 2, freedom)
    )
    assert intervals.t_quantile(freedom, level) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("images", [2, 3, 5, 20])
def test_a_run_of_few_images_has_an_interval_that_holds_the_truth(images):
    """Losses of images are skewed: the last digit of 95 is lost by it, not by the number of images.
    Of normal ones Student's is exact."""
    rng, held = (
        np.random.default_rng(images),
        {"normal": [], "skewed": [], "normal, by percentiles": [], "skewed, by percentiles": []},
    )
    counts = resampling.resampled(images, 200, "few").numpy() / images
    for values, name in [
        (rng.normal(size=(1000, images)), "normal"),
        (rng.gamma(6, 1 / 6, (1000, images)) - 1, "skewed"),
    ]:
        for v in values:
            low, high = intervals.image_interval(v.mean(), counts @ v, images)
            held[name].append(low <= 0 <= high)
            low, high = intervals.interval(counts @ v)
            held[f"{name}, by percentiles"].append(low <= 0 <= high)
    print(
        f"{images} images:", {name: f"{np.mean(h):.3f} hold the truth" for name, h in held.items()}
    )
    assert 0.93 <= np.mean(held["normal"]) <= 0.975 and np.mean(held["skewed"]) >= 0.91
    # too narrow
    assert max(np.mean(held[f"{name}, by percentiles"]) for name in ("normal", "skewed")) < 0.935


def test_of_many_images_the_interval_is_of_percentiles():
    replicates = np.random.default_rng(0).gamma(2, 1, 200)
    assert intervals.image_interval(2.0, replicates, intervals.FEW) == intervals.interval(
        replicates
    )


def test_a_share_of_none_has_an_interval():
    from scipy.stats import binomtest

    for count, n in ((0, 15), (3, 40), (40, 40)):
        theirs = binomtest(count, n).proportion_ci(method="wilson")
        assert intervals.wilson(count, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_counts_are_of_rows_drawn_with_replacement():
    counts, rows = resampling.resampled(50, 400, 7, "x"), resampling.resampled_rows(50, 400, 7, "x")
    assert counts.shape == rows.shape == (400, 50) and counts.dtype == torch.float64
    assert all(
        torch.equal(c, torch.bincount(r, minlength=50).double()) for c, r in zip(counts, rows)
    )
    assert (counts.sum(1) == 50).all()
    # each row once on average, with variance 1 - 1/50
    assert counts.mean(0).sub(1).abs().max() < 5 / 400**0.5
    assert counts.var(0).mean() == pytest.approx(0.98, rel=0.05)


def test_counts_are_a_function_of_key_number_and_draw():
    counts = resampling.resampled(20, 10, 1)
    assert torch.equal(counts[:4], resampling.resampled(20, 4, 1))
    assert not torch.equal(counts, resampling.resampled(20, 10, 2))
    assert not torch.equal(counts[0], counts[1])


def test_the_bootstrap_of_a_mean_has_its_error_and_covers_it():
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)).double() + 4
    replicates = resampling.bootstrap_mean(values, draws=2000)
    assert replicates.mean().item() == pytest.approx(values.mean().item(), abs=0.01)
    assert replicates.std().item() == pytest.approx(values.std().item() / 200**0.5, rel=0.1)
    samples = torch.randn(200, 60, generator=torch.Generator().manual_seed(1))
    covered = [
        low <= 0 <= high
        for low, high in (
            intervals.interval(resampling.bootstrap_mean(row, key=(k,)))
            for k, row in enumerate(samples)
        )
    ]
    assert 0.90 <= np.mean(covered) <= 0.985


def test_an_interval_leaves_its_share_on_either_side():
    assert intervals.interval(range(101)) == (pytest.approx(2.5), pytest.approx(97.5))
    with pytest.raises(ValueError, match="finite"):
        intervals.interval([1.0, float("nan")])


def test_an_estimate_is_json_that_pairs_again():
    replicates = (
        1e-3 * torch.randn(200, generator=torch.Generator().manual_seed(0)).double() + 0.123456789
    )
    made = json.loads(json.dumps(estimate(0.123, replicates, 77), allow_nan=False))
    assert (
        list(made) == ["value", "low", "high", "replicates", "images"]
        and made["value"] == 0.123
        and made["images"] == 77
    )
    assert (made["low"], made["high"]) == intervals.interval(replicates)
    one = json.loads(json.dumps(estimate(0.123, replicates, 1)))
    assert one["low"] is one["high"] is None
    assert made["replicates"] == pytest.approx(replicates.tolist(), rel=5e-6)
    assert max(len(str(r)) for r in made["replicates"]) <= 9
    for value, r in ((float("nan"), replicates), (0.1, replicates / 0)):
        with pytest.raises(ValueError, match="finite"):
            estimate(value, r, 5)
