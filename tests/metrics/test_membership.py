"""Membership by the loss: the same t and noise for all images, a copier found and a network that
saw each image once not."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from diffusion.denoiser import Denoiser
from diffusion.parameterization import PredictNoise
from metrics.membership import (
    EACH,
    attack_by_decile,
    errors_at_times,
    loss_attack,
    paired_difference,
    times,
)
from runtime.errors import UserError
from tests.helpers.networks import Output
from tests.helpers.terms import SCHEDULE, images


def errors(network: nn.Module, pictures: np.ndarray, labels=None, rows=None) -> torch.Tensor:
    rows = np.arange(len(pictures)) if rows is None else np.array(rows)
    return errors_at_times(Denoiser(network, SCHEDULE, PredictNoise()), pictures, labels, rows)


@pytest.mark.parametrize("T", [100, 1000, 4000, 20])
def test_each_decile_has_as_many_times(T):
    t = times(T)
    assert ((t - 1) * 10 // T).tolist() == [d for d in range(10) for _ in range(EACH)]
    assert t.min() >= 1 and t.max() <= T and times(3).tolist() == sorted(times(3).tolist())


def test_all_images_have_the_same_t_and_noise():
    """Who predicts 0 is wrong by the noise: the same of all images, which are no more told apart
    than by chance."""
    found = errors(Output(lambda x, t: torch.zeros_like(x)), images(70))
    assert (found == found[0]).all() and len(found[0].unique()) == 10 * EACH
    assert 0.8 < found.mean() < 1.2
    attack = loss_attack(found[:30], found[30:])
    assert attack["value"] == 0.5 and set(attack["replicates"]) == {0.5} and attack["images"] == 30
    assert attack["low"] < 0.45 and attack["high"] > 0.55  # nothing is known by it
    assert attack_by_decile(found[:30], found[30:]) == [0.5] * 10


def test_an_error_is_that_of_its_image_t_and_noise():
    """The noise is what x_t holds beside the image; the error of who predicts x_t - 0.1 t."""
    seen = []

    def network(x, t):
        seen.append((x, t))
        return x - 0.1 * t[:, None, None, None]

    pictures = images(5)
    found = errors(Output(network), pictures, rows=[4, 2])
    for k, (x, t) in enumerate(seen):
        bar = SCHEDULE.alpha_bar[t[0]]
        x0 = torch.from_numpy(pictures[[4, 2]] / 127.5 - 1).permute(0, 3, 1, 2)
        noise = (x.double() - bar.sqrt() * x0) / (1 - bar).sqrt()
        assert (t == times(100)[k]).all()
        torch.testing.assert_close(noise[0], noise[1], atol=1e-4, rtol=0)
        error = (x.double() - 0.1 * t[0] - noise).square().mean((1, 2, 3))
        torch.testing.assert_close(found[:, k], error, rtol=1e-4, atol=1e-5)


def test_an_image_has_the_same_error_in_any_company():
    network = Output(lambda x, t: x.flip(3))
    alone, among = errors(network, images(150), rows=[149]), errors(network, images(150))
    torch.testing.assert_close(alone[0], among[149])


def test_the_network_is_told_the_classes():
    class Told(nn.Module):
        def forward(self, x, timestep, condition):
            return condition["label"][:, None, None, None].float().expand_as(x)

    found = errors(Told(), images(4), np.array([0, 3, 0, 0]), [0, 1])
    assert (found[1] > found[0] + 5).all()


def test_the_attack_is_the_u_of_the_mean_errors():
    rng = np.random.default_rng(0)
    members, others = rng.gamma(3, 1, (20, 10 * EACH)), rng.gamma(3, 1.1, (31, 10 * EACH))
    found = loss_attack(torch.from_numpy(members), torch.from_numpy(others))
    u = scipy.stats.mannwhitneyu(others.mean(1), members.mean(1)).statistic
    assert found["value"] == pytest.approx(u / (20 * 31)) and found["value"] > 0.6
    assert found["images"] == 20 and found["low"] < found["value"] < found["high"]
    deciles = attack_by_decile(torch.from_numpy(members), torch.from_numpy(others))
    for d in range(10):
        part = slice(EACH * d, EACH * (d + 1))
        u = scipy.stats.mannwhitneyu(others[:, part].mean(1), members[:, part].mean(1)).statistic
        assert deciles[d] == pytest.approx(u / (20 * 31))


def test_a_difference_is_paired():
    """Two networks whose errors differ by little are told apart by images that tell neither from
    chance: their replicates are of the same images."""
    rng = np.random.default_rng(1)
    members, others = torch.from_numpy(rng.normal(5, 1, (2, 80, 10 * EACH)))
    members -= 0.02
    now, then = loss_attack(members, others), loss_attack(members + 0.03, others)
    found = paired_difference(now, then)
    assert found["value"] == pytest.approx(now["value"] - then["value"])
    assert found["high"] - found["low"] < 0.5 * (now["high"] - now["low"]) and found["low"] > 0
    same = paired_difference(now, now)
    assert same["value"] == same["low"] == same["high"] == 0


def test_a_network_that_diverged_is_said():
    with pytest.raises(UserError, match="diverged"):
        errors(Output(lambda x, t: x * float("nan")), images(2))


class Small(nn.Module):
    """A perceptron that is told t."""

    classes = 0

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64 + 8, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 64)
        )

    def forward(self, x, timestep, condition):
        angle = timestep.float()[:, None] / 100 * torch.tensor([1.0, 3.0, 9.0, 27.0])
        told = torch.cat([x.flatten(1), angle.sin(), angle.cos()], dim=1)
        return self.layers(told).view_as(x)


def waves(n: int, seed: int) -> np.ndarray:
    """[n, 8, 8, 1] uint8: a few random waves each, of one distribution."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:8, :8] / 8
    u, v, phase = rng.uniform(-6, 6, (3, n, 3))
    field = np.sin(
        x[..., None] * u[:, None, None] + y[..., None] * v[:, None, None] + phase[:, None, None]
    )
    return (127.5 + 40 * field.sum(-1, keepdims=True)).clip(0, 255).astype(np.uint8)


