"""The variational bound of Gaussian data in 256 levels: its closed form, worked out by numpy and
scipy from the betas, and the entropy that it bounds. What is estimated: by its expectation."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from diffusion import schedule as schedules
from diffusion.denoiser import Prediction
from diffusion.parameterization import noise_of
from diffusion.variance import FixedLarge, FixedSmall, Fraction
from diffusion.variational_bound import bound_term, prior_bits
from metrics import bits_per_dimension as likelihood
from metrics.bits_per_dimension import bound, drawn, every, strata

LINEAR, STD = schedules.linear(1000), 0.25
LEVELS = np.arange(256) / 127.5 - 1
EDGES = np.concatenate([[-np.inf], (LEVELS[1:] + LEVELS[:-1]) / 2, [np.inf]])
# of the data: N(0, STD^2) rounded to the nearest level
MASS = np.diff(scipy.stats.norm(0, STD).cdf(EDGES))
BETAS = np.linspace(1e-4, 0.02, 1000)
BAR = np.concatenate([[1.0], np.cumprod(1 - BETAS)])
MISS = STD**2 * (1 - BAR) / (BAR * STD**2 + 1 - BAR)  # Var(x0 | x_t) of N(0, STD^2)


class Optimal:
    """log variance of the exact posterior p(x_s | x_t) of N(0, STD^2); Bao et al. 2022, eq. 7:
    q(x_s | x_t, x0)'s, and what x0 being unknown adds."""

    def __init__(self, output=None, t=None):
        pass

    def log(self, schedule, s, t):
        of_x0, _ = schedule.posterior_coefficients(s, t)
        bar = schedule.alpha_bar[t]
        return (
            schedule.posterior_variance(s, t)
            + of_x0**2 * STD**2 * (1 - bar) / (bar * STD**2 + 1 - bar)
        ).log()


VARIANCES = {
    "optimal": lambda t: Optimal(),
    "fixed large": lambda t: FixedLarge()(None, t),
    "fixed small": lambda t: FixedSmall()(None, t),
}


def ideal(variance, schedule=LINEAR):
    """E[x0 | x_t] of N(0, STD^2), by value."""

    def denoise(x_t, t):
        bar = schedule.alpha_bar[t][:, None, None, None]
        x0 = (bar.sqrt() * STD**2 / (bar * STD**2 + 1 - bar)).to(x_t.dtype) * x_t
        return Prediction(x0, noise_of(schedule, x0, x_t, t), variance(t))

    return denoise


@cache
def closed_form(name):
    """(terms at t = 1..T, prior) in bits, the mean over MASS and the noise."""
    second = (MASS * LEVELS**2).sum()
    t = np.arange(2, 1001)
    small = BETAS[t - 1] * (1 - BAR[t - 1]) / (1 - BAR[t])
    of_x0 = np.sqrt(BAR[t - 1]) * BETAS[t - 1] / (1 - BAR[t])
    chosen = {
        "optimal": small + of_x0**2 * MISS[t],
        "fixed large": BETAS[t - 1],
        "fixed small": small,
    }[name]
    factor = np.sqrt(BAR[t]) * STD**2 / (BAR[t] * STD**2 + 1 - BAR[t])  # E[x0 | x_t] = factor x_t
    error = (1 - factor * np.sqrt(BAR[t])) ** 2 * second + factor**2 * (1 - BAR[t])
    kl = 0.5 * (np.log(chosen / small) - 1 + (small + of_x0**2 * error) / chosen) / math.log(2)
    prior = 0.5 * (BAR[-1] * second - BAR[-1] - math.log(1 - BAR[-1])) / math.log(2)
    return np.concatenate([[decoder(name)], kl]), prior


