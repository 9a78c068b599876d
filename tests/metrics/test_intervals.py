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

from metrics import intervals as intervals
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


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.3, 0.1, 0.4], [5.0, 5.0, 5.0, 5.5, 4.0, 2.0]])
def test_without_replicates_it_is_students_interval_over_seeds(values):
    low, high = scipy.stats.t.interval(
        0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values)
    )
    found = intervals.mean_over(values)
    assert (found.value, *found.interval(), found.n) == (
        pytest.approx(np.mean(values)),
        pytest.approx(low),
        pytest.approx(high),
        len(values),
    )


def test_one_seed_has_no_interval_and_equal_ones_a_point():
    assert intervals.mean_over([3.0]).interval() == (None, None)
    assert intervals.mean_over([3.0, 3.0]).interval() == (3.0, 3.0)
    for broken in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite"):
            intervals.mean_over(broken)


def test_one_seed_has_the_interval_of_its_images():
    replicates = np.random.default_rng(0).normal(5, 0.3, 200)
    found = intervals.mean_over([5.0], [replicates], images=15)
    assert found.interval() == pytest.approx(
        scipy.stats.t.interval(0.95, 14, 5, replicates.std(ddof=1) * (15 / 14) ** 0.5)
    )


def test_one_image_tells_no_interval():
    """All draws of it are alike, which is no certainty: a difference is not told apart by it."""
    assert intervals.image_interval(3.0, [3.0] * 200, 1) == (None, None)
    one = intervals.mean_over([3.0], [[3.0] * 200], images=1)
    assert one.interval() == (None, None) and one.holds_zero()
    over_seeds = intervals.mean_over(
        [3.0, 3.5, 4.1], [[v] * 200 for v in (3.0, 3.5, 4.1)], images=1
    )
    assert over_seeds.interval() == pytest.approx(intervals.mean_over([3.0, 3.5, 4.1]).interval())


@pytest.mark.parametrize("images", [2, 3, 5, 20])
def test_a_run_of_few_images_has_an_interval_that_holds_the_truth(images):
    """Losses of images are skewed: the last digit of 95 is lost by it, not by the number of images.
    Of normal ones Student's is exact."""
    rng, held = (
        np.random.default_rng(images),
        {"normal": [], "skewed": [], "normal, by percentiles": [], "skewed, by percentiles": []},
    )
    counts = intervals.resampled(images, 200, "few").numpy() / images
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


def test_both_spreads_are_in_one_interval():
    """The variance and Satterthwaite's degrees of freedom, from the equations, in numpy."""
    rng = np.random.default_rng(0)
    values, alike, apart = (
        rng.normal(1, 0.3, 3),
        rng.normal(0, 0.1, 200),
        rng.normal(0, 0.2, (3, 200)),
    )
    drawn = values[:, None] + alike + apart
    # a bootstrap of 50 images has 49 / 50 of the variance
    factor, rest = (
        50 / 49,
        drawn - drawn.mean(0),
    )
    of_images, own = (
        factor * drawn.mean(0).var(ddof=1),
        factor * sum(rest[s].var(ddof=1) for s in range(3)) / 2,
    )
    of_seeds = values.var(ddof=1)
    variance = of_images + max(0, of_seeds - own) / 3
    larger = 2 * of_seeds / 3  # 1 + 2 / f of f = 2
    freedom = (larger + of_images) ** 2 / (of_images**2 / 49 + larger**2 / 2)
    found = intervals.mean_over(values, drawn, images=50)
    assert own == pytest.approx(0.04, rel=0.15) and of_images == pytest.approx(
        0.01 + 0.04 / 3, rel=0.3
    )
    assert found.interval() == pytest.approx(
        scipy.stats.t.interval(0.95, freedom, values.mean(), variance**0.5)
    )


@pytest.mark.parametrize("x", [1e-6, 0.01, 0.5, 1.6, 4.9, 300.0])
def test_trigamma_is_inverted(x):
    assert scipy.special.polygamma(1, intervals.trigamma_inverse(x)) == pytest.approx(x, rel=1e-9)


