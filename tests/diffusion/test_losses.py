"""Losses against hand-computed cases and the papers' formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from diffusion import schedule as schedules
from diffusion.denoiser import Denoiser
from diffusion.losses import bound_loss, min_snr, p2, simple_loss, weighted_loss
from diffusion.parameterization import PredictMean, PredictNoise, PredictVelocity, PredictX0
from diffusion.timesteps import Uniform
from tests.helpers.networks import Output

LINEAR = schedules.linear(1000)
ALL = [PredictNoise(), PredictX0(), PredictVelocity(), PredictMean()]


@pytest.mark.parametrize("parameterization", ALL, ids=lambda p: type(p).__name__)
def test_simple_loss_by_hand(parameterization):
    """One pixel pair, betas (0.36, 0.75): alpha_bar = 0.64, 0.16. A network that returns 2 x_t; the
    mean over the pixels, per image."""
    x0, noise = torch.tensor([[[[0.5, -1.0]]]] * 2), torch.tensor([[[[1.0, 0.5]]]] * 2)
    scales = [(0.8, 0.6), (0.4, math.sqrt(0.84))]  # alpha, sigma at t = 1, 2
    # of x0 and of x_t, eq. 7 of Ho et al. 2020
    means = [
        (1.0, 0.0),
        (0.8 * 0.75 / 0.84, 0.5 * 0.36 / 0.84),
    ]
    denoiser = Denoiser(
        Output(lambda x, t: 2 * x), schedules.from_betas([0.36, 0.75]), parameterization
    )
    loss = simple_loss(denoiser.forward_pass(x0, torch.tensor([1, 2]), noise))
    assert loss.shape == (2,)
    for k, ((alpha, sigma), (of_x0, of_xt)) in enumerate(zip(scales, means, strict=True)):
        squares = []
        for x, e in ((0.5, 1.0), (-1.0, 0.5)):
            x_t = alpha * x + sigma * e
            target = {
                PredictNoise: e,
                PredictX0: x,
                PredictVelocity: alpha * e - sigma * x,
                PredictMean: of_x0 * x + of_xt * x_t,
            }[type(parameterization)]
            squares.append((2 * x_t - target) ** 2)
        assert loss[k].item() == pytest.approx(sum(squares) / 2, rel=1e-5)


def test_simple_loss_passes_the_condition():
    """The labels of the batch reach the network."""
    seen = []

    class Labelled(nn.Module):
        def forward(self, x, timestep, condition):
            seen.append(condition["label"])
            return x

    label = torch.tensor([3, 4])
    for loss in (simple_loss, bound_loss):
        denoiser = Denoiser(Labelled(), LINEAR, PredictNoise())
        loss(
            denoiser.forward_pass(
                *torch.randn(1, 2, 1, 2, 2),
                torch.tensor([1, 9]),
                torch.randn(2, 1, 2, 2),
                {"label": label},
            )
        )
    assert all(torch.equal(s, label) for s in seen) and len(seen) == 2


def test_draw_timesteps_are_uniform_from_one_to_the_last():
    """Integers 1..T, each as often as the others (chi-square within 5 standard deviations), a
    function of the generator."""
    total, count = 10, 100_000
    t, weight = Uniform(total).draw(count, torch.Generator().manual_seed(0))
    assert (weight == 1).all()
    assert t.min() == 1 and t.max() == total and t.dtype == torch.int64 and t.shape == (count,)
    chi = ((torch.bincount(t)[1:] - count / total) ** 2 / (count / total)).sum()
    assert abs(chi - (total - 1)) < 5 * math.sqrt(2 * (total - 1))
    assert torch.equal(t, Uniform(total).draw(count, torch.Generator().manual_seed(0))[0])


# Weights over t


@pytest.mark.parametrize("parameterization", ALL, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("schedule", [LINEAR, schedules.cosine(50)], ids=["linear", "cosine"])
def test_x0_weight_is_the_error_of_the_target_over_that_of_x0(parameterization, schedule):
    """At a fixed x_t another x0 means another noise; how far does the target move?"""
    t = torch.tensor([2, 7, 30, schedule.steps])
    x0, noise, other = torch.randn(
        3, 4, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    x_t = schedule.add_noise(x0, noise, t)
    alpha, sigma = (v[:, None, None, None] for v in schedule.alpha_sigma(t))
    target = parameterization.encode(schedule, x0, noise, t)
    moved = parameterization.encode(schedule, other, (x_t - alpha * other) / sigma, t)
    ratio = (moved - target).square().sum((1, 2, 3)) / (other - x0).square().sum((1, 2, 3))
    np.testing.assert_allclose(parameterization.x0_weight(schedule, t), ratio, rtol=1e-7)


def snr(t):
    bar = LINEAR.alpha_bar[t].item()
    return bar / (1 - bar)


@pytest.mark.parametrize("t", [1, 120, 200, 500, 1000])
@pytest.mark.parametrize(
    ("parameterization", "expected"),
    [
        (PredictNoise(), lambda s: min(s, 5) / s),
        (PredictVelocity(), lambda s: min(s, 5) / (s + 1)),
        (PredictX0(), lambda s: min(s, 5)),
    ],
    ids=["noise", "velocity", "x0"],
)
def test_min_snr_divides_by_what_the_target_already_weights(parameterization, expected, t):
    """Hang et al. 2023, section 3.4: min(SNR, 5) of the error of x0, over SNR for the noise and
    over SNR + 1 for the velocity."""
    denoiser = Denoiser(Output(lambda x, t: torch.zeros_like(x)), LINEAR, parameterization)
    x0, noise = torch.randn(
        2, 2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    t = torch.tensor([t, 300])
    plain, weighted = (
        simple_loss(denoiser.forward_pass(x0, t, noise)),
        weighted_loss(denoiser.forward_pass(x0, t, noise), weight=min_snr),
    )
    np.testing.assert_allclose(weighted / plain, [expected(snr(k)) for k in t.tolist()], rtol=1e-9)


@pytest.mark.parametrize(("gamma", "k"), [(1.0, 1.0), (0.5, 1.0), (1.0, 3.0)])
def test_p2_is_of_the_noises_error(gamma, k):
    denoiser = Denoiser(Output(lambda x, t: torch.zeros_like(x)), LINEAR, PredictNoise())
    x0, noise = torch.randn(
        2, 2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    t = torch.tensor([30, 700])
    weighted = weighted_loss(
        denoiser.forward_pass(x0, t, noise), weight=lambda s, t: p2(s, t, gamma=gamma, k=k)
    )
    expected = [1 / (k + snr(v)) ** gamma for v in t.tolist()]
    np.testing.assert_allclose(
        weighted / simple_loss(denoiser.forward_pass(x0, t, noise)), expected, rtol=1e-9
    )