def trained(pictures: np.ndarray, steps: int, batch: int) -> Denoiser:
    """By batches in order, again from the first after the last."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = Denoiser(Small(), SCHEDULE, PredictNoise())
    optimizer = torch.optim.AdamW(denoiser.parameters(), 2e-3)
    draw = torch.Generator().manual_seed(1)
    x0 = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    for step in range(steps):
        part = x0[(torch.arange(batch) + step * batch) % len(x0)]
        t = torch.randint(1, 101, (batch,), generator=draw)
        noise = torch.randn(part.shape, generator=draw)
        found = denoiser.forward_pass(part, t, noise).prediction.noise
        optimizer.zero_grad()
        (found - noise).square().mean().backward()
        optimizer.step()
    return denoiser.eval()


def attacked(denoiser: Denoiser, members: np.ndarray, others: np.ndarray) -> dict:
    return loss_attack(
        *(errors_at_times(denoiser, p, None, np.arange(len(p))) for p in (members, others))
    )


def test_a_network_that_memorised_is_told_from_one_that_saw_each_image_once():
    """Of one distribution, by as many steps: 16 images again and again, and images that never come
    back."""
    steps, batch, new = 1000, 32, waves(200, seed=9)
    few = waves(16, seed=1)
    memorised = attacked(trained(few, steps, batch), few, new)
    assert memorised["low"] > 0.9
    many = waves(steps * batch, seed=2)
    members = many[:: len(many) // 200]
    fresh = attacked(trained(many, steps, batch), members, new)
    assert fresh["low"] <= 0.5 <= fresh["high"] and fresh["high"] - fresh["low"] < 0.15