def test_variances_are_moderated_as_smyth_has_it():
    """By his formulas in scipy, with d0 from a root finder; contrasts of different numbers of
    seeds."""
    rng = np.random.default_rng(5)
    many = {
        k: intervals.Spread(
            float(scipy.stats.invgamma.rvs(2, scale=2, random_state=rng) * rng.chisquare(d) / d), d
        )
        for k, d in enumerate(rng.integers(1, 20, 300).tolist())
    }
    s2, d = np.array(list(many.values())).T
    e = np.log(s2) - scipy.special.digamma(d / 2) + np.log(d / 2)
    between = e.var(ddof=1) - scipy.special.polygamma(1, d / 2).mean()
    half = scipy.optimize.brentq(
        lambda y: scipy.special.polygamma(1, y) - between, 1e-3, 1e6, rtol=1e-14
    )
    common = np.exp(e.mean() + scipy.special.digamma(half) - np.log(half))
    assert 3 < 2 * half < 5.5  # 4 were put in
    for k, (variance, freedom) in intervals.moderated(many).items():
        d0 = min(2 * half, (4 * 300 / 303 - 1) * d[k])
        mixed = (d0 * common + d[k] * s2[k]) / (d0 + d[k])
        assert (variance, freedom) == pytest.approx(
            (mixed, d0 + d[k]) if mixed > s2[k] else (s2[k], d[k])
        )


def test_alike_variances_tell_together_what_equal_contrasts_can():
    """The mean of m variances of differences to the same strategy has 4 m / (m + 3) times the
    freedom of one: by simulation."""
    s2 = np.diff(
        np.random.default_rng(0)
        .normal(size=(40_000, 5, 3))[:, [0, 1, 0, 2, 0, 3, 0, 4]]
        .reshape(-1, 4, 2, 3),
        axis=2,
    )
    mean = s2[:, :, 0].var(2, ddof=1).mean(1)
    told = 2 * mean.mean() ** 2 / mean.var()
    found = intervals.moderated(dict.fromkeys(range(4), intervals.Spread(0.5, 2)))
    assert told == pytest.approx(2 * 4 * 4 / 7, rel=0.04) and found[0].freedom == pytest.approx(
        2 * 4 * 4 / 7
    )


def test_a_noisy_contrast_keeps_its_variance_and_leaves_the_others_theirs():
    own = {
        k: intervals.Spread(v, 2) for k, v in {"a": 0.9, "b": 1.0, "c": 1.2, "noisy": 225.0}.items()
    }
    found = intervals.moderated(own)
    assert found["noisy"] == own["noisy"]
    # pooled: 57
    assert all(own[k].variance <= found[k].variance < 5 and found[k].freedom < 4 for k in "abc")


def test_what_tells_nothing_to_others_is_left_alone():
    assert intervals.moderated({}) == {}
    alone = {"a": intervals.Spread(2.0, 2)}
    assert intervals.moderated(alone) == alone
    assert intervals.moderated(alone | {"b": intervals.Spread(0.0, 2)}) == alone | {
        "b": intervals.Spread(0.0, 2)
    }
    found = intervals.moderated(
        {k: intervals.Spread(v, 2) for k, v in {"a": 1.0, "b": 1.5, "zero": 0.0}.items()}
    )
    assert 0 < found["zero"].variance < 1.5


def test_holms_steps():
    """Against the p values of scipy, taken one by one as Holm wrote it."""
    rng = np.random.default_rng(1)
    for _ in range(30):
        m = rng.integers(1, 7)
        found = {
            k: intervals.Mean(
                float(rng.normal(1.5, 2)), 3, float(rng.uniform(0.3, 2)), float(rng.uniform(2, 20))
            )
            for k in range(m)
        }
        p = {
            k: 2 * scipy.stats.t.sf(abs(d.value) / d.variance**0.5, d.freedom)
            for k, d in found.items()
        }
        rejected = set()
        for step, k in enumerate(sorted(p, key=p.get)):
            if p[k] > 0.05 / (m - step):
                break
            rejected.add(k)
        asked = intervals.told_apart(found | {"unknown": intervals.Mean(3.0, 1)})
        assert (
            asked.keys() == found.keys()
            and {k for k, level in asked.items() if not found[k].holds_zero(level)} == rejected
        )


