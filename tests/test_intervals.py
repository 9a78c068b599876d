"""Intervals: t against scipy, the bootstrap against what it estimates, pairing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats
import torch

from evaluation import intervals
from evaluation.record import estimate


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99, 0.999])
@pytest.mark.parametrize("freedom", [1, 2, 2.7, 3, 4, 5, 8, 9.1, 30, 31, 1000, math.inf])
def test_t_quantiles_equal_scipys(freedom, level):
    theirs = scipy.stats.norm.ppf((1 + level) / 2) if freedom == math.inf else scipy.stats.t.ppf((1 + level) / 2, freedom)
    assert intervals.t_quantile(freedom, level) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.3, 0.1, 0.4], [5.0, 5.0, 5.0, 5.5, 4.0, 2.0]])
def test_without_replicates_it_is_students_interval_over_seeds(values):
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
    found = intervals.mean_over(values)
    assert (found.value, *found.interval(), found.n) == (
        pytest.approx(np.mean(values)), pytest.approx(low), pytest.approx(high), len(values))


def test_one_seed_has_no_interval_and_equal_ones_a_point():
    assert intervals.mean_over([3.0]).interval() == (None, None)
    assert intervals.mean_over([3.0, 3.0]).interval() == (3.0, 3.0)
    for broken in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite"):
            intervals.mean_over(broken)


def test_one_seed_has_the_interval_of_its_images():
    replicates = np.random.default_rng(0).normal(5, 0.3, 200)
    found = intervals.mean_over([5.0], [replicates], images=15)
    assert found.interval() == pytest.approx(scipy.stats.t.interval(0.95, 14, 5, replicates.std(ddof=1)))


def test_both_spreads_are_in_one_interval():
    """The variance and Satterthwaite's degrees of freedom, from the equations, in numpy."""
    rng = np.random.default_rng(0)
    values, alike, apart = rng.normal(1, 0.3, 3), rng.normal(0, 0.1, 200), rng.normal(0, 0.2, (3, 200))
    drawn = values[:, None] + alike + apart
    of_images, rest = drawn.mean(0).var(ddof=1), drawn - drawn.mean(0)
    own = sum(rest[s].var(ddof=1) for s in range(3)) / 2
    of_seeds = values.var(ddof=1)
    variance = of_images + max(0, of_seeds - own) / 3
    larger = 2 * of_seeds / 3  # 1 + 2 / f of f = 2
    freedom = (larger + of_images) ** 2 / (of_images**2 / 49 + larger**2 / 2)
    found = intervals.mean_over(values, drawn, images=50)
    assert own == pytest.approx(0.04, rel=0.15) and of_images == pytest.approx(0.01 + 0.04 / 3, rel=0.3)
    assert found.interval() == pytest.approx(scipy.stats.t.interval(0.95, freedom, values.mean(), variance**0.5))


def test_what_all_strategies_tell_is_the_residual_of_two_ways():
    table = np.random.default_rng(0).normal(0, 2, (5, 4))
    found = intervals.between_trainings({k: {s: table[k, s] for s in range(4)} | {9 + k: 1e9} for k in range(5)})  # not all have 9 + k
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    assert found == (pytest.approx((rest**2).sum() / 12), 12)
    assert intervals.between_trainings({0: {0: 1.0}, 1: {0: 2.0}}) is None is intervals.between_trainings({0: {0: 1.0, 1: 2.0}})
    a, b = {0: 1.0, 1: 4.0, 2: 5.0}, {0: 2.0, 1: 3.0, 2: 9.0}
    two = intervals.between_trainings({"a": a, "b": b})  # of two strategies: that of their differences, which has twice the variance
    assert 2 * two.variance == pytest.approx(np.var([a[s] - b[s] for s in a], ddof=1)) and two.freedom == 2


def test_holms_steps():
    """Against the p values of scipy, taken one by one as Holm wrote it."""
    rng = np.random.default_rng(1)
    for _ in range(30):
        m = rng.integers(1, 7)
        found = {k: intervals.Mean(float(rng.normal(1.5, 2)), 3, float(rng.uniform(0.3, 2)), float(rng.uniform(2, 20))) for k in range(m)}
        p = {k: 2 * scipy.stats.t.sf(abs(d.value) / d.variance**0.5, d.freedom) for k, d in found.items()}
        rejected = set()
        for step, k in enumerate(sorted(p, key=p.get)):
            if p[k] > 0.05 / (m - step):
                break
            rejected.add(k)
        asked = intervals.told_apart(found | {"unknown": intervals.Mean(3.0, 1)})
        assert asked.keys() == found.keys() and {k for k, level in asked.items() if not found[k].holds_zero(level)} == rejected


