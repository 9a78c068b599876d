"""The terms of the variational bound against torch.distributions, scipy and mpmath, and the
bound of Gaussian data in closed form."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from torch.distributions import Normal, kl_divergence

from diffusion import schedule as schedules
from diffusion.denoiser import Denoiser, Prediction
from diffusion.losses import bound_loss
from diffusion.parameterization import PredictMean, PredictNoise, PredictVelocity, PredictX0
from diffusion.variance import FixedLarge, FixedSmall, Fraction
from diffusion.variational_bound import (
    bound_term,
    discretized_gaussian_log_likelihood,
    gaussian_kl,
    prior_bits,
)
from models.unet import UNet
from tests.helpers.networks import Output

LINEAR = schedules.linear(1000)
LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
STD = 0.25
ALL = [PredictNoise(), PredictX0(), PredictVelocity(), PredictMean()]


def test_gaussian_kl_is_torchs():
    """torch.distributions, float64, over five orders of magnitude of scale."""
    generator = torch.Generator().manual_seed(0)
    mean1, mean2, log1, log2 = (
        torch.randn(4, 1000, dtype=torch.float64, generator=generator)
        * torch.tensor([1, 1, 3, 3])[:, None]
    )
    expected = kl_divergence(Normal(mean1, (log1 / 2).exp()), Normal(mean2, (log2 / 2).exp()))
    torch.testing.assert_close(
        gaussian_kl(mean1, log1, mean2, log2), expected, rtol=1e-9, atol=1e-12
    )


def posterior(x0, x_t, t):
    """q(x_{t-1} | x_t, x_0) as a torch distribution, by eq. 6 and 7 of Ho et al. 2020 from the
    betas."""
    betas = np.linspace(1e-4, 0.02, 1000)
    bar = np.concatenate([[1], np.cumprod(1 - betas)])
    beta = betas[t - 1]
    mean = (
        math.sqrt(bar[t - 1]) * beta / (1 - bar[t]) * x0
        + math.sqrt(1 - beta) * (1 - bar[t - 1]) / (1 - bar[t]) * x_t
    )
    return mean, (1 - bar[t - 1]) / (1 - bar[t]) * beta, beta


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0, "per pixel"])
@pytest.mark.parametrize("t", [2, 3, 500, 1000])
def test_bound_term_is_the_kl(t, fraction):
    """KL(q(x_{t-1} | x_t, x_0) || p) by torch.distributions in float64, with p's log variance mixed
    by the fraction; bits."""
    x0, x_t, guess = torch.randn(
        3, 2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(t)
    )
    fraction = torch.rand(x0.shape, dtype=torch.float64) if fraction == "per pixel" else fraction
    mean, small, beta = posterior(x0, x_t, t)
    log_variance = torch.as_tensor(
        fraction * math.log(beta) + (1 - fraction) * math.log(small), dtype=torch.float64
    )
    p = Normal(posterior(guess, x_t, t)[0], (log_variance / 2).exp())
    expected = kl_divergence(Normal(mean, math.sqrt(small)), p).mean((1, 2, 3)) / math.log(2)
    ours = bound_term(
        LINEAR, Prediction(guess, guess, Fraction(fraction)), x0, x_t, torch.full((2,), t)
    )
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()])
def test_bound_term_at_one_is_the_decoder(variance):
    """L_0: -log2 of the bin's mass under N(predicted x0, the variance of q(x_1 | x_2, x_0)), by
    scipy; averaged over pixels."""
    x0 = LEVELS[torch.randint(256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0))]
    guess = x0 + 0.01 * torch.randn(x0.shape, dtype=torch.float64)
    _, small, _ = posterior(x0, x0, 2)
    p = scipy.stats.norm(guess.numpy(), math.sqrt(small))
    upper = np.where(x0 > 0.999, 1, p.cdf(x0 + 1 / 255))
    lower = np.where(x0 < -0.999, 0, p.cdf(x0 - 1 / 255))
    t = torch.ones(2, dtype=torch.long)
    ours = bound_term(
        LINEAR, Prediction(guess, guess, variance(None, t)), x0, torch.randn_like(x0), t
    )
    np.testing.assert_allclose(ours, -np.log2(upper - lower).mean((1, 2, 3)), rtol=1e-8)


def test_bound_term_of_a_mixed_batch_is_each_images_own():
    """t = 1 (decoder) beside other t (KL): each row as if it were alone; the fixed variance may be
    a tensor over the batch."""
    t = torch.tensor([1, 2, 1000, 1])
    x0, x_t, guess = (
        torch.randn(3, 4, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        / 3
    )
    together = bound_term(LINEAR, Prediction(guess, guess, FixedLarge()(None, t)), x0, x_t, t)
    for k in range(4):
        one = slice(k, k + 1)
        alone = bound_term(
            LINEAR,
            Prediction(guess[one], guess[one], FixedLarge()(None, t[one])),
            x0[one],
            x_t[one],
            t[one],
        )
        assert alone.item() == pytest.approx(together[k].item(), rel=1e-12)


def test_bound_of_the_truth_is_zero():
    """With x0 known and the posterior's variance, every KL term is 0."""
    t = torch.arange(2, 1001)
    x0, noise = torch.randn(2, 999, 1, 2, 2, dtype=torch.float64)
    loss = bound_loss(
        Denoiser(Output(lambda x, t: x0), LINEAR, PredictX0(), FixedSmall()).forward_pass(
            x0, t, noise
        )
    )
    assert loss.abs().max() < 1e-12


