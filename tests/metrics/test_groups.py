"""Images of patients: patients are drawn in place of images, by weights that are computed here. And
where each image is alone, every number is that of the formulas of before, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.splits import spread
from evaluation.network_metrics import _bound, _mean_error
from metrics.auroc import auroc, resampled_by_class, weighted_auroc
from metrics.bits_per_dimension import Bound
from metrics.classification import over_trainings
from metrics.estimate import estimate
from metrics.held_out_loss import HeldOut, about_the_curve, drawn_rows, grid_of, stratified
from metrics.membership import loss_attack, paired_difference
from metrics.memorization import memorization, rho_replicates
from metrics.over_seeds import mean_over
from metrics.resampling import bootstrap_mean, drawn_from, groups_of, resampled
from runtime.seeds import generator

ALONE = [None, np.arange(60), np.random.default_rng(1).permutation(60) + 7]


def rows_of_before(n: int, draws: int, *key: int | str) -> torch.Tensor:
    return torch.stack(
        [torch.randint(n, (n,), generator=generator(*key, draw)) for draw in range(draws)]
    )


def counts_of_before(n: int, draws: int, *key: int | str) -> torch.Tensor:
    rows = rows_of_before(n, draws, *key)
    return torch.stack([row.bincount(minlength=n) for row in rows]).double()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def held_out(n: int, each: int = 4, groups: np.ndarray | None = None) -> HeldOut:
    t, image = stratified(n, each, 1000), torch.arange(n).repeat_interleave(each)
    errors = 0.1 + 0.01 * normal(n, seed=3)[image] + 0.01 * normal(n * each, seed=4)
    return HeldOut(errors, t.flatten(), image, 1000, groups)


def bounds(n: int, sizes: tuple[int, ...]) -> list[Bound]:
    bits, parts = normal(n, seed=5).split(list(sizes)), []
    for own in bits:
        zeros = torch.zeros(2, len(own), dtype=torch.float64)
        parts.append(Bound(bits=own, prior=own * 0, t=zeros, terms=zeros))
    return parts


# each image alone: to the bit


@pytest.mark.parametrize("groups", ALONE)
def test_where_each_is_alone_the_rows_and_the_mean_are_those_of_before(groups):
    counts, values = counts_of_before(60, 200, "k", 3), normal(60)
    assert torch.equal(resampled(60, 200, "k", 3, groups=groups), counts)
    assert torch.equal(bootstrap_mean(values, 200, ("k", 3), groups), counts @ values / 60)


@pytest.mark.parametrize("groups", ALONE)
def test_where_each_is_alone_the_loss_and_the_bound_are_those_of_before(groups):
    held = held_out(60, groups=groups)
    value, residual = held.errors.mean(), about_the_curve(held.errors, held.t)
    total = held.image.bincount(residual - residual.mean())
    replicates = value + counts_of_before(60, 200, "held-out") @ total / len(residual)
    assert _mean_error(held) == estimate(value.item(), replicates, 60)
    bits = normal(60, seed=5)
    replicates = counts_of_before(60, 200, "bound") @ bits / 60
    found = _bound(bounds(60, (25, 35)), [range(1, 3), range(3, 5)], groups)
    assert found["bits"] == estimate(bits.mean().item(), replicates, 60)
    assert "of_images" not in found["bits"] and found["images"] == 60


@pytest.mark.parametrize("groups", ALONE)
def test_where_each_is_alone_the_audits_are_those_of_before(groups):
    ours, theirs = normal(60, 10, seed=1), normal(60, 10, seed=2) + 0.2
    found, x, y = loss_attack(ours, theirs, (groups, groups)), -ours.mean(1), -theirs.mean(1)
    a, b = (counts_of_before(60, 200, key) for key in ("members", "non-members"))
    assert found == estimate(auroc(x, y), weighted_auroc(x, y, a, b), 60)
    labels = torch.arange(60) % 3
    counts = torch.zeros(50, 60, dtype=torch.float64)
    for c in range(3):
        counts[:, labels == c] = counts_of_before(20, 50, "k", c)
    assert torch.equal(resampled_by_class(labels, 50, "k", groups=groups), counts)


@pytest.mark.parametrize("groups", ALONE)
def test_where_each_is_alone_rho_is_that_of_before(groups):
    x, y = normal(70, seed=1).abs(), normal(60, seed=2).abs() + 0.1
    medians = [
        np.median(v.numpy()[rows_of_before(len(v), 200, key).numpy()], axis=1)
        for key, v in (("generated", x), ("test", y))
    ]
    assert rho_replicates(x, y, groups=groups).tolist() == (medians[0] / medians[1]).tolist()


# groups


OWNERS = np.array([5, 5, 5, 5, 2, 9, 9, 2, 2, 7])  # in the order of their first images 5, 2, 9, 7
PLACE = np.array([0, 0, 0, 0, 1, 2, 2, 1, 1, 3])


def test_a_draw_is_of_whole_groups():
    drawn = rows_of_before(4, 30, "k")
    counts = resampled(10, 30, "k", groups=OWNERS)
    for rows, found in zip(drawn.tolist(), counts.tolist()):
        assert found == [rows.count(place) for place in PLACE]
    assert not (counts.sum(1) == 10).all(), "as many groups, and not as many images"


def test_the_mean_of_a_draw_is_that_of_its_images():
    """By numpy, of the images written out; and a constant that is added to all is added to it."""
    values = normal(10)
    expected = [
        np.mean(np.concatenate([values.numpy()[place == PLACE] for place in rows]))
        for rows in rows_of_before(4, 30, "k").tolist()
    ]
    found = bootstrap_mean(values, 30, ("k",), OWNERS)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    moved = bootstrap_mean(values + 100, 30, ("k",), OWNERS)
    assert (moved - 100).tolist() == pytest.approx(expected, rel=1e-9)


def test_groups_are_of_the_rows_that_are_asked_for():
    assert groups_of(OWNERS, np.array([9, 0, 4])).tolist() == [7, 5, 2]
    assert groups_of(None, np.arange(3)) is None
    rows, labels = np.arange(40), np.arange(40) % 2
    assert (drawn_rows(rows, 64, labels) == spread(rows, grid_of(40, 64)[0], labels)).all()


def test_the_smallest_set_says_how_many_units_there_are():
    assert drawn_from((10, None)) == drawn_from((10, np.arange(10))) == (10, None)
    assert drawn_from((10, OWNERS)) == (4, 10)
    assert drawn_from((10, OWNERS), (30, None)) == (4, 10)
    assert drawn_from((10, OWNERS), (3, None)) == (3, 3), "drawn otherwise than without groups"


def test_an_estimate_says_of_how_many_images_its_groups_are():
    found = _mean_error(held_out(10, groups=OWNERS))
    assert (found["images"], found["of_images"]) == (4, 10)
    held = held_out(10)
    residual = about_the_curve(held.errors, held.t)
    own = [residual[held.image == k].sum() for k in range(10)]
    for rows, found_one in zip(rows_of_before(4, 200, "held-out").tolist(), found["replicates"]):
        weights = [rows.count(place) for place in PLACE]
        moved = sum(w * float(r) for w, r in zip(weights, own)) / (4 * sum(weights))
        expected = held.errors.mean().item() + moved - residual.mean().item()
        assert found_one == pytest.approx(expected, rel=1e-5)
    bits = _bound(bounds(10, (10,)), [range(1, 3), range(3, 5)], OWNERS)
    assert (bits["bits"]["images"], bits["bits"]["of_images"], bits["images"]) == (4, 10, 10)


def test_draws_of_two_runs_are_paired():
    """Two runs that differ by as much on every image differ by as much in every draw."""
    one = held_out(10, groups=OWNERS)
    a, b = (_mean_error(one._replace(errors=one.errors + by)) for by in (0.0, 0.01))
    assert np.subtract(b["replicates"], a["replicates"]) == pytest.approx(0.01, abs=2e-6)


def test_members_and_others_are_drawn_by_their_own_groups():
    ours, theirs = normal(10, 10, seed=1), normal(12, 10, seed=2) + 0.2
    others = np.repeat([4, 1, 8], 4)
    found, x, y = loss_attack(ours, theirs, (OWNERS, others)), -ours.mean(1), -theirs.mean(1)
    drawn = zip(rows_of_before(4, 200, "members"), rows_of_before(3, 200, "non-members"))
    for (a, b), replicate in zip(drawn, found["replicates"]):
        xs = torch.cat([x[place == PLACE] for place in a.tolist()])
        ys = torch.cat([y[4 * place : 4 * place + 4] for place in b.tolist()])
        assert replicate == pytest.approx(auroc(xs, ys), abs=1e-6)
    assert (found["images"], found["of_images"]) == (3, 12)
    assert paired_difference(found, found)["of_images"] == 12


def test_rho_draws_the_test_images_of_a_patient_together():
    x, y = normal(70, seed=1).abs(), normal(10, seed=2).abs() + 0.1
    found = rho_replicates(x, y, 30, OWNERS)
    drawn = zip(rows_of_before(70, 30, "generated"), rows_of_before(4, 30, "test"), found)
    for ours, theirs, replicate in drawn:
        below = np.median(np.concatenate([y.numpy()[place == PLACE] for place in theirs.tolist()]))
        assert replicate.item() == pytest.approx(np.median(x[ours].numpy()) / below, rel=1e-12)
    features = [normal(n, 3, seed=n) for n in (70, 40, 10)]
    rho = memorization(*features, OWNERS)["rho"]
    assert (rho["images"], rho["of_images"]) == (4, 10)


def test_a_draw_of_groups_has_every_class():
    """A class whose images are all of patients that have more of another one is among its draws;
    patients of one most frequent class are drawn among themselves, and whole."""
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 0, 0, 1, 1, 1])
    owners = np.array([1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4])
    counts = resampled_by_class(labels, 200, "k", groups=owners)
    for c in range(3):
        assert (counts[:, labels == c].sum(1) > 0).all()
    for owner in range(1, 5):
        assert (counts[:, owners == owner].std(1) == 0).all(), "a group is drawn whole"
    first = {owner: counts[:, np.argmax(owners == owner)] for owner in range(1, 5)}
    assert (first[1] + first[3] == 2).all() and (first[2] + first[4] == 2).all()


def test_a_class_of_one_patient_has_no_interval():
    areas = torch.tensor([[0.8] * 5, [0.7] * 5, [0.9] * 5], dtype=torch.float64)
    assert over_trainings(areas, 1, 20)["low"] is None
    assert over_trainings(areas, 2, 20)["of_images"] == 20


# what it is for: strategies that are equal


def differences(trials: int, sizes: list[int], seed: int, between: float = 0.5):
    """Of each trial the difference of two equal strategies on each image of its patients, whose
    share of the variance is `between`: the correlation of two images of one patient."""
    rng, owners = np.random.default_rng(seed), np.repeat(np.arange(len(sizes)), sizes)
    for _ in range(trials):
        patients = rng.normal(0, between**0.5, len(sizes))
        own = rng.normal(0, (1 - between) ** 0.5, len(owners))
        yield torch.from_numpy(patients[owners] + own), owners


def told_apart(trials, by_groups: bool) -> float:
    """By one training each, as a report and a study do it."""
    found = []
    for values, owners in trials:
        groups = owners if by_groups else None
        replicates = bootstrap_mean(values, key=("held-out",), groups=groups)
        images, _ = drawn_from((len(values), groups))
        found.append(
            not mean_over([values.mean().item()], [replicates.tolist()], images).holds_zero()
        )
    return float(np.mean(found))


@pytest.mark.parametrize("sizes", [[20] * 4, [20] * 10, [10, 30, 20, 5, 15, 40, 20, 20]])
def test_equal_strategies_are_told_apart_as_seldom_as_5_of_100(sizes):
    by_groups = told_apart(differences(300, sizes, seed=1), by_groups=True)
    by_images = told_apart(differences(300, sizes, seed=1), by_groups=False)
    print(f"{sizes}: {by_groups:.3f} by patients, {by_images:.3f} by images")
    assert by_groups <= 0.1 and by_images >= 0.3


def test_equal_strategies_of_several_seeds():
    """Trainings that differ, too: three of each on the same four patients."""
    rng, wrong = np.random.default_rng(3), {True: 0, False: 0}
    for values, owners in differences(200, [20] * 4, seed=2):
        seeds = [values + rng.normal(0, 0.1) for _ in range(3)]
        for by_groups in wrong:
            groups = owners if by_groups else None
            drawn = [bootstrap_mean(v, key=("held-out",), groups=groups).tolist() for v in seeds]
            images, _ = drawn_from((80, groups))
            mean = mean_over([v.mean().item() for v in seeds], drawn, images)
            wrong[by_groups] += not mean.holds_zero()
    print(wrong, "of 200")
    assert wrong[True] <= 20 and wrong[False] >= 50
