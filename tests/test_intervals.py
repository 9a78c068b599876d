"""Intervals: t against scipy, the bootstrap against what it estimates, pairing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats
import torch

from evaluation import intervals
from evaluation.record import estimate


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99, 0.999])
@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 9, 30, 31, 1000])
def test_t_quantiles_equal_scipys(freedom, level):
    assert intervals.t_quantile(freedom, level) == pytest.approx(scipy.stats.t.ppf((1 + level) / 2, freedom), rel=1e-9)


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.3, 0.1, 0.4], [5.0, 5.0, 5.0, 5.5, 4.0, 2.0]])
def test_over_seeds_is_students_interval(values):
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
    assert intervals.over_seeds(values) == (pytest.approx(np.mean(values)), pytest.approx(low), pytest.approx(high), len(values))


def test_one_seed_has_no_interval_and_equal_ones_a_point():
    assert intervals.over_seeds([3.0]) == (3.0, None, None, 1)
    assert intervals.over_seeds([3.0, 3.0]) == (3.0, 3.0, 3.0, 2)
    for broken in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite"):
            intervals.over_seeds(broken)


def test_paired_over_the_seeds_that_both_have():
    found = intervals.paired_over_seeds({0: 5.0, 1: 7.0, 2: 100.0}, {1: 6.0, 0: 3.0, 3: 0.0})
    assert found == intervals.over_seeds([2.0, 1.0])
    assert intervals.paired_over_seeds({0: 1.0}, {1: 2.0}) is None


def test_counts_are_of_rows_drawn_with_replacement():
    counts, rows = intervals.resampled(50, 400, 7, "x"), intervals.resampled_rows(50, 400, 7, "x")
    assert counts.shape == rows.shape == (400, 50) and counts.dtype == torch.float64
    assert all(torch.equal(c, torch.bincount(r, minlength=50).double()) for c, r in zip(counts, rows))
    assert (counts.sum(1) == 50).all()
    assert counts.mean(0).sub(1).abs().max() < 5 / 400**0.5  # each row once on average, with variance 1 - 1/50
    assert counts.var(0).mean() == pytest.approx(0.98, rel=0.05)


def test_counts_are_a_function_of_key_number_and_draw():
    counts = intervals.resampled(20, 10, 1)
    assert torch.equal(counts[:4], intervals.resampled(20, 4, 1))
    assert not torch.equal(counts, intervals.resampled(20, 10, 2))
    assert not torch.equal(counts[0], counts[1])


def test_the_bootstrap_of_a_mean_has_its_error_and_covers_it():
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)).double() + 4
    replicates = intervals.bootstrap_mean(values, draws=2000)
    assert replicates.mean().item() == pytest.approx(values.mean().item(), abs=0.01)
    assert replicates.std().item() == pytest.approx(values.std().item() / 200**0.5, rel=0.1)
    samples = torch.randn(200, 60, generator=torch.Generator().manual_seed(1))
    covered = [low <= 0 <= high for low, high in (intervals.interval(intervals.bootstrap_mean(row, key=(k,)))
                                                  for k, row in enumerate(samples))]
    assert 0.90 <= np.mean(covered) <= 0.985


def test_an_interval_leaves_its_share_on_either_side():
    assert intervals.interval(range(101)) == (pytest.approx(2.5), pytest.approx(97.5))
    assert intervals.interval(torch.arange(101.0), level=0.5) == (pytest.approx(25), pytest.approx(75))
    with pytest.raises(ValueError, match="finite"):
        intervals.interval([1.0, float("nan")])


def test_paired_replicates_tell_models_apart_that_their_intervals_do_not():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    a, b = (intervals.bootstrap_mean(v, key=("e",)) for v in (values + 0.05, values))
    assert intervals.paired(a, b) == (pytest.approx(0.05), pytest.approx(0.05))
    assert intervals.interval(a)[0] < intervals.interval(b)[1]
    with pytest.raises(ValueError, match="200 replicates cannot be paired with 100"):
        intervals.paired(a, b[:100])


def test_an_estimate_is_json_that_pairs_again():
    replicates = 1e-3 * torch.randn(200, generator=torch.Generator().manual_seed(0)).double() + 0.123456789
    made = json.loads(json.dumps(estimate(0.123, replicates), allow_nan=False))
    assert list(made) == ["value", "low", "high", "replicates"] and made["value"] == 0.123
    assert (made["low"], made["high"]) == intervals.interval(replicates)
    assert made["replicates"] == pytest.approx(replicates.tolist(), rel=5e-6)
    assert max(len(str(r)) for r in made["replicates"]) <= 9
    for value, r in ((float("nan"), replicates), (0.1, replicates / 0)):
        with pytest.raises(ValueError, match="finite"):
            estimate(value, r)
