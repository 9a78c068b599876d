"""Power-function averages of the weights, and averages of any length from snapshots of two, against
weighted sums over all steps of a trajectory, in float64."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import training.post_hoc_average
from runtime.checkpoint import Checkpoint, Progress
from training.evaluation_steps import spaced
from training.post_hoc_average import Profile, inner_products, nearest_combination, reconstruct
from training.power_average import PowerAverages, gamma_of, length_of
from training.snapshots import all_snapshots, best_snapshot, drop_later, prune_snapshots
from training.snapshots import write_snapshot as write

KEPT = (0.05, 0.10)


def explicit(step: int, gamma: float) -> np.ndarray:
    """The weight of each step 1..t, by the recursion alone."""
    weights = np.zeros(step)
    for t in range(1, step + 1):
        beta = (1 - 1 / t) ** (gamma + 1)
        weights *= beta
        weights[t - 1] += 1 - beta
    return weights


def written(run: Path, step: int, averages: PowerAverages, loss: float | None, grid: int = 2):
    progress = Progress(validation_loss=loss, held_out_grid=grid)
    write(run, Checkpoint(run / f"checkpoints/step_{step}", step, {}, [], {}, progress), averages)


# Lengths


@pytest.mark.parametrize("length", [0.02, 0.05, 0.10, 0.15, 0.20, 0.25, 12**-0.5])
def test_the_length_is_the_relative_standard_deviation_of_the_profile(length):
    t = 4000
    weights, i = explicit(t, gamma_of(length)), np.arange(1, t + 1) / t
    mean = weights @ i
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert math.sqrt(weights @ (i - mean) ** 2) == pytest.approx(length, abs=2e-4)


def test_gamma_and_length_are_each_others_inverse():
    for gamma in (1e-3, 0.3, 1, 6.94, 16.97, 60):
        assert gamma_of(length_of(gamma)) == pytest.approx(gamma, abs=1e-9)
    # section 3.2 of the paper
    assert gamma_of(0.05) == pytest.approx(16.97, abs=5e-3)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=5e-3)
    for wrong in (0, -0.1, 0.3):
        with pytest.raises(AssertionError):
            gamma_of(wrong)


# The running average


def trajectory(steps: int, shape=(3, 4), seed: int = 0) -> torch.Tensor:
    """[steps, *shape] float64: a drift that slows down, and noise that is its own at each step."""
    random = torch.Generator().manual_seed(seed)
    t = torch.arange(1, steps + 1, dtype=torch.float64).reshape(-1, 1, 1) / steps
    to = torch.randn(shape, generator=random, dtype=torch.float64)
    return to * t.sqrt() + 0.1 * torch.randn((steps, *shape), generator=random, dtype=torch.float64)


def run_along(path: torch.Tensor, lengths, at=(), write_to: Path | None = None) -> PowerAverages:
    """The averages along a trajectory, with a snapshot at some steps."""
    weights = torch.full_like(path[0], 1e6)  # the start, which must have no weight
    averages = PowerAverages({"w": weights}, lengths)
    for k, w in enumerate(path):
        weights.copy_(w)
        averages.update(k + 1)
        if k + 1 in at:
            written(write_to, k + 1, averages, 0.0)
    return averages


def test_the_running_average_is_the_weighted_sum_of_all_steps():
    path = trajectory(60)
    averages = run_along(path, [*KEPT, 0.25])
    for length, average in averages.by_length.items():
        weights = torch.from_numpy(explicit(60, gamma_of(length)))
        torch.testing.assert_close(
            average["w"], torch.tensordot(weights, path, 1), rtol=1e-12, atol=1e-12
        )


def test_after_one_step_the_average_is_the_weights():
    path = trajectory(1)
    assert torch.equal(run_along(path, [0.05]).by_length[0.05]["w"], path[0])


# Of other lengths, afterwards

STEPS = [3, 10, 41, 60]


def test_inner_products_are_those_of_the_profiles(monkeypatch):
    monkeypatch.setattr(training.post_hoc_average, "CHUNK", 7)  # several in each span
    profiles = [Profile(step, gamma_of(length)) for step in STEPS for length in (0.05, 0.10, 0.2)]
    rows = np.zeros((len(profiles), max(STEPS)))
    for row, profile in zip(rows, profiles, strict=True):
        row[: profile.step] = explicit(*profile)
    np.testing.assert_allclose(inner_products(profiles).numpy(), rows @ rows.T, rtol=1e-9)


def test_inner_products_over_half_a_million_steps_are_near_those_of_continuous_profiles():
    """Karras et al. 2024, eq. 151: (a + 1)(b + 1)(s/t)^b / ((a + b + 1) t), s <= t."""
    s, t, a, b = 60_000, 500_000, gamma_of(0.10), gamma_of(0.25)
    found = inner_products([Profile(s, a), Profile(t, b)])
    assert found[0, 1].item() == pytest.approx(
        (a + 1) * (b + 1) * (s / t) ** b / ((a + b + 1) * t), rel=1e-3
    )
    assert found[0, 0].item() == pytest.approx((a + 1) ** 2 / ((2 * a + 1) * s), rel=1e-3)
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("length", [0.02, 0.15, 0.25])
def test_the_combination_is_the_nearest_of_all_that_sum_to_1(length):
    """By Lagrange's multiplier, of the profiles themselves."""
    known = [Profile(step, gamma_of(own)) for step in STEPS for own in KEPT]
    wanted = Profile(60, gamma_of(length))
    rows = np.zeros((len(known), 60))
    for row, profile in zip(rows, known, strict=True):
        row[: profile.step] = explicit(*profile)
    aim, n = explicit(*wanted), len(known)
    system = np.ones((n + 1, n + 1))
    system[:n, :n], system[n, n] = rows @ rows.T, 0
    expected = np.linalg.solve(system, np.append(rows @ aim, 1))[:n]
    found, residual = nearest_combination(known, wanted)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-7)
    assert found.sum().item() == pytest.approx(1, abs=1e-12)
    distance = np.linalg.norm(expected @ rows - aim) / np.linalg.norm(aim)
    assert residual == pytest.approx(distance, rel=1e-5) and residual > 1e-3


