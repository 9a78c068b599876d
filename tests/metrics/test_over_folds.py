"""The mean over folds: its variance by hand, and how often its interval holds the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metrics.over_folds import mean_over_folds


def replicates_of(values: np.ndarray, draws: int = 200) -> torch.Tensor:
    """[draws] means of values drawn with replacement."""
    n = len(values)
    rows = torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(n))
    return torch.as_tensor(values)[rows].mean(1)


def test_variance_and_freedom_by_hand():
    values, images = [1.0, 2.0, 4.0], [10, 11, 12]
    replicates = [np.array([-1.0, 1.0]) * s for s in (0.1, 0.2, 0.3)]
    found = mean_over_folds(values, replicates, images)
    own = [s**2 * 2 * n / (n - 1) for s, n in zip((0.1, 0.2, 0.3), images)]  # variance of [-s, s]
    assert found.value == pytest.approx(7 / 3)
    assert found.variance == pytest.approx(np.var(values, ddof=1) / 3) and found.freedom == 2
    alike = mean_over_folds([1.0, 1.01, 1.02], replicates, images)
    assert alike.variance == pytest.approx(np.mean(own) / 3) and alike.freedom == 33 - 3


def test_it_is_not_surer_than_its_images():
    """Folds that happen to agree: the variance is that of all images as one set."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 400))
    values -= values.mean(1, keepdims=True)
    found = mean_over_folds([0.0] * 5, [replicates_of(v, 2000) for v in values], [400] * 5)
    assert found.variance == pytest.approx(values.var() / 2000, rel=0.1)
    assert found.freedom == 1995


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_the_interval_holds_the_truth_in_95_of_100(share):
    """share: of the variance between folds that is of their trainings."""
    rng, K, n, trials = np.random.default_rng(1), 5, 20, 1000
    held = 0
    for _ in range(trials):
        trainings = np.sqrt(share / (1 - share + 1e-12) / n) * rng.normal(size=(K, 1))
        values = rng.normal(size=(K, n)) + trainings
        replicates = [replicates_of(v) for v in values]
        held += mean_over_folds(values.mean(1).tolist(), replicates, [n] * K).holds_zero()
    assert 0.935 < held / trials < 0.99


def test_what_the_images_to_train_on_do_is_part_of_the_answer():
    """Each image that is trained on adds something, so that the folds, which share them, move
    together: the interval holds what these images lead to, and not what others would."""
    rng, K, n, trials = np.random.default_rng(2), 5, 20, 1000
    held = of_others = 0
    for _ in range(trials):
        adds = rng.normal(size=(K, n))
        effect = (adds.sum() - adds.sum(1)) / (K - 1) / n
        values = 0.1 * rng.normal(size=(K, n)) + effect[:, None]
        means, replicates = values.mean(1), [replicates_of(v) for v in values]
        low, high = mean_over_folds(means.tolist(), replicates, [n] * K).interval()
        held += low <= effect.mean() <= high
        of_others += low <= 0 <= high
    assert held / trials > 0.95 and of_others / trials < 0.7


def test_one_fold_is_its_images_alone():
    found = mean_over_folds([0.3], [[0.1, 0.5]], [2])
    assert found.variance == pytest.approx(0.08 * 2 / 1) and found.freedom == 1