def test_a_share_of_none_has_an_interval():
    from scipy.stats import binomtest

    for count, n in ((0, 15), (3, 40), (40, 40)):
        theirs = binomtest(count, n).proportion_ci(method="wilson")
        assert intervals.wilson(count, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def made_up(
    rng,
    strategies: int,
    seeds: int,
    training: float,
    own: float,
    alike: float,
    worse=0.0,
    draws: int = 60,
):
    """(values [strategies, seeds], replicates [strategies, seeds, draws]) of equal strategies:
    training, own and alike are the standard deviations of a training, of the images for one run
    alone, and of the images for all runs of a strategy; all share what the seed and the test images
    do to every run. worse: added to all but the first."""

    def sizes(*shape):
        return rng.normal(size=shape)

    common = 5 * sizes(1, 1) + 3 * sizes(1, seeds)
    values = (
        common
        + training * sizes(strategies, seeds)
        + own * sizes(strategies, seeds)
        + alike * sizes(strategies, 1)
    )
    values[1:] += worse
    drawn = (
        5 * sizes(1, 1, draws)
        + alike * sizes(strategies, 1, draws)
        + own * sizes(strategies, seeds, draws)
    )
    return values, values[..., None] + drawn


DRAWN = 250  # sweeps
SHAPES = {
    "both": (1.0, 0.7, 0.5),
    "mostly training": (1.0, 0.2, 0.2),
    "mostly images": (0.2, 1.0, 0.5),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("strategies", "seeds"), [(2, 2), (2, 3), (4, 3)])
def test_an_interval_of_differences_that_are_none_holds_zero(strategies, seeds, shape):
    """Of equal strategies, at 95%: 93 of 100 and more, but 90 where two trainings of two strategies
    tell nearly all."""
    held, rng = [], np.random.default_rng([strategies, seeds])
    for _ in range(DRAWN):
        values, drawn = made_up(rng, strategies, seeds, *SHAPES[shape])
        spreads = intervals.moderated(
            {k: intervals.spread_of(values[k] - values[0]) for k in range(1, strategies)}
        )
        held.append(
            intervals.mean_over(
                values[1] - values[0], drawn[1] - drawn[0], 500, spreads[1]
            ).holds_zero()
        )
    print(
        f"{strategies} strategies, {seeds} seeds, {shape}: {100 * np.mean(held):.1f} of 100 hold 0"
    )
    least = 0.90 if (strategies, seeds, shape) == (2, 2, "mostly training") else 0.93
    assert np.mean(held) >= least - 2 * (least * (1 - least) / DRAWN) ** 0.5


def test_of_one_seed_it_holds_the_difference_of_the_two_networks():
    """And not that of the strategies, which one training each cannot tell."""
    held, rng = [], np.random.default_rng(0)
    for _ in range(DRAWN):
        networks = 3 * rng.normal(size=2)
        values, drawn = made_up(rng, 2, 1, 0.0, 0.7, 0.5)
        d = intervals.mean_over(
            values[1] - values[0] + networks[1] - networks[0],
            drawn[1] - drawn[0] + networks[1] - networks[0],
            500,
        )
        low, high = d.interval()
        held.append(low <= networks[1] - networks[0] <= high)
        assert not intervals.is_best([d])
    print(f"one seed: {100 * np.mean(held):.1f} of 100")
    assert np.mean(held) >= 0.93 - 2 * (0.93 * 0.07 / DRAWN) ** 0.5


def test_counts_are_of_rows_drawn_with_replacement():
    counts, rows = intervals.resampled(50, 400, 7, "x"), intervals.resampled_rows(50, 400, 7, "x")
    assert counts.shape == rows.shape == (400, 50) and counts.dtype == torch.float64
    assert all(
        torch.equal(c, torch.bincount(r, minlength=50).double()) for c, r in zip(counts, rows)
    )
    assert (counts.sum(1) == 50).all()
    # each row once on average, with variance 1 - 1/50
    assert counts.mean(0).sub(1).abs().max() < 5 / 400**0.5
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
    covered = [
        low <= 0 <= high
        for low, high in (
            intervals.interval(intervals.bootstrap_mean(row, key=(k,)))
            for k, row in enumerate(samples)
        )
    ]
    assert 0.90 <= np.mean(covered) <= 0.985


def test_an_interval_leaves_its_share_on_either_side():
    assert intervals.interval(range(101)) == (pytest.approx(2.5), pytest.approx(97.5))
    with pytest.raises(ValueError, match="finite"):
        intervals.interval([1.0, float("nan")])


def test_paired_replicates_tell_models_apart_that_their_intervals_do_not():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    a, b = (intervals.bootstrap_mean(v, key=("e",)) for v in (values + 0.05, values))
    assert intervals.mean_over([0.05], [(a - b).tolist()]).interval() == (
        pytest.approx(0.05),
        pytest.approx(0.05),
    )
    assert intervals.interval(a)[0] < intervals.interval(b)[1]


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