def test_what_was_kept_is_found_again(tmp_path):
    path = trajectory(60)
    averages = run_along(path, KEPT, STEPS, tmp_path)
    for length in KEPT:
        how = reconstruct(all_snapshots(tmp_path), 60, length)
        assert how.residual < 1e-6
        torch.testing.assert_close(
            how.tensors()["w"].double(), averages.by_length[length]["w"], rtol=1e-5, atol=1e-6
        )


def test_one_snapshot_of_one_length_is_all_that_there_is(tmp_path):
    run_along(trajectory(20), [0.1], [20], tmp_path)
    how = reconstruct(all_snapshots(tmp_path), 20, 0.1)
    assert how.residual < 1e-6 and how.coefficients.tolist() == [1.0]
    assert reconstruct(all_snapshots(tmp_path), 20, 0.2).residual > 0.5


@pytest.mark.parametrize("length", [0.15, 0.20, 0.25])
def test_the_error_is_small_and_falls_with_more_snapshots(tmp_path, length):
    """Of an average that was run along the same trajectory with this length."""
    path, errors, residuals = trajectory(1000, seed=3), [], []
    expected = run_along(path, [length]).by_length[length]["w"]
    for factor in (2.0, 1.3, 1.07):
        run = tmp_path / str(factor)
        run_along(path, KEPT, spaced(1000, factor, 8), run)
        how = reconstruct(all_snapshots(run), 1000, length)
        errors.append((how.tensors()["w"] - expected).norm() / expected.norm())
        residuals.append(how.residual)
    assert errors == sorted(errors, reverse=True) and residuals == sorted(residuals, reverse=True)
    assert errors[1] < 3e-3 and errors[2] < 5e-4 and residuals[1] < 0.25