def decoder(name):
    """The term at t = 1, by integration over the noise, level by level."""
    # the posterior's variance of the step above, which Ho takes at t = 1
    above = BETAS[1] * (1 - BAR[1]) / (1 - BAR[2])
    scale = math.sqrt(MISS[1] if name == "optimal" else above)
    alpha, sigma = math.sqrt(BAR[1]), math.sqrt(1 - BAR[1])
    factor, noise = alpha * STD**2 / (BAR[1] * STD**2 + 1 - BAR[1]), np.linspace(-9, 9, 401)
    total = 0.0
    for level, low, high, mass in zip(LEVELS, EDGES, EDGES[1:], MASS):
        if mass < 1e-15:
            continue
        mean = factor * (alpha * level + sigma * noise)
        a, b = (low - mean) / scale, (high - mean) / scale
        side = np.where(a + b > 0, -1, 1)  # to the left of the mean, where the tails do not cancel
        a, b = np.where(side < 0, -b, a), np.where(side < 0, -a, b)
        log_mass = scipy.stats.norm.logcdf(b) + np.log1p(
            -np.exp(scipy.stats.norm.logcdf(a) - scipy.stats.norm.logcdf(b))
        )
        total -= mass * scipy.integrate.simpson(scipy.stats.norm.pdf(noise) * log_mass, x=noise)
    return total / math.log(2)