@pytest.mark.parametrize("log_scale", [-12.0, -5.0, -2.0, 0.0, 3.0])
def test_bins_of_a_mean_have_total_mass_one(log_scale):
    """The 256 bins with open outer ones tile the line, for narrow and wide scales and means in and
    out of range."""
    for mean in (-1.3, -1.0, -0.2, 0.001, 0.999, 5.0):
        log_mass = discretized_gaussian_log_likelihood(
            LEVELS, *torch.tensor([mean, log_scale], dtype=torch.float64)
        )
        assert log_mass.exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("scale", [0.002, 0.01, 0.1, 1.0])
def test_decoder_is_scipys(scale):
    """log(cdf(x + 1/255) - cdf(x - 1/255)), eq. 13 of Ho et al. 2020, open outer bins, wherever
    scipy's difference keeps 6 digits."""
    mean = np.linspace(-1.2, 1.2, 41)[:, None]
    x = LEVELS.numpy()[None]
    p = scipy.stats.norm(mean, scale)
    # subtract survivals above the mean, where the distribution functions are both near 1
    upper_side = x > mean
    left = np.where(x > 0.999, 1, p.cdf(x + 1 / 255)) - np.where(x < -0.999, 0, p.cdf(x - 1 / 255))
    right = np.where(x < -0.999, 1, p.sf(x - 1 / 255)) - np.where(x > 0.999, 0, p.sf(x + 1 / 255))
    mass = np.where(upper_side, right, left)
    ours = discretized_gaussian_log_likelihood(
        LEVELS[None], torch.from_numpy(mean), torch.tensor(math.log(scale), dtype=torch.float64)
    )
    kept = mass > 1e-290
    assert kept.mean() > 0.05 and kept[:, [0, 255]].any(0).all()
    np.testing.assert_allclose(ours.numpy()[kept], np.log(mass[kept]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("x", "mean", "scale"),
    [
        (0, 1.0, 0.005),
        (255, -1.0, 0.005),
        (0, -1.0, 0.005),
        (255, 5.0, 0.01),
        (128, -3.0, 0.01),
        (100, 1.0, 0.001),
        (200, -1.0, 0.0005),
        (10, 0.9, 10.0),
        (254, 40.0, 1.0),
    ],
)
def test_decoder_in_the_far_tails_is_mpmaths(x, mean, scale):
    """Up to 4,000 standard deviations away, on both sides and in the outer bins, against 50 digits
    or more: never -inf."""
    level = x / 127.5 - 1
    with mpmath.workdps(60):
        edges = [
            (mpmath.mpf(level) - mean + half) / scale
            for half in (mpmath.mpf(-1) / 255, mpmath.mpf(1) / 255)
        ]
        edges = [-mpmath.inf if x == 0 else edges[0], mpmath.inf if x == 255 else edges[1]]
        if sum(edges) > 0:  # mirrored, as digits close to a mass of 1 run out even here
            edges = [-edges[1], -edges[0]]
        lower, upper = (mpmath.erfc(-edge / mpmath.sqrt(2)) / 2 for edge in edges)
        expected = float(mpmath.log(upper - lower))
    ours = discretized_gaussian_log_likelihood(
        *torch.tensor([level, mean, math.log(scale)], dtype=torch.float64)
    )
    assert ours.isfinite() and ours.item() == pytest.approx(expected, rel=1e-11, abs=1e-15)


def test_decoder_gradients():
    """Finite everywhere, outer bins and far tails included, and equal to finite differences where
    those are sound."""
    x = LEVELS[[0, 1, 60, 200, 254, 255]]
    mean = torch.tensor([-0.98, -1.0, -0.5, 0.56, 1.0, 0.97]).double().requires_grad_()
    log_scale = torch.full((6,), -4.0).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m, s: discretized_gaussian_log_likelihood(x, m, s), (mean, log_scale)
    )
    for value in (-30.0, -1.0, 0.0, 1.0, 30.0):
        for scale in (1e-3, 1.0, 30.0):
            mean = torch.full((256,), value, dtype=torch.float64, requires_grad=True)
            log_scale = torch.full((256,), math.log(scale), dtype=torch.float64, requires_grad=True)
            discretized_gaussian_log_likelihood(LEVELS, mean, log_scale).sum().backward()
            assert mean.grad.isfinite().all() and log_scale.grad.isfinite().all()


