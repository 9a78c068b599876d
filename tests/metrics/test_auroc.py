"""AUROC: against scipy's U and scikit-learn's, its bootstrap against what it estimates."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import roc_auc_score

from metrics.auroc import (
    auroc,
    macro_auroc,
    resampled_by_class,
    weighted_auroc,
    within_its_range,
)
from metrics.estimate import estimate
from metrics.intervals import wilson
from metrics.resampling import resampled, resampled_rows


def sample(n: int, shift: float = 0.0, seed: int = 0, levels: int = 0) -> torch.Tensor:
    """levels: of few values, so that many are equal."""
    values = np.random.default_rng(seed).normal(shift, 1, n)
    return torch.from_numpy(np.round(values * levels) / levels if levels else values)


@pytest.mark.parametrize("levels", [0, 2])
def test_the_area_is_the_u_of_mann_and_whitney(levels):
    x, y = sample(37, 0.7, 1, levels), sample(23, 0.0, 2, levels)
    u = scipy.stats.mannwhitneyu(x.numpy(), y.numpy()).statistic
    assert auroc(x, y) == pytest.approx(u / (37 * 23), rel=1e-12)
    assert auroc(y, x) == pytest.approx(1 - auroc(x, y), rel=1e-12)
    assert auroc(x, x) == 0.5 and auroc(x, y - 10) == 1 and auroc(x.exp(), y.exp()) == auroc(x, y)


def test_equal_scores_count_half():
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])) == (0.5 + 1 + 1 + 1) / 4


def test_a_draw_is_the_area_of_the_rows_that_were_drawn():
    x, y = sample(12, 0.5, 3, 2), sample(9, 0.0, 4, 2)
    found = weighted_auroc(x, y, resampled(12, 20, "x"), resampled(9, 20, "y"))
    rows = zip(resampled_rows(12, 20, "x"), resampled_rows(9, 20, "y"))
    assert found.tolist() == pytest.approx([auroc(x[i], y[j]) for i, j in rows], rel=1e-12)


@pytest.mark.parametrize("classes", [2, 4])
def test_several_classes_are_the_mean_of_one_against_the_rest(classes):
    rng = np.random.default_rng(classes)
    labels = rng.integers(classes, size=80)
    logits = rng.normal(size=(80, classes)) + 1.5 * np.eye(classes)[labels]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p /= p.sum(1, keepdims=True)
    theirs = (
        roc_auc_score(labels, p[:, 1])
        if classes == 2
        else roc_auc_score(labels, p, multi_class="ovr", average="macro")
    )
    ours = macro_auroc(torch.from_numpy(p), torch.from_numpy(labels), range(classes))
    assert ours.item() == pytest.approx(theirs, rel=1e-9)


def test_every_draw_has_as_many_of_each_class():
    labels = torch.tensor([0] * 3 + [2] * 40 + [1] * 5)
    counts = resampled_by_class(labels, 50, "k")
    for c, n in ((0, 3), (1, 5), (2, 40)):
        assert (counts[:, labels == c].sum(1) == n).all() and counts[:, labels == c].std(
            0
        ).min() > 0


def test_perfect_separation_has_wilsons_interval():
    """Of 20 images, none of which is misplaced, a bootstrap says that none ever will be."""
    found = within_its_range(estimate(1.0, torch.ones(200), 20))
    assert (found["low"], found["high"]) == wilson(20, 20) and found["low"] == pytest.approx(
        0.839, abs=1e-3
    )


def test_an_interval_ends_where_areas_end():
    found = within_its_range(estimate(0.98, torch.linspace(0.9, 1, 200), 10))
    assert found["low"] > 0.8 and found["high"] == 1
    assert within_its_range(estimate(0.9, torch.tensor([0.9]), 1))["low"] is None


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_interval_holds_the_truth(shift):
    """Of normal scores the area is Phi(shift / sqrt 2)."""
    truth, held = scipy.stats.norm.cdf(shift / 2**0.5), []
    a, b = resampled(60, 200, "members"), resampled(80, 200, "non-members")
    for seed in range(300):
        x, y = sample(60, shift, seed), sample(80, 0.0, 10_000 + seed)
        found = within_its_range(estimate(auroc(x, y), weighted_auroc(x, y, a, b), 60))
        held.append(found["low"] <= truth <= found["high"])
    assert 0.9 <= np.mean(held) <= 0.98