def test_what_is_the_same_at_all_steps_comes_out_to_the_bit(tmp_path):
    constant = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))  # float32
    path = constant.expand(60, 3, 4)
    run_along(path, KEPT, STEPS, tmp_path)
    for length in (0.02, 0.05, 0.2, 0.25):
        assert torch.equal(
            reconstruct(all_snapshots(tmp_path), 60, length).tensors()["w"], constant
        )


def test_snapshots_after_the_step_have_no_part_in_it(tmp_path):
    run_along(trajectory(60), KEPT, STEPS, tmp_path)
    how = reconstruct(all_snapshots(tmp_path), 41, 0.2)
    assert [snapshot.step for snapshot, _ in how.parts] == [3, 3, 10, 10, 41, 41]


# Which snapshots stay


def kept(run: Path) -> list[int]:
    return [snapshot.step for snapshot in all_snapshots(run)]


def test_snapshots_far_before_the_best_step_go(tmp_path):
    averages = PowerAverages({"w": torch.zeros(2)}, KEPT)
    losses = {1: 0.9, 2: 0.8, 4: 0.5, 8: 0.6, 15: 0.45, 16: 0.44, 17: 0.4, 40: 0.41, 400: 0.5}
    left = []
    for step, loss in losses.items():
        written(tmp_path, step, averages, loss)
        prune_snapshots(tmp_path)
        left.append(kept(tmp_path))
    # up to step 16 the first is at 1/8 of the best or after it
    assert left[5] == [2, 4, 8, 15, 16] and left[6] == [4, 8, 15, 16, 17]
    assert left[-1] == [4, 8, 15, 16, 17, 40, 400]
    assert best_snapshot(all_snapshots(tmp_path)).step == 17
    drop_later(tmp_path, 40)
    assert kept(tmp_path) == [4, 8, 15, 16, 17, 40]


def test_losses_on_other_images_are_not_compared(tmp_path):
    averages = PowerAverages({"w": torch.zeros(2)}, KEPT)
    for step, loss, grid in ((1, 0.1, 1), (2, 0.5, 2), (3, 0.4, 2), (4, 0.45, 2)):
        written(tmp_path, step, averages, loss, grid)
    assert best_snapshot(all_snapshots(tmp_path)).step == 3
    written(tmp_path, 5, averages, None)  # without validation images
    assert best_snapshot(all_snapshots(tmp_path)[4:]).step == 5


def test_a_damaged_snapshot_is_named_and_left_out(tmp_path, caplog):
    run_along(trajectory(60), KEPT, STEPS, tmp_path)
    first, second = (tmp_path / f"averages/step_{step}.safetensors" for step in STEPS[:2])
    first.write_bytes(b"no such thing")
    second.write_bytes(second.read_bytes()[:-1] + b"!")
    found = all_snapshots(tmp_path)
    assert [s.step for s in found] == STEPS[1:]
    assert [s.step for s in found if s.is_whole()] == STEPS[2:]
    assert str(first) in caplog.text and str(second) in caplog.text


# Steps of evaluation


@pytest.mark.parametrize(
    ("last", "factor", "first"),
    [(20_000, 1.3, 100), (500_000, 1.3, 1000), (64, 2, 1), (12, 1.3, 1), (7, 1.3, 7), (100, 9, 99)],
)
def test_spaced_steps(last, factor, first):
    steps = spaced(last, factor, first)
    assert steps[0] == first and steps[-1] == last
    assert all(type(step) is int for step in steps)
    for a, b in pairwise(steps):
        assert a < b <= max(a + 1, factor * (a + 0.5) + 0.5)
    # no more of them than it takes
    assert len(steps) <= 2 + math.log(last / first) / math.log(factor)


def test_spaced_steps_of_a_power_are_the_powers():
    assert spaced(64, 2, 1) == [1, 2, 4, 8, 16, 32, 64]