@pytest.mark.parametrize(
    "schedule",
    [LINEAR, schedules.cosine(100), schedules.linear(10)],
    ids=["linear", "cosine", "10 steps"],
)
def test_prior_is_torchs(schedule):
    """L_T = KL(q(x_T | x_0) || N(0, 1)) by torch.distributions, bits per value, mean over
    pixels."""
    x0 = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    bar = schedule.alpha_bar[-1].item()
    q = Normal(math.sqrt(bar) * x0, math.sqrt(1 - bar))
    expected = kl_divergence(q, Normal(torch.zeros_like(x0), 1.0)).mean((1, 2, 3)) / math.log(2)
    torch.testing.assert_close(prior_bits(schedule, x0), expected, rtol=1e-8, atol=1e-14)


def test_prior_at_zero_terminal_snr_is_zero():
    """x_T is the prior itself."""
    assert prior_bits(schedules.zero_terminal(LINEAR), torch.randn(2, 1, 3, 3)).tolist() == [0, 0]


def nodes(count):
    """Gauss-Hermite nodes and weights for the expectation over two standard normals: [count^2]
    each."""
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    weights = weights / weights.sum()
    a, b = (torch.from_numpy(v).flatten() for v in np.meshgrid(points, points))
    return a, b, torch.from_numpy(np.outer(weights, weights)).flatten()


def expected_bound(denoiser, total, dtype=torch.float64):
    """(KL terms, decoder, prior) in bits: the expectations over x0 ~ N(0, STD^2) and noise, by
    quadrature.

    The KL terms are quadratic in both, so 3 x 3 nodes give them exactly; the decoder gets 60 x 60.
    """
    a, b, weight = nodes(3)
    t = torch.arange(2, total + 1).repeat_interleave(9)
    x0, noise = ((v.repeat(total - 1))[:, None, None, None].to(dtype) for v in (STD * a, b))
    kl = bound_loss(denoiser.forward_pass(x0, t, noise)).double().view(total - 1, 9) @ weight
    prior = (
        prior_bits(denoiser.schedule, (STD * a)[:, None, None, None].to(dtype)).double() @ weight
    )
    a, b, weight = nodes(60)
    x0, noise = (v[:, None, None, None].to(dtype) for v in (STD * a, b))
    decoder = (
        bound_loss(denoiser.forward_pass(x0, torch.ones(3600, dtype=torch.long), noise)).double()
        @ weight
    )
    return kl, decoder.item(), prior.item()


def ideal(schedule, variance):
    """E[x0 | x_t] of N(0, STD^2) data."""

    def x0(x_t, t):
        bar = schedule.alpha_bar[t][:, None, None, None]
        return (bar.sqrt() * STD**2 / (bar * STD**2 + 1 - bar)).to(x_t.dtype) * x_t

    return Denoiser(Output(x0), schedule, PredictX0(), variance)


