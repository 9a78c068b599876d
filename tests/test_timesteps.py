"""Importance sampling of t: its probabilities, weights and history against plain Python, and its unbiasedness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from diffusion.timesteps import Importance, Uniform
from tests import runs


class Slow:
    """The same history with lists, one loss after the other; eq. 18 of Nichol and Dhariwal 2021."""

    def __init__(self, steps, history, uniform):
        self.losses = {t: [] for t in range(1, steps + 1)}
        self.steps, self.history, self.uniform = steps, history, uniform

    def update(self, t, loss):
        for at, value in zip(t.tolist(), loss.tolist(), strict=True):
            self.losses[at] = [*self.losses[at], value][-self.history:]

    def probabilities(self):
        if any(len(v) < self.history for v in self.losses.values()):
            return np.full(self.steps, 1 / self.steps)
        root = np.array([np.mean(np.square(v)) ** 0.5 for v in self.losses.values()])
        return (1 - self.uniform) * root / root.sum() + self.uniform / self.steps


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("history", [1, 3, 10])
def test_the_history_is_the_last_losses_of_each_t(history, batch):
    """Also where a batch has the same t more often than the history is long."""
    ours, slow = Importance(5, history, 0.01), Slow(5, history, 0.01)
    generator = torch.Generator().manual_seed(0)
    for k in range(600 // batch + 20):
        t = torch.randint(1, 6, (batch,), generator=generator)
        loss = torch.rand(batch, generator=generator, dtype=torch.float64) * t**2
        ours.update(t, loss)
        slow.update(t, loss)
        np.testing.assert_allclose(ours.probabilities().numpy(), slow.probabilities(), rtol=1e-12, err_msg=f"update {k}")
    assert len({round(p, 6) for p in slow.probabilities()}) == 5  # it was past its start


def test_an_update_does_not_wait_for_the_device():
    """On the meta device whatever asks for a value raises."""
    t = torch.ones(4, dtype=torch.int64, device="meta")
    Importance(5).to("meta").update(t, t.float())


def warmed(uniform=0.01):
    ours = Importance(5, 2, uniform)
    for t, loss in enumerate([1.0, 2.0, 4.0, 8.0, 16.0], 1):
        ours.update(torch.full((2,), t), torch.full((2,), loss, dtype=torch.float64))
    return ours


def test_t_is_drawn_with_its_probability():
    expected = (1 - 0.01) * np.array([1, 2, 4, 8, 16]) / 31 + 0.01 / 5
    np.testing.assert_allclose(warmed().probabilities().numpy(), expected, rtol=1e-12)
    t, _ = warmed().draw(100_000, torch.Generator().manual_seed(0))
    counts = np.bincount(t.numpy(), minlength=6)[1:]
    assert counts.sum() == 100_000 and stats.chisquare(counts, 100_000 * expected).pvalue > 1e-3


def test_the_weight_leaves_the_mean():
    """E_p[weight f(t)] = mean of f over t, for the weight 1 / (T p)."""
    ours = warmed()
    t, weight = ours.draw(1000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(weight.double(), 1 / (5 * ours.probabilities()[t - 1]), rtol=1e-6, atol=0)
    f = torch.tensor([0.3, -1.0, 5.0, 2.0, 1.0], dtype=torch.float64)
    p = ours.probabilities()
    assert (p * f / (5 * p)).sum().item() == pytest.approx(f.mean().item())


def test_before_the_history_is_full_it_is_the_uniform_one():
    ours = Importance(5, 3, 0.01)
    ours.update(torch.tensor([1, 2, 3, 4, 5] * 2), torch.arange(10.0))
    t, weight = ours.draw(1000, torch.Generator().manual_seed(0))
    assert (weight == 1).all() and set(t.tolist()) == {1, 2, 3, 4, 5}


def test_a_loss_that_is_not_finite_does_not_reach_the_probabilities():
    """The loop reports it; drawing from NaN would end a process on a GPU without a word."""
    ours = warmed()
    ours.update(torch.tensor([2, 3]), torch.tensor([float("nan"), float("inf")]))
    assert ours.probabilities().isfinite().all()
    ours.draw(10, torch.Generator().manual_seed(0))


def test_the_history_is_kept_by_state_dict():
    ours, again = warmed(), Importance(5, 2, 0.01)
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again.probabilities(), ours.probabilities())
    assert not Uniform(5).state_dict()


@pytest.mark.parametrize(("history", "uniform"), [(0, 0.1), (2, -0.1), (2, 1.1)])
def test_settings_that_cannot_be(history, uniform):
    with pytest.raises(ValueError, match="history must be at least 1"):
        Importance(5, history, uniform)


IMPORTANCE = ["schedule.steps=6", "sampler.steps=2", "timesteps=importance", "timesteps.history=2", "loss=bound", "variance=learned_range",
              "train.clip=null"]


def test_a_run_with_importance_sampling_resumes_to_the_bit(tmp_path, undisturbed):
    """Killed after its first checkpoint, when the history is full: the probabilities continue where they were."""
    whole = undisturbed(*IMPORTANCE)
    code, _ = runs.train(tmp_path, [*IMPORTANCE, "train.steps=8"])
    assert code == 0
    directory = runs.finish(tmp_path, IMPORTANCE)
    runs.assert_same_weights(directory, whole, 12)
    saved = torch.load(directory / "checkpoints/step_8" / runs.OPTIMIZER, weights_only=True)["timesteps"]
    assert (saved["seen"][1:] >= 2).all() and saved["losses"][1:].std() > 0
