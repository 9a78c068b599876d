"""The mean over folds: Student's, and how often its interval holds the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from studies.which_layers.judge import loss_of
from studies.which_layers.runs import Judged


def of_folds(values):
    """values [K, n]: of each fold's images."""
    runs = {
        k: Judged(Path(), 1e-3, own.mean(), [own.mean()] * 2, len(own), 64, 13, 40)
        for k, own in enumerate(values)
    }
    return loss_of(runs, True)


def test_it_is_students():
    means = np.array([1.0, 2.0, 4.0])
    found = of_folds(means[:, None])
    expected = stats.t.interval(0.95, 2, means.mean(), stats.sem(means))
    assert found.interval() == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_the_interval_holds_the_truth_in_95_of_100(share):
    """share: of the variance between folds that is of their trainings."""
    rng, K, n, trials = np.random.default_rng(1), 5, 20, 1000
    held = 0
    for _ in range(trials):
        trainings = np.sqrt(share / (1 - share + 1e-12) / n) * rng.normal(size=(K, 1))
        values = rng.normal(size=(K, n)) + trainings
        held += of_folds(values).holds_zero()
    assert 0.935 < held / trials < 0.965


def test_what_the_images_to_train_on_do_is_part_of_the_answer():
    """Each image that is trained on adds something, so that the folds, which share them, move
    together: the interval holds what these images lead to, and not what others would."""
    rng, K, n, trials = np.random.default_rng(2), 5, 20, 1000
    held = of_others = 0
    for _ in range(trials):
        adds = rng.normal(size=(K, n))
        effect = (adds.sum() - adds.sum(1)) / (K - 1) / n
        values = 0.1 * rng.normal(size=(K, n)) + effect[:, None]
        low, high = of_folds(values).interval()
        held += low <= effect.mean() <= high
        of_others += low <= 0 <= high
    assert held / trials > 0.95 and of_others / trials < 0.7


def test_one_fold_is_its_images_alone():
    found = loss_of({0: Judged(Path(), 1e-3, 0.3, [0.1, 0.5], 2, 64, 13, 40)}, True)
    assert found.variance == pytest.approx(0.08 * 2 / 1) and found.freedom == 1
