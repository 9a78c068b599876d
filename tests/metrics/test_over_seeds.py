"""Means over seeds, and which differ: against scipy, by simulation, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch

from metrics import intervals, resampling
from metrics.over_seeds import (
    Mean,
    Spread,
    is_best,
    mean_over,
    moderated,
    spread_of,
    told_apart,
    trigamma_inverse,
)


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.3, 0.1, 0.4], [5.0, 5.0, 5.0, 5.5, 4.0, 2.0]])
def test_without_replicates_it_is_students_interval_over_seeds(values):
    low, high = scipy.stats.t.interval(
        0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values)
    )
    found = mean_over(values)
    assert (found.value, *found.interval(), found.n) == (
        pytest.approx(np.mean(values)),
        pytest.approx(low),
        pytest.approx(high),
        len(values),
    )


def test_one_seed_has_no_interval_and_equal_ones_a_point():
    assert mean_over([3.0]).interval() == (None, None)
    assert mean_over([3.0, 3.0]).interval() == (3.0, 3.0)
    for broken in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite"):
            mean_over(broken)


def test_one_seed_has_the_interval_of_its_images():
    replicates = np.random.default_rng(0).normal(5, 0.3, 200)
    found = mean_over([5.0], [replicates], images=15)
    assert found.interval() == pytest.approx(
        scipy.stats.t.interval(0.95, 14, 5, replicates.std(ddof=1) * (15 / 14) ** 0.5)
    )


def test_one_image_tells_no_interval():
    """All draws of it are alike, which is no certainty: a difference is not told apart by it."""
    assert intervals.image_interval(3.0, [3.0] * 200, 1) == (None, None)
    one = mean_over([3.0], [[3.0] * 200], images=1)
    assert one.interval() == (None, None) and one.holds_zero()
    over_seeds = mean_over([3.0, 3.5, 4.1], [[v] * 200 for v in (3.0, 3.5, 4.1)], images=1)
    assert over_seeds.interval() == pytest.approx(mean_over([3.0, 3.5, 4.1]).interval())


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
    found = mean_over(values, drawn, images=50)
    assert own == pytest.approx(0.04, rel=0.15) and of_images == pytest.approx(
        0.01 + 0.04 / 3, rel=0.3
    )
    assert found.interval() == pytest.approx(
        scipy.stats.t.interval(0.95, freedom, values.mean(), variance**0.5)
    )


@pytest.mark.parametrize("x", [1e-6, 0.01, 0.5, 1.6, 4.9, 300.0])
def test_trigamma_is_inverted(x):
    assert scipy.special.polygamma(1, trigamma_inverse(x)) == pytest.approx(x, rel=1e-9)


def test_variances_are_moderated_as_smyth_has_it():
    """By his formulas in scipy, with d0 from a root finder; contrasts of different numbers of
    seeds."""
    rng = np.random.default_rng(5)
    many = {
        k: Spread(
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
    for k, (variance, freedom) in moderated(many).items():
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
    found = moderated(dict.fromkeys(range(4), Spread(0.5, 2)))
    assert told == pytest.approx(2 * 4 * 4 / 7, rel=0.04) and found[0].freedom == pytest.approx(
        2 * 4 * 4 / 7
    )


def test_a_noisy_contrast_keeps_its_variance_and_leaves_the_others_theirs():
    own = {k: Spread(v, 2) for k, v in {"a": 0.9, "b": 1.0, "c": 1.2, "noisy": 225.0}.items()}
    found = moderated(own)
    assert found["noisy"] == own["noisy"]
    # pooled: 57
    assert all(own[k].variance <= found[k].variance < 5 and found[k].freedom < 4 for k in "abc")


def test_what_tells_nothing_to_others_is_left_alone():
    assert moderated({}) == {}
    alone = {"a": Spread(2.0, 2)}
    assert moderated(alone) == alone
    assert moderated(alone | {"b": Spread(0.0, 2)}) == alone | {"b": Spread(0.0, 2)}
    found = moderated({k: Spread(v, 2) for k, v in {"a": 1.0, "b": 1.5, "zero": 0.0}.items()})
    assert 0 < found["zero"].variance < 1.5


def test_holms_steps():
    """Against the p values of scipy, taken one by one as Holm wrote it."""
    rng = np.random.default_rng(1)
    for _ in range(30):
        m = rng.integers(1, 7)
        found = {
            k: Mean(
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
        asked = told_apart(found | {"unknown": Mean(3.0, 1)})
        assert (
            asked.keys() == found.keys()
            and {k for k, level in asked.items() if not found[k].holds_zero(level)} == rejected
        )


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
        spreads = moderated({k: spread_of(values[k] - values[0]) for k in range(1, strategies)})
        held.append(
            mean_over(values[1] - values[0], drawn[1] - drawn[0], 500, spreads[1]).holds_zero()
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
        d = mean_over(
            values[1] - values[0] + networks[1] - networks[0],
            drawn[1] - drawn[0] + networks[1] - networks[0],
            500,
        )
        low, high = d.interval()
        held.append(low <= networks[1] - networks[0] <= high)
        assert not is_best([d])
    print(f"one seed: {100 * np.mean(held):.1f} of 100")
    assert np.mean(held) >= 0.93 - 2 * (0.93 * 0.07 / DRAWN) ** 0.5


def test_paired_replicates_tell_models_apart_that_their_intervals_do_not():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    a, b = (resampling.bootstrap_mean(v, key=("e",)) for v in (values + 0.05, values))
    assert mean_over([0.05], [(a - b).tolist()]).interval() == (
        pytest.approx(0.05),
        pytest.approx(0.05),
    )
    assert intervals.interval(a)[0] < intervals.interval(b)[1]
