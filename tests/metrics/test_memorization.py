"""Copies are caught and fresh draws are not: each number against brute force, scipy and
scikit-learn."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats
import sklearn.cluster
import sklearn.metrics
import torch

from metrics import memorization as m
from metrics.resampling import resampled
from runtime.errors import UserError


def draws(n, seed, dims=8, centres=4):
    """[n, dims] of a mixture: clusters at distance 6 or so."""
    middle = 3 * torch.randn(centres, dims, generator=torch.Generator().manual_seed(99))
    draw = torch.Generator().manual_seed(seed)
    return middle[torch.randint(centres, (n,), generator=draw)] + torch.randn(
        n, dims, generator=draw
    )


TRAIN, TEST, FRESH = draws(400, 0), draws(300, 1), draws(500, 2)
COPIES = TRAIN[torch.randperm(400, generator=torch.Generator().manual_seed(3))]
NOISY = COPIES + 1e-3 * draws(400, 4)


def brute(x, train):
    """All distances, float64, by differences."""
    return np.linalg.norm(x.double().numpy()[:, None] - train.double().numpy()[None], axis=2)


def frechet(x, y):
    (mean, cov), (other, cov_other) = (
        (v.double().numpy().mean(0), np.cov(v.double().numpy().T)) for v in (x, y)
    )
    roots = np.linalg.eigvals(cov @ cov_other).real.clip(0) ** 0.5
    return ((mean - other) ** 2).sum() + np.trace(cov + cov_other) - 2 * roots.sum()


# Nearest


@pytest.mark.parametrize("k", [1, 2, 7])
def test_nearest_is_brute_force(k):
    found, all_of_them = m.nearest(FRESH, TRAIN, k), brute(FRESH, TRAIN)
    np.testing.assert_allclose(found.distances.numpy(), np.sort(all_of_them, 1)[:, :k], rtol=1e-10)
    np.testing.assert_array_equal(found.rows.numpy(), np.argsort(all_of_them, 1)[:, :k])


def test_a_copy_is_at_zero_far_from_the_origin_too():
    far = 1e4 + torch.randn(60, 300, generator=torch.Generator().manual_seed(0))
    found = m.nearest(far[:20], far)
    assert found.distances[:, 0].tolist() == [0.0] * 20 and found.rows[:, 0].tolist() == list(
        range(20)
    )
    np.testing.assert_allclose(
        found.distances.numpy(), np.sort(brute(far[:20], far), 1)[:, :2], rtol=1e-9
    )


# rho


def test_rho_is_the_ratio_of_medians():
    ours, theirs = (np.sort(brute(x, TRAIN), 1)[:, 0] for x in (FRESH, TEST[:99]))
    found = m.rho(*(m.nearest(x, TRAIN, 1).distances[:, 0] for x in (FRESH, TEST[:99])))
    assert found == pytest.approx(np.median(ours) / np.median(theirs), rel=1e-9)
    assert m.rho(torch.tensor([1.0, 2, 9, 4]), torch.tensor([0.0, 5, 1])) == 3.0


def test_replicates_are_the_ratios_of_resampled_medians():
    x, y = (
        torch.rand(31, generator=torch.Generator().manual_seed(1)),
        torch.rand(20, generator=torch.Generator().manual_seed(2)) + 0.1,
    )
    found = m.rho_replicates(x, y, draws=30)
    for k in range(30):
        above, below = (
            np.median(np.repeat(v.double().numpy(), resampled(len(v), 30, which)[k].long().numpy()))
            for which, v in (("generated", x), ("test", y))
        )
        assert found[k].item() == pytest.approx(above / below, rel=1e-12)


def test_rho_without_new_test_images_is_refused():
    for test in (torch.zeros(5), torch.tensor([0.0, 0, 0, 1, 2])):
        with pytest.raises(UserError, match="rho is not defined"):
            m.rho(torch.ones(5), test)


# d1 / d2


def test_copy_share_by_hand():
    pairs = torch.tensor([[0.0, 0.0], [0.0, 2.0], [1.0, 2.9], [1.0, 3.1], [2.0, 2.0]])
    near = m.Nearest(pairs, torch.zeros(5, 2, dtype=torch.long))
    assert m.copies(near).tolist() == [True, True, False, True, False]


def test_a_copy_of_an_image_that_is_there_twice_is_a_copy():
    train = torch.cat([TRAIN, TRAIN])
    assert m.copies(m.nearest(COPIES, train)).all()
    # both nearest are one image: no ratio says that it is close
    assert not m.copies(m.nearest(FRESH, train)).any()


@pytest.mark.parametrize(("images", "copied"), [(FRESH, 0), (COPIES, len(COPIES))])
def test_a_share_of_images_that_are_all_alike_has_a_width(images, copied):
    found = m.memorization(images, torch.cat([TRAIN, TRAIN]), TEST)["copy_share"]
    wilson = scipy.stats.binomtest(copied, len(images)).proportion_ci(method="wilson")
    assert (found["low"], found["high"]) == pytest.approx((wilson.low, wilson.high), abs=1e-12)


# C_T


@pytest.mark.parametrize(("n", "levels"), [(30, 0), (30, 4), (200, 30), (3, 2)])
def test_z_is_scipys(n, levels):
    """levels: how many values there are, for ties."""
    rng = np.random.default_rng(n)
    x, y = rng.random(n), rng.random(n + 7) * 1.3
    x, y = (np.floor(v * levels) if levels else v for v in (x, y))
    less, greater = (
        scipy.stats.mannwhitneyu(
            x, y, alternative=side, method="asymptotic", use_continuity=False
        ).pvalue
        for side in ("less", "greater")
    )
    z = scipy.stats.norm.ppf(less) if less < 0.5 else -scipy.stats.norm.ppf(greater)
    assert m.mann_whitney(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(
        z, rel=1e-6, abs=1e-9
    )


def test_z_where_all_are_equal_is_zero():
    assert m.mann_whitney(torch.zeros(20), torch.zeros(30)) == 0.0


def test_cells_weigh_as_test_images_do_and_small_ones_do_not_count():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(200), rng.random(150) + 0.1
    ours_cell, theirs_cell = (
        np.repeat([0, 1, 2, 3], [100, 19, 60, 21]),
        np.repeat([0, 1, 2, 3], [20, 60, 51, 19]),
    )
    found = m.over_cells(*(torch.from_numpy(v) for v in (ours, ours_cell, theirs, theirs_cell)), 4)

    def z(cell):
        a, b = ours[ours_cell == cell], theirs[theirs_cell == cell]
        return (scipy.stats.mannwhitneyu(a, b).statistic - len(a) * len(b) / 2) / math.sqrt(
            len(a) * len(b) * (len(a) + len(b) + 1) / 12
        )

    assert found == pytest.approx((20 * z(0) + 51 * z(2)) / 71, rel=1e-9)
    few = m.over_cells(
        *(torch.from_numpy(v[::12]) for v in (ours, ours_cell, theirs, theirs_cell)), 4
    )
    assert few == pytest.approx(
        m.mann_whitney(torch.from_numpy(ours[::12]), torch.from_numpy(theirs[::12]))
    )


def test_c_t_of_one_cell_is_the_z_of_all():
    x, y = (np.sort(brute(v, TRAIN), 1)[:, 0] for v in (FRESH[:40], TEST))
    statistic = scipy.stats.mannwhitneyu(x, y).statistic
    assert m.c_t(FRESH[:40], TEST, TRAIN) == pytest.approx(
        (statistic - 6000) / math.sqrt(40 * 300 * 341 / 12), rel=1e-9
    )


def test_k_means_finds_what_sklearn_finds():
    x = torch.cat(
        [
            torch.randn(50, 5, generator=torch.Generator().manual_seed(k)) + 20 * torch.eye(5)[k]
            for k in range(4)
        ]
    )
    centres = m.k_means(x, 4)
    theirs = sklearn.cluster.KMeans(4, n_init=10, random_state=0).fit(x.double().numpy())
    ours = m.nearest(x, centres, 1).rows[:, 0].numpy()
    assert sklearn.metrics.adjusted_rand_score(theirs.labels_, ours) == 1.0
    np.testing.assert_allclose(
        np.sort(centres.numpy(), 0), np.sort(theirs.cluster_centers_, 0), rtol=1e-9
    )
    assert torch.equal(centres, m.k_means(x, 4))


def test_k_means_of_equal_images():
    assert len(m.k_means(torch.ones(30, 4), 5)) == 1
    assert len(m.k_means(torch.cat([torch.ones(30, 4), torch.zeros(30, 4)]), 5)) == 2


def test_copying_in_half_of_the_data_is_seen():
    """Cell by cell; over all images at once, a generator that is far off elsewhere hides it."""
    train, test, fresh = (draws(1200, seed, centres=2) for seed in (10, 11, 12))
    centres = m.k_means(train, 2)
    copied, others = (
        train[m.nearest(train, centres, 1).rows[:, 0] == 0],
        fresh[m.nearest(fresh, centres, 1).rows[:, 0] == 1],
    )
    assert m.c_t(torch.cat([copied, others]), test, train) < -5
    mixed = torch.cat(
        [copied, others + 2 * torch.randn(others.shape, generator=torch.Generator().manual_seed(0))]
    )
    assert (
        m.c_t(mixed, test, train)
        < -3
        < m.mann_whitney(*(m.nearest(x, train, 1).distances[:, 0] for x in (mixed, test)))
    )


# AuthPct


def test_authentic_is_brute_force():
    between = brute(TRAIN, TRAIN)
    np.fill_diagonal(between, np.inf)
    to_train = brute(FRESH, TRAIN)
    expected = to_train.min(1) > between.min(1)[to_train.argmin(1)]
    assert 0.2 < expected.mean() < 0.9
    assert m.authentic(m.nearest(FRESH, TRAIN), TRAIN).numpy().tolist() == expected.tolist()


# What is a sign of copying: on images whose pixels depend on each other, as few as users have


def smooth(n: int, seed: int, side: int = 12, rank: int = 12) -> torch.Tensor:
    """[n, side^2]: gray pictures of low waves about a common one, with a brightness of their own;
    in 0..1."""
    draw = torch.Generator().manual_seed(seed)
    grid = torch.arange(side) / side
    waves = [
        (torch.cos(math.pi * a * grid)[:, None] * torch.cos(math.pi * b * grid)[None]).flatten()
        / (1 + a + b)
        for a in range(6)
        for b in range(6)
    ][:rank]
    weights = torch.randn(n, rank, generator=draw)
    weights[:, 0] *= 0.5
    return (
        0.5
        + 0.12 * weights @ torch.stack(waves)
        + 0.005 * torch.randn(n, side * side, generator=draw)
    ).double()


def signs(found: dict, untouched: dict | None = None) -> list[str]:
    """Which of both fire."""

    def band(of: dict | None, key: str) -> m.Band | None:
        return of and m.Band(*(of[key].get(k) for k in ("value", "low", "high")))

    fired = {
        "near": m.near_sign(band(found, "rho"), band(untouched, "rho")),
        "copies": m.copy_sign(
            band(found, "copy_share"), band(found, "copy_share_test"), band(untouched, "copy_share")
        ),
    }
    return [name for name, fires in fired.items() if fires]


@pytest.mark.parametrize("count", [15, 40, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_bland_generator_is_no_copier_though_c_t_calls_it_one(count, seed):
    """10% less contrast than the data, and it never saw an image."""
    train, test, fresh = smooth(count, 10 + seed), smooth(500, 20 + seed), smooth(1000, 30 + seed)
    bland = fresh.mean(0) + 0.9 * (fresh - fresh.mean(0))
    untouched = m.memorization(smooth(500, 40 + seed, rank=30) + 0.1, train, test)
    found = m.memorization(bland, train, test)
    assert found["c_t"] < -3 and 0.8 < found["rho"]["value"] < 1
    assert (
        signs(found)
        == signs(found, untouched)
        == signs(m.memorization(fresh, train, test), untouched)
        == []
    )


@pytest.mark.parametrize("count", [15, 40, 100])
@pytest.mark.parametrize("tests", [15, 200])
def test_a_memoriser_and_one_that_copies_half_of_its_images_are_copiers(count, tests):
    """The median does not see half of the images; the share of copies does."""
    train, test, fresh = smooth(count, 1), smooth(tests, 2), smooth(400, 3)
    untouched = m.memorization(smooth(400, 4, rank=30) + 0.1, train, test)
    draw = torch.Generator().manual_seed(5)
    copied = train[torch.randint(count, (400,), generator=draw)]
    copied = copied + 0.01 * torch.randn(copied.shape, generator=draw)
    assert signs(m.memorization(copied, train, test), untouched) == ["near", "copies"]
    half = torch.cat([copied[:200], fresh[:200]])
    found = m.memorization(half, train, test)
    assert "copies" in signs(found, untouched) and found["copy_share"]["value"] == pytest.approx(
        0.5, abs=0.05
    )
    assert "copies" in signs(found)  # also where there is no source to compare with


def test_images_of_which_new_ones_look_like_copies_too_are_no_sign():
    """In two dimensions a ninth of new images lie three times nearer to one than to the next."""
    train, test, fresh = (
        torch.rand(n, 2, generator=torch.Generator().manual_seed(k))
        for k, n in enumerate((100, 200, 500))
    )
    found = m.memorization(fresh, train, test)
    assert (
        found["copy_share"]["low"] > m.COPIED
        and found["copy_share_test"]["high"] > found["copy_share"]["low"]
    )
    assert signs(found) == []


def test_what_the_untouched_source_shows_too_is_no_sign():
    band = m.Band(0.3, 0.25, 0.35)
    assert (
        m.near_sign(band, None)
        and m.near_sign(band, m.Band(0.36, 0.3, 0.4))
        and not m.near_sign(band, m.Band(0.34, 0.3, 0.4))
    )
    assert not m.near_sign(m.Band(0.3, 0.05, 0.55), None) and not m.near_sign(
        m.Band(0.3, None, None), None
    )
    assert m.copy_sign(m.Band(0.3, 0.25, 0.35), None, m.Band(0.1, 0.05, 0.2)) and not m.copy_sign(
        band, None, band
    )
    assert not m.copy_sign(m.Band(0.06, 0.04, 0.08), None, None)


# All of it


@pytest.mark.parametrize(
    ("generated", "nothing"), [(COPIES, 0.0), (NOISY, 0.01)], ids=["memoriser", "with noise"]
)
def test_a_memoriser_is_caught_although_it_looks_perfect(generated, nothing):
    found = m.memorization(generated, TRAIN, TEST)
    assert frechet(generated, TRAIN) < 1e-4 < 0.1 < frechet(TEST, TRAIN)
    assert found["rho"]["value"] <= nothing and found["rho"]["high"] <= 2 * nothing
    assert found["copy_share"]["value"] == 1.0 and found["authentic_share"]["value"] == 0.0
    assert found["c_t"] < -9 and found["median_distance"] <= nothing * found["nearest_test"]


@pytest.mark.parametrize("seed", range(2, 6))
def test_a_fresh_draw_is_not(seed):
    found = m.memorization(draws(500, seed), TRAIN, TEST)
    assert (
        found["rho"]["value"] == pytest.approx(1, abs=0.1)
        and found["rho"]["low"] < 1.05
        and found["rho"]["high"] > 0.95
    )
    assert (
        abs(found["c_t"]) < 3
        and found["copy_share"]["value"] < 0.02
        and found["authentic_share"]["value"] > 0.4
    )


def test_what_lies_away_from_the_data_is_above_zero():
    assert m.c_t(2 * FRESH, TEST, TRAIN) > 3


def test_it_is_json_and_the_same_again():
    found = m.memorization(FRESH, TRAIN, TEST)
    assert json.loads(json.dumps(found, allow_nan=False)) == found and found["notes"] == []
    assert found == m.memorization(FRESH, TRAIN, TEST)
    assert found["median_distance"] == pytest.approx(np.median(brute(FRESH, TRAIN).min(1)))
    assert found["nearest_test"] == pytest.approx(np.median(brute(TEST, TRAIN).min(1)))
    assert found["rho"]["value"] == pytest.approx(found["median_distance"] / found["nearest_test"])


def test_one_training_image_has_no_second_nearest():
    found = m.memorization(FRESH, TRAIN[:1], TEST)
    assert not {"copy_share", "authentic_share"} & found.keys() and {"rho", "c_t"} <= found.keys()
    assert len(found["notes"]) == 1 and "there is one" in found["notes"][0]


def test_no_test_images_leave_what_needs_none():
    found = m.memorization(FRESH, TRAIN, TEST[:0])
    assert {"copy_share", "authentic_share", "median_distance"} <= found.keys()
    assert (
        not {"rho", "c_t", "nearest_test"} & found.keys() and "no test images" in found["notes"][0]
    )


def test_test_images_among_the_training_images_are_said():
    found = m.memorization(FRESH, TRAIN, TRAIN[:50])
    assert (
        "rho" not in found
        and any("Are they among" in note for note in found["notes"])
        and found["c_t"] > 3
    )


def test_constant_images_and_nan():
    same = torch.ones(40, 3)
    found = m.memorization(same, same, same)
    assert (
        found["copy_share"]["value"] == 1.0
        and found["authentic_share"]["value"] == 0.0
        and found["c_t"] == 0.0
        and "rho" not in found
    )
    with pytest.raises(UserError, match="the generated images"):
        m.memorization(torch.full((4, 3), math.nan), same, same)
    with pytest.raises(UserError, match="the training images"):
        m.memorization(same, same[:0], same)
