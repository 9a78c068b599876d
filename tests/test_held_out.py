"""The held-out loss: a fixed grid of draws, each with its own error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from diffusion.denoiser import Denoiser
from diffusion.parameterization import PredictNoise
from evaluation.held_out import held_out_errors
from tests.terms import SCHEDULE, images


class Told(nn.Module):
    """Predicts 0 and keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, timestep, condition):
        self.seen.append((x, timestep, condition.get("label")))
        return torch.zeros_like(x)


def judged(labels=True, draws=150, rows=None):
    network = Told()
    pictures = images(9)
    held = held_out_errors(Denoiser(network, SCHEDULE, PredictNoise()), pictures, np.arange(9) if labels else None,
                           np.array([7, 2, 5, 0]) if rows is None else rows, draws)
    return held, network.seen, pictures


def test_t_is_spread_evenly_and_the_images_come_in_turn():
    held, seen, _ = judged()
    t = torch.cat([timestep for _, timestep, _ in seen]) + 1
    assert sorted(t.tolist()) == sorted(1 + (2 * k + 1) * 100 // 300 for k in range(150))
    assert held.decile.tolist() == [(k - 1) // 10 for k in t.tolist()]
    label = torch.cat([label for *_, label in seen])
    assert label[:64].tolist() == [7, 2, 5, 0] * 16
    assert label.tolist() == np.array([7, 2, 5, 0])[held.image].tolist()


def test_an_error_is_that_of_its_own_draw():
    """Who predicts 0 is wrong by the noise, which is what x_t holds beside the image."""
    held, seen, pictures = judged()
    for k, (x, timestep, label) in enumerate(zip(*(torch.cat(part) for part in zip(*seen)))):
        bar = SCHEDULE.alpha_bar[timestep + 1]
        noise = (x.double() - bar.sqrt() * torch.from_numpy(pictures[label] / 127.5 - 1).permute(2, 0, 1)) / (1 - bar).sqrt()
        assert held.errors[k].item() == pytest.approx(noise.square().mean().item(), rel=1e-4)


def test_values_are_means_of_the_errors():
    held, *_ = judged(draws=12)
    values = held.values()
    assert values["loss"] == pytest.approx(np.mean(held.errors.numpy()))
    by_hand = {d: [e for e, k in zip(held.errors.tolist(), held.decile.tolist()) if k == d] for d in range(10)}
    assert {f"loss_t{d}": np.mean(e) for d, e in by_hand.items() if e} == pytest.approx({k: v for k, v in values.items() if k != "loss"})
    assert list(judged(draws=2)[0].values()) == ["loss", "loss_t2", "loss_t7"]


def test_without_labels_the_network_is_given_none_and_the_draws_are_the_same():
    (held, seen, _), (again, others, _) = judged(labels=False), judged()
    assert all(label is None for *_, label in seen)
    assert torch.equal(held.errors, again.errors) and torch.equal(seen[1][0], others[1][0])