def closed_form_bound(large):
    """(KL terms at t = 2..T, decoder, prior) of N(0, STD^2) data and linear betas, T = 1000: numpy
    and scipy, from the betas."""
    betas = np.linspace(1e-4, 0.02, 1000)
    bar = np.concatenate([[1], np.cumprod(1 - betas)])
    small = betas[1:] * (1 - bar[1:-1]) / (1 - bar[2:])
    chosen = betas[1:] if large else small
    miss = STD**2 * (1 - bar[1:]) / (bar[1:] * STD**2 + 1 - bar[1:])  # Var(x0 | x_t)
    # of x0 in the posterior's mean, squared
    weight = bar[1:-1] * betas[1:] ** 2 / (1 - bar[2:]) ** 2
    kl = 0.5 * (np.log(chosen / small) - 1 + (small + weight * miss[1:]) / chosen) / math.log(2)
    p, error = scipy.stats.norm(0, math.sqrt(small[0])), scipy.stats.norm(0, math.sqrt(miss[0]))
    # x0 less its prediction; above the mean it is the mirror image
    d = np.linspace(-8, 8, 4001) * math.sqrt(miss[0])
    mass = p.cdf(-np.abs(d) + 1 / 255) - p.cdf(-np.abs(d) - 1 / 255)
    decoder = -(error.pdf(d) * np.log2(mass)).sum() * (d[1] - d[0])
    return kl, decoder, 0.5 * (bar[-1] * STD**2 - bar[-1] - math.log(1 - bar[-1])) / math.log(2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("variance", "bits"), [(FixedLarge(), 7.167), (FixedSmall(), 7.794)])
def test_bound_of_gaussian_data(variance, bits, dtype):
    """Data N(0, 0.25^2) in 256 levels has 7.041 bits of entropy; the ideal denoiser's bound at T =
    1000 is above it by what the fixed variance costs: about 7.167 (large) and 7.794 (small). Each
    part is its closed form, and training's float32 loses nothing."""
    entropy = 0.5 * math.log2(2 * math.pi * math.e * STD**2) + math.log2(127.5)
    assert entropy == pytest.approx(7.041, abs=1e-3)
    kl, decoder, prior = expected_bound(ideal(LINEAR, variance), 1000, dtype)
    expected = closed_form_bound(isinstance(variance, FixedLarge))
    np.testing.assert_allclose(
        kl, expected[0], rtol=1e-6 if dtype == torch.float64 else 2e-2, atol=3e-7
    )
    # the closed form has no outer bins, where 6e-5 of the mass is
    assert decoder == pytest.approx(expected[1], abs=3e-4)
    assert prior == pytest.approx(expected[2], rel=1e-6 if dtype == torch.float64 else 0.1)
    total = kl.sum().item() + decoder + prior
    print(
        f"{type(variance).__name__}, {dtype}: {total:.5f} bits = {kl.sum():.5f} KL + "
        f"{decoder:.5f} decoder + {prior:.2e} prior"
    )
    assert total == pytest.approx(sum(map(np.sum, expected)), abs=5e-4)
    assert total == pytest.approx(bits, abs=0.01)
    assert total > entropy


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()])
@pytest.mark.parametrize("parameterization", ALL, ids=lambda p: type(p).__name__)
def test_gradients_of_the_bound_are_finite(parameterization, variance):
    """Through a small UNet in float32 with both ends of t in the batch, on images with extreme
    pixels, and they are not all 0."""
    torch.manual_seed(0)
    network = UNet(8, [1, 2], 1, [1], in_channels=1, out_channels=1, groups=4)
    x0 = LEVELS[torch.randint(256, (5, 1, 8, 8))].float()
    x0[:, :, 0], x0[:, :, 1] = -1, 1
    loss = bound_loss(
        Denoiser(network, LINEAR, parameterization, variance).forward_pass(
            x0, torch.tensor([1, 2, 500, 1000, 1]), torch.randn_like(x0)
        )
    )
    assert loss.shape == (5,) and loss.isfinite().all()
    loss.sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    assert network.conv_out.weight.grad.abs().max() > 0