def expected(name, monkeypatch, timesteps=None, nodes=5):
    """bound() by quadrature over the noise: one image of one value for each level and node. ->
    (bits, terms [T], prior)."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    possible = MASS > 1e-12
    x0 = torch.from_numpy(LEVELS[possible]).repeat_interleave(nodes)[:, None, None, None]
    noise = torch.from_numpy(points).repeat(int(possible.sum()))[:, None, None, None]
    weight = torch.from_numpy(np.outer(MASS[possible], weights / weights.sum())).flatten()
    monkeypatch.setattr(likelihood, "noise_at", lambda t, seeds, shape: noise)
    found = bound(ideal(VARIANCES[name]), LINEAR, x0, range(len(x0)), timesteps)
    return (
        (found.bits @ weight).item(),
        (found.terms @ weight).numpy(),
        (found.prior @ weight).item(),
    )


@pytest.mark.parametrize(
    ("name", "bits"), [("optimal", 7.044), ("fixed large", 7.167), ("fixed small", 7.794)]
)
def test_the_bound_of_gaussian_data_is_its_closed_form(monkeypatch, name, bits):
    total, terms, prior = expected(name, monkeypatch)
    theirs, their_prior = closed_form(name)
    entropy = -(MASS * np.log2(np.maximum(MASS, 1e-300))).sum()
    print(
        f"{name}: {total:.5f} bits, closed form {theirs.sum() + their_prior:.5f}, entropy "
        f"{entropy:.5f}"
    )
    np.testing.assert_allclose(terms[1:], theirs[1:], rtol=1e-6, atol=1e-9)
    assert terms[0] == pytest.approx(theirs[0], abs=2e-5) and prior == pytest.approx(
        their_prior, rel=1e-6
    )
    assert total == pytest.approx(theirs.sum() + their_prior, abs=3e-5)
    assert total == pytest.approx(bits, abs=0.005) and entropy == pytest.approx(7.041, abs=1e-3)
    assert total > entropy
    assert (total < entropy + 0.01) == (name == "optimal")


def images(n, seed=0, dtype=torch.float32):
    """[n, 3, 16, 16] of the data."""
    level = np.random.default_rng(seed).choice(256, (n, 3, 16, 16), p=MASS / MASS.sum())
    return torch.from_numpy(LEVELS[level]).to(dtype)


def test_images_and_noise_that_are_drawn_come_to_the_same_in_float32():
    few = schedules.from_betas(BETAS[:60])
    found = bound(ideal(VARIANCES["optimal"], few), few, images(24), range(24))
    mean, error = found.terms.sum(0).mean().item(), found.terms.sum(0).std().item() / 24**0.5
    truth = closed_form("optimal")[0][:60].sum()
    print(f"{mean:.4f} +- {error:.4f}, closed form {truth:.4f}")
    assert error < 0.03 and abs(mean - truth) < 4 * error
    assert torch.equal(found.bits, found.prior + found.terms.sum(0)) and found.terms.shape == (
        60,
        24,
    )
    assert found.t[:, 7].tolist() == list(range(1, 61))


def test_an_image_has_its_own_noise_and_t_whatever_the_batch():
    cut = strata(1000, 6)
    together = bound(
        ideal(VARIANCES["fixed large"]), LINEAR, images(3, dtype=torch.float64), [5, 6, 7], cut
    )
    alone = bound(
        ideal(VARIANCES["fixed large"]), LINEAR, images(3, dtype=torch.float64)[1:2], [6], cut
    )
    torch.testing.assert_close(together.bits[1:2], alone.bits, rtol=1e-12, atol=0)
    assert torch.equal(together.t[:, 1:2], alone.t)
    assert len({tuple(t) for t in together.t.T.tolist()}) == 3


def test_the_noise_at_a_t_is_the_same_in_every_and_in_some():
    some = [range(1, 2), range(40, 41)]
    ours, theirs = (
        bound(ideal(VARIANCES["optimal"], s), s, images(2), [0, 1], cut).terms
        for s in [schedules.linear(40)]
        for cut in (some, None)
    )
    torch.testing.assert_close(ours, theirs[[0, 39]], rtol=1e-12, atol=0)
    assert not torch.equal(
        likelihood.noise_at(torch.tensor([3, 4]), [0, 0], (4,))[0],
        likelihood.noise_at(torch.tensor([3, 4]), [0, 0], (4,))[1],
    )


@pytest.mark.parametrize(
    ("steps", "count"),
    [(1000, 2), (1000, 10), (1000, 50), (1000, 999), (1000, 1000), (50, 7), (2, 2), (1, 1)],
)
def test_strata_cut_every_t_once(steps, count):
    cut = strata(steps, count)
    assert [t for stratum in cut for t in stratum] == list(range(1, steps + 1))
    assert len(cut) == count and cut[0] == range(1, 2)
    assert [len(r) for r in cut] == sorted(
        len(r) for r in cut
    ) or steps - count < 10  # the later the longer


def test_the_t_of_a_stratum_is_drawn_evenly_so_that_the_sum_is_unbiased():
    """On given terms: the expectation is their sum, and any t has its chance."""
    cut, seeds = strata(60, 8), range(4000)
    t = drawn(cut, seeds)
    for stratum, ours in zip(cut, t):
        count = torch.bincount(ours, minlength=61)[stratum.start : stratum.stop]
        assert count.sum() == len(seeds)  # none outside
        assert len(stratum) == 1 or scipy.stats.chisquare(count.numpy()).pvalue > 1e-4
    terms = torch.cat(
        [
            torch.zeros(1),
            3 / torch.arange(1, 61) + torch.rand(60, generator=torch.Generator().manual_seed(0)),
        ]
    ).double()
    estimates = (torch.tensor([len(r) for r in cut])[:, None] * terms[t]).sum(0)
    assert abs(estimates.mean() - terms.sum()) < 4 * estimates.std() / len(seeds) ** 0.5
    assert estimates.std() < terms.sum()
    pair = np.corrcoef(t[-2:].double().numpy())[0, 1]
    assert abs(pair) < 0.06  # strata are drawn apart


def test_a_stratum_counts_for_each_t_in_it():
    """Where all terms are known, so is what is estimated: at the t drawn, times the length."""
    few, x0 = schedules.linear(100), images(2, dtype=torch.float64)
    full, some = (
        bound(ideal(VARIANCES["optimal"], few), few, x0, [3, 4], cut)
        for cut in (every(100), strata(100, 5))
    )
    for k, stratum in enumerate(strata(100, 5)):
        for n in range(2):
            assert some.terms[k, n].item() == pytest.approx(
                len(stratum) * full.terms[some.t[k, n] - 1, n].item(), rel=1e-12
            )


def test_the_terms_are_the_losses_own():
    x0, t, seeds = images(2), torch.tensor([30, 30]), [1, 2]
    denoise = ideal(lambda t: Fraction(0.3))
    x_t = LINEAR.add_noise(x0, likelihood.noise_at(t, seeds, x0.shape[1:]), t)
    found = bound(denoise, LINEAR, x0, seeds, [range(30, 31)])
    torch.testing.assert_close(
        found.terms[0], bound_term(LINEAR, denoise(x_t, t), x0, x_t, t).double(), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(found.prior, prior_bits(LINEAR, x0).double(), rtol=1e-6, atol=0)