def test_a_share_of_none_has_an_interval():
    from scipy.stats import binomtest

    for count, n in ((0, 15), (3, 40), (40, 40)):
        theirs = binomtest(count, n).proportion_ci(method="wilson")
        assert intervals.wilson(count, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def made_up(rng, strategies: int, seeds: int, training: float, own: float, alike: float, worse=0.0, draws: int = 60):
    """(values [strategies, seeds], replicates [strategies, seeds, draws]) of equal strategies: training, own and alike are the standard
    deviations of a training, of the images for one run alone, and of the images for all runs of a strategy; all share what the seed and
    the test images do to every run. worse: added to all but the first."""
    def sizes(*shape):
        return rng.normal(size=shape)

    common = 5 * sizes(1, 1) + 3 * sizes(1, seeds)
    values = common + training * sizes(strategies, seeds) + own * sizes(strategies, seeds) + alike * sizes(strategies, 1)
    values[1:] += worse
    drawn = 5 * sizes(1, 1, draws) + alike * sizes(strategies, 1, draws) + own * sizes(strategies, seeds, draws)
    return values, values[..., None] + drawn


DRAWN = 250  # sweeps
SHAPES = {"both": (1.0, 0.7, 0.5), "mostly training": (1.0, 0.2, 0.2), "mostly images": (0.2, 1.0, 0.5)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("strategies", "seeds"), [(2, 2), (2, 3), (4, 3)])
def test_an_interval_of_differences_that_are_none_holds_zero(strategies, seeds, shape):
    """Of equal strategies, at 95%: 93 of 100 and more, but 90 where two trainings of two strategies tell nearly all."""
    held, rng = [], np.random.default_rng([strategies, seeds])
    for _ in range(DRAWN):
        values, drawn = made_up(rng, strategies, seeds, *SHAPES[shape])
        spread = intervals.between_trainings({k: dict(enumerate(row)) for k, row in enumerate(values)})
        pooled = intervals.Pooled(2 * spread.variance, spread.freedom)
        held.append(intervals.mean_over(values[1] - values[0], drawn[1] - drawn[0], 500, pooled).holds_zero())
    print(f"{strategies} strategies, {seeds} seeds, {shape}: {100 * np.mean(held):.1f} of 100 hold 0")
    least = 0.90 if (strategies, seeds, shape) == (2, 2, "mostly training") else 0.93
    assert np.mean(held) >= least - 2 * (least * (1 - least) / DRAWN) ** 0.5


def test_of_one_seed_it_holds_the_difference_of_the_two_networks():
    """And not that of the strategies, which one training each cannot tell."""
    held, rng = [], np.random.default_rng(0)
    for _ in range(DRAWN):
        networks = 3 * rng.normal(size=2)
        values, drawn = made_up(rng, 2, 1, 0.0, 0.7, 0.5)
        d = intervals.mean_over(values[1] - values[0] + networks[1] - networks[0], drawn[1] - drawn[0] + networks[1] - networks[0], 500)
        low, high = d.interval()
        held.append(low <= networks[1] - networks[0] <= high)
        assert not intervals.is_best([d])
    print(f"one seed: {100 * np.mean(held):.1f} of 100")
    assert np.mean(held) >= 0.93 - 2 * (0.93 * 0.07 / DRAWN) ** 0.5


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
    assert intervals.mean_over([0.05], [(a - b).tolist()]).interval() == (pytest.approx(0.05), pytest.approx(0.05))
    assert intervals.interval(a)[0] < intervals.interval(b)[1]


def test_an_estimate_is_json_that_pairs_again():
    replicates = 1e-3 * torch.randn(200, generator=torch.Generator().manual_seed(0)).double() + 0.123456789
    made = json.loads(json.dumps(estimate(0.123, replicates, 77), allow_nan=False))
    assert list(made) == ["value", "low", "high", "replicates", "images"] and made["value"] == 0.123 and made["images"] == 77
    assert (made["low"], made["high"]) == intervals.interval(replicates)
    assert made["replicates"] == pytest.approx(replicates.tolist(), rel=5e-6)
    assert max(len(str(r)) for r in made["replicates"]) <= 9
    for value, r in ((float("nan"), replicates), (0.1, replicates / 0)):
        with pytest.raises(ValueError, match="finite"):
            estimate(value, r, 5)
