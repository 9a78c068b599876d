"""Samplers on Gaussian data, where the ideal denoiser is a formula and every sampler is an affine
map of its noise.

Such a map is known once it was run on zeros and on unit impulses, so means and covariances below
are exact: nothing is drawn.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from config.overrides import composed, options
from diffusion import samplers
from diffusion import schedule as schedules
from diffusion.denoiser import Denoiser, Prediction
from diffusion.generate import SamplerSettings, as_made, generate, steps_of
from diffusion.image_noise import NoisePerImage
from diffusion.parameterization import PredictNoise, PredictVelocity
from diffusion.samplers import ancestral, ddim
from diffusion.spacing import (
    even_steps,
    inclusive_steps,
    log_snr_steps,
    quadratic_steps,
    trailing_steps,
)
from diffusion.variance import FixedLarge, FixedSmall, Fraction
from runtime.config_schema import parse

FIXED_SMALL, FIXED_LARGE = FixedSmall(), FixedLarge()

LINEAR = schedules.linear(1000)
ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
DATA = {
    "narrow": (np.array([0.3]), np.array([[0.25**2]])),
    "wide": (np.array([-2.0]), np.array([[9.0]])),
    "unit": (np.array([0.5]), np.array([[1.0]])),
    "anisotropic": (np.array([0.5, -1.0, 0.1]), ROTATION @ np.diag([1e-4, 0.3, 4.0]) @ ROTATION.T),
}


def ideal(schedule, mean, covariance, variance=FIXED_SMALL):
    """E[x0 | x_t] = mean + alpha S (alpha^2 S + sigma^2 I)^-1 (x_t - alpha mean), for x0 ~ N(mean,
    S); x [B, d, 1, 1]."""
    mean, covariance = torch.from_numpy(mean), torch.from_numpy(covariance)

    def denoise(x_t, t):
        alpha_bar = schedule.alpha_bar[t]
        gain = alpha_bar.sqrt() * torch.linalg.solve(
            alpha_bar * covariance + (1 - alpha_bar) * torch.eye(len(mean)).double(), covariance
        )
        x = x_t.flatten(1)
        x0 = mean + (x - alpha_bar.sqrt() * mean) @ gain
        noise = (x - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()
        return Prediction(x0.reshape(x_t.shape), noise.reshape(x_t.shape), variance(None, t))

    return denoise


def affine(sampler, denoise, schedule, steps, size, draws):
    """(offset [d], matrix [d, d (1 + draws)]) of the sampler as a map of x_T and of its draws, by
    unit impulses, float64."""
    count = size * (1 + draws)
    impulses = (
        torch.cat([torch.zeros(1, count), torch.eye(count)])
        .double()
        .view(count + 1, 1 + draws, size, 1, 1)
    )
    drawn = iter(range(1, 1 + draws))
    out = sampler(
        denoise,
        schedule,
        impulses[:, 0],
        steps,
        lambda like: impulses[:, next(drawn)].reshape(like.shape),
    ).flatten(1)
    assert next(drawn, None) is None, "the sampler drew less often than it should"
    return out[0].numpy(), (out[1:] - out[0]).numpy().T


def moments(sampler, denoise, schedule, steps, size, draws):
    """Exact mean and covariance of what the sampler makes from normal x_T and normal draws."""
    offset, matrix = affine(sampler, denoise, schedule, steps, size, draws)
    return offset, matrix @ matrix.T


def recursion(mean, covariance, steps, factor, added, schedule=LINEAR):
    """Closed form of the same: in the eigenbasis, x_s - alpha_s mu = factor (x_t - alpha_t mu) +
    sqrt(added) z at every step.

    factor, added: (v, alpha_bar_s, alpha_bar_t) with v the data's variance along each axis.
    """
    v, axes = np.linalg.eigh(covariance)
    bar = schedule.alpha_bar.numpy()
    center = axes.T @ mean
    offset, variance = -np.sqrt(bar[steps[0]]) * center, np.ones(len(v))  # x_T ~ N(0, I)
    for t, s in pairwise(steps):
        scale = factor(v, bar[s], bar[t])
        offset, variance = scale * offset, scale**2 * variance + added(v, bar[s], bar[t])
    return axes @ (offset + np.sqrt(bar[steps[-1]]) * center), axes @ np.diag(variance) @ axes.T


def marginal(v, bar):
    """Variance of x_t along an axis."""
    return bar * v + 1 - bar


def posterior_variance(v, bar_s, bar_t):
    """q(x_s | x_t, x_0), eq. 7 of Ho et al. 2020; 0 at s = 0."""
    return (1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)


def beta(v, bar_s, bar_t):
    """beta_t of the step, but no noise on the step to 0 (algorithm 2 of Ho et al. 2020)."""
    return (1 - bar_t / bar_s) * (bar_s < 1)


def regression(v, bar_s, bar_t):
    """E[x_s | x_t] for jointly Gaussian x_s and x_t: Cov(x_s, x_t) / Var(x_t)."""
    return np.sqrt(bar_t / bar_s) * marginal(v, bar_s) / marginal(v, bar_t)


def ddim_factor(eta, v, bar_s, bar_t):
    """Eq. 12 of Song et al. 2021 with the ideal x0 and noise put in."""
    kept = np.sqrt(1 - bar_s - eta**2 * posterior_variance(v, bar_s, bar_t))
    return (np.sqrt(bar_s * bar_t) * v + kept * np.sqrt(1 - bar_t)) / marginal(v, bar_t)


def no_noise(v, bar_s, bar_t):
    return 0.0


@pytest.mark.parametrize(
    "steps",
    [even_steps(LINEAR, 50), quadratic_steps(LINEAR, 20), [1000, 0], [1000, 3, 2, 1]],
    ids=len,
)
@pytest.mark.parametrize("name", DATA)
def test_ddim_is_its_affine_map(name, steps):
    """Deterministic DDIM: the exact product of its steps' factors, and no draw at all."""
    mean, covariance = DATA[name]
    ours = moments(ddim, ideal(LINEAR, mean, covariance), LINEAR, steps, len(mean), 0)
    expected = recursion(mean, covariance, steps, partial(ddim_factor, 0.0), no_noise)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize(
    "steps", [even_steps(LINEAR, 50), trailing_steps(LINEAR, 7), [900, 500, 100]], ids=len
)
@pytest.mark.parametrize("name", DATA)
def test_ddim_with_noise_is_its_affine_map(name, steps, eta):
    """eta > 0: eta^2 times the posterior's variance is added, taken from the predicted noise's
    share; none on a step to 0."""
    mean, covariance = DATA[name]
    draws = len(steps) - 1 - (steps[-1] == 0)
    ours = moments(
        partial(ddim, eta=eta), ideal(LINEAR, mean, covariance), LINEAR, steps, len(mean), draws
    )
    expected = recursion(
        mean,
        covariance,
        steps,
        partial(ddim_factor, eta),
        lambda *a: eta**2 * posterior_variance(*a),
    )
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("variance", "added"), [(FIXED_SMALL, posterior_variance), (FIXED_LARGE, beta)]
)
@pytest.mark.parametrize(
    "steps", [even_steps(LINEAR, 50), trailing_steps(LINEAR, 7), [900, 500, 100]], ids=len
)
@pytest.mark.parametrize("name", DATA)
def test_ancestral_is_its_affine_map(name, steps, variance, added):
    """The mean is the regression of x_s on x_t; the variance asked for is added, on sub-sequences
    of steps too."""
    mean, covariance = DATA[name]
    draws = len(steps) - 1 - (steps[-1] == 0)
    ours = moments(
        ancestral, ideal(LINEAR, mean, covariance, variance), LINEAR, steps, len(mean), draws
    )
    expected = recursion(mean, covariance, steps, regression, added)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("steps", [even_steps(LINEAR, 50), quadratic_steps(LINEAR, 30)], ids=len)
def test_ddim_with_eta_one_is_ancestral_sampling(steps):
    """Song et al. 2021: eta = 1 is DDPM with the posterior's variance, draw for draw the same
    map."""
    mean, covariance = DATA["anisotropic"]
    draws, denoise = len(steps) - 2, ideal(LINEAR, mean, covariance)
    maps = [
        affine(s, denoise, LINEAR, steps, 3, draws) for s in (partial(ddim, eta=1.0), ancestral)
    ]
    for a, b in zip(*maps, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_ancestral_at_1000_steps_has_the_datas_variance():
    """The bracket of Ho et al. 2020, section 3.2: fixed large is exact for N(0, 1) data and too
    wide for narrower, fixed small is too narrow for anything but a point; at 1000 steps both come
    within 4% of the data's variance, as their recursion says."""
    steps, ratio = even_steps(LINEAR, 1000), {}
    for variance, added in ((FIXED_SMALL, posterior_variance), (FIXED_LARGE, beta)):
        for name in ("narrow", "unit"):
            mean, covariance = DATA[name]
            got_mean, got = moments(
                ancestral, ideal(LINEAR, mean, covariance, variance), LINEAR, steps, 1, 999
            )
            np.testing.assert_allclose(
                got, recursion(mean, covariance, steps, regression, added)[1], rtol=1e-9
            )
            # N(0, I) at T is not quite q(x_T): alpha_T = 0.006
            np.testing.assert_allclose(got_mean, mean, atol=0.01)
            ratio[variance, name] = (got / covariance).item()
    # Unit data: each step keeps variance 1, and the last adds no noise: x_0 = sqrt(1 - beta_1) x_1
    # + constant.
    assert ratio[FIXED_LARGE, "unit"] == pytest.approx(1 - 1e-4, rel=1e-9)
    assert 0.96 < ratio[FIXED_SMALL, "narrow"] < 1 < ratio[FIXED_LARGE, "narrow"] < 1.02
    assert 0.98 < ratio[FIXED_SMALL, "unit"] < ratio[FIXED_LARGE, "unit"]


def test_fixed_small_is_exact_for_a_single_image():
    """The other end of that bracket: for data at one point every x_s has exactly q(x_s)'s mean and
    variance."""
    mean, covariance = np.array([0.7, -0.2]), np.zeros((2, 2))
    for last in (500, 1):
        steps = [1000, 900, 700, 501, last]
        # x_T ~ N(0, 1) forgets 0.006 of the image; from q(x_T) itself everything is exact: correct
        # for what the start lacks.
        offset, matrix = affine(ancestral, ideal(LINEAR, mean, covariance), LINEAR, steps, 2, 4)
        bar = LINEAR.alpha_bar.numpy()
        start = math.sqrt(bar[1000]) * mean, math.sqrt(1 - bar[1000])
        got_mean = offset + matrix[:, :2] @ start[0]
        got = start[1] ** 2 * matrix[:, :2] @ matrix[:, :2].T + matrix[:, 2:] @ matrix[:, 2:].T
        np.testing.assert_allclose(got_mean, math.sqrt(bar[last]) * mean, rtol=1e-9)
        np.testing.assert_allclose(got, (1 - bar[last]) * np.eye(2), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("v", [0.25**2, 4.0])
def test_ddim_converges_with_order_one(v):
    """The exact flow scales x by sqrt(Var x_s / Var x_t): halving the steps' length halves the
    error, from 600 down to 100."""
    errors = []
    bar = LINEAR.alpha_bar.numpy()
    exact = math.sqrt(marginal(v, bar[100]) / marginal(v, bar[600]))
    for length in (20, 10, 5):
        steps = list(range(600, 99, -length))
        _, matrix = affine(ddim, ideal(LINEAR, np.zeros(1), np.array([[v]])), LINEAR, steps, 1, 0)
        errors.append(abs(matrix.item() / exact - 1))
    assert errors[0] < 0.05
    for coarse, fine in pairwise(errors):
        assert 1.8 < coarse / fine < 2.2


def test_learned_variance_per_pixel_reaches_the_sampler():
    """A fraction of x's shape sets each pixel's own noise: between the posterior's (0) and beta's
    (1) in the log."""
    fraction = torch.tensor([0.0, 0.5, 1.0]).double().view(1, 3, 1, 1)

    def denoise(x_t, t):
        return Prediction(x_t, x_t, Fraction(fraction.expand(x_t.shape)))

    for batch in (1, 4):
        x = torch.zeros(batch, 3, 1, 1, dtype=torch.float64)
        out = ancestral(denoise, LINEAR, x, [900, 400], torch.ones_like)
        bar_s, bar_t = LINEAR.alpha_bar[[400, 900]].tolist()
        small, large = posterior_variance(None, bar_s, bar_t), beta(None, bar_s, bar_t)
        expected = [math.sqrt(small), (small * large) ** 0.25, math.sqrt(large)]
        assert out.shape == x.shape
        for image in out.flatten(1):
            np.testing.assert_allclose(image, expected, rtol=1e-9)


@pytest.mark.parametrize(
    "sampler", [ancestral, ddim, partial(ddim, eta=1.0)], ids=["ancestral", "ddim", "ddim eta 1"]
)
def test_zero_terminal_snr_is_sampled_from_its_end(sampler):
    """From T itself, where x_T tells nothing: the first step predicts the data's mean, and all
    stays finite in float32 too."""
    schedule = schedules.zero_terminal(LINEAR)
    mean, covariance = DATA["narrow"]
    steps = trailing_steps(LINEAR, 25)
    draws = 0 if sampler is ddim else 24
    got_mean, got = moments(sampler, ideal(schedule, mean, covariance), schedule, steps, 1, draws)
    # exact: nothing of x_T's mean is left to be wrong about
    np.testing.assert_allclose(got_mean, mean, rtol=1e-9)
    assert 0.3 < (got / covariance).item() < 1.1
    denoiser = Denoiser(Toy(), schedule, PredictVelocity(), FIXED_SMALL)
    assert (
        sampler(denoiser, schedule, torch.randn(2, 3, 4, 4), steps, torch.randn_like)
        .isfinite()
        .all()
    )


@pytest.mark.parametrize(
    ("total", "count"),
    [
        (1000, 1000),
        (1000, 50),
        (1000, 10),
        (1000, 1),
        (1000, 300),
        (1000, 600),
        (10, 3),
        (1, 1),
        (99, 50),
        (4000, 100),
    ],
)
def test_even_steps(total, count):
    """range(0, T, T // S), the 0-based steps of Song's code, counted from 1 and falling to 0; more
    than S where S does not divide T."""
    expected = [u + 1 for u in range(0, total, total // count)]
    assert even_steps(schedules.linear(total), count) == [*reversed(expected), 0]


@pytest.mark.parametrize(
    ("total", "count"),
    [(1000, 1000), (1000, 50), (1000, 10), (1000, 1), (10, 3), (1, 1), (5, 5), (4000, 100)],
)
def test_quadratic_steps(total, count):
    """int(linspace(0, sqrt(0.8 T), S)^2), Song et al. 2021, the same counting; equal ones are taken
    once."""
    end = math.sqrt(0.8 * total)
    squares = {int((end * k / max(count - 1, 1)) ** 2 + 1e-9) + 1 for k in range(count)}
    steps = quadratic_steps(schedules.linear(total), count)
    assert steps[-1] == 0 and steps[0] <= total and all(t > s for t, s in pairwise(steps))
    assert len(squares ^ set(steps[:-1])) <= 2  # a whole number may round to either side
    assert set(steps[:-1]) == {int(u) + 1 for u in np.linspace(0, np.sqrt(total * 0.8), count) ** 2}


def test_quadratic_steps_by_hand():
    """T = 1000, S = 10: squares of multiples of sqrt(800) / 9, 0-based 0, 9, 39, 88, 158, 246, 355,
    483, 632, 800 (or 799)."""
    assert quadratic_steps(LINEAR, 10)[1:] == [633, 484, 356, 247, 159, 89, 40, 10, 1, 0]
    assert quadratic_steps(LINEAR, 10)[0] in (800, 801)


@pytest.mark.parametrize(
    ("total", "count"), [(1000, 1000), (1000, 50), (1000, 7), (1000, 1), (10, 3), (1, 1), (5, 4)]
)
def test_trailing_steps(total, count):
    """round(arange(T, 0, -T / S)), Lin et al. 2024, table 2 (their 0-based steps are these less
    1)."""
    expected = np.round(np.arange(total, 0, -total / count)).astype(int)[:count].tolist()
    assert trailing_steps(schedules.linear(total), count) == [*expected, 0]


@pytest.mark.parametrize(
    "spacing", [even_steps, quadratic_steps, trailing_steps, inclusive_steps, log_snr_steps]
)
def test_every_count_gives_steps_a_sampler_accepts(spacing):
    """Falling from at most T to 0 for every count from 1 to T; so many of them, but for quadratic
    (equal ones are one) and even (more where count does not divide T); those that are not Song et
    al.'s start at T."""
    for total, schedule in [
        (total, make(total))
        for total in (1, 2, 3, 4, 5, 7, 16, 33)
        for make in (schedules.linear, schedules.cosine)
    ]:
        for count in range(1, total + 1):
            steps = spacing(schedule, count)
            assert steps[-1] == 0 and steps[0] <= total and all(t > s for t, s in pairwise(steps))
            more, fewer = spacing is even_steps and total % count > 0, spacing is quadratic_steps
            assert (
                len(steps) == count + 1
                or (more and len(steps) > count + 1)
                or (fewer and len(steps) <= count + 1)
            )
            assert spacing in (even_steps, quadratic_steps) or steps[0] == total


@pytest.mark.parametrize(
    "schedule",
    [LINEAR, schedules.cosine(1000), schedules.cosine(4000), schedules.sigmoid(1000)],
    ids=["linear", "cosine", "cosine of 4000", "sigmoid"],
)
@pytest.mark.parametrize("count", [2, 10, 50, 334, 600, 1000])
def test_log_snr_steps(schedule, count):
    """By brute force: the nearest t in the log of the signal-to-noise ratio, from T to 1; below the
    one before where that is as low, and never so low that too few are left."""
    log_snr = schedule.snr(torch.arange(1, schedule.steps + 1)).log().numpy()
    expected, before = [], schedule.steps + 1
    for k in range(count):
        wanted = log_snr[-1] + (log_snr[0] - log_snr[-1]) * k / (count - 1)
        # between two t, by the log
        where = np.interp(wanted, log_snr[::-1], np.arange(schedule.steps, 0, -1))
        before = min(before - 1, round(float(where)))
        expected.append(max(before, count - k))
    steps = log_snr_steps(schedule, count)
    assert steps == [*expected, 0] and steps[0] == schedule.steps and steps[-2] == 1
    # but at the ends, where t is coarse, evenly: within what rounding to a t leaves
    if 2 < count <= 50:
        middle = [t for t in steps if 50 < t < 0.9 * schedule.steps]
        gaps = -np.diff(log_snr[np.array(middle) - 1]) / ((log_snr[-1] - log_snr[0]) / (count - 1))
        assert len(middle) < 3 or (abs(gaps - 1) < 0.2).all()


def test_log_snr_steps_without_an_end():
    """Zero terminal SNR: from T itself, evenly."""
    schedule = schedules.zero_terminal(LINEAR)
    assert log_snr_steps(schedule, 7) == trailing_steps(schedule, 7) and log_snr_steps(
        LINEAR, 1
    ) == [1000, 0]


@pytest.mark.parametrize(
    "spacing", [even_steps, quadratic_steps, trailing_steps, inclusive_steps, log_snr_steps]
)
@pytest.mark.parametrize("count", [0, -3, 1001])
def test_count_out_of_range_is_refused(spacing, count):
    """1 <= count <= T, and the message names the option."""
    with pytest.raises(ValueError, match=r"sampler\.steps"):
        steps_of(LINEAR, SamplerSettings(ddim, spacing, count))


class Toy(nn.Module):
    """Mixes neighbours, depends on the time, per image: what a batch must not change."""

    def forward(self, x, timestep, condition):
        time = timestep.to(x.dtype)[:, None, None, None] / 1000
        return torch.tanh(0.7 * x + 0.2 * x.roll(1, -1) + time)


def test_noise_per_image_is_the_same_in_any_batch():
    """Image k's noise is torch's own stream of its seed, to the bit, alone, in a batch of any order
    and in any later draw."""
    like = torch.zeros(4, 3, 8, 8)
    together, shuffled, alone = (
        NoisePerImage([7, 8, 9, 10]),
        NoisePerImage([10, 8, 7, 9]),
        NoisePerImage([9]),
    )
    generator = torch.Generator().manual_seed(9)
    for _ in range(3):
        a, b, c = together(like), shuffled(like), alone(like[:1])
        expected = torch.randn(3, 8, 8, generator=generator)
        assert (
            torch.equal(a[2], expected)
            and torch.equal(b[3], expected)
            and torch.equal(c[0], expected)
        )
        assert torch.equal(a[[3, 1, 0]], b[[0, 1, 2]])


def test_noise_per_image_is_normal_and_differs():
    """Mean and variance within 5 standard errors; neighbouring seeds and later draws are
    uncorrelated; the type follows."""
    count = 40_000
    randn = NoisePerImage(range(3))
    first, second = randn(torch.zeros(3, 1, 200, 200)), randn(torch.zeros(3, 1, 200, 200))
    rows = torch.cat([first, second]).flatten(1)
    assert (rows.mean(1).abs() < 5 / count**0.5).all() and (
        (rows.var(1) - 1).abs() < 5 * (2 / count) ** 0.5
    ).all()
    assert (torch.corrcoef(rows) - torch.eye(6)).abs().max() < 5 / count**0.5
    assert NoisePerImage([0])(torch.zeros(1, 2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    "function", [ancestral, partial(ddim, eta=0.7), ddim], ids=["ancestral", "ddim eta 0.7", "ddim"]
)
def test_an_image_depends_on_its_seed_and_not_on_its_batch(function):
    """Alone or in a batch of 7, in another place: the same image, bit for bit, whatever noise the
    sampler draws."""
    denoiser = Denoiser(Toy(), LINEAR, PredictNoise(), FIXED_LARGE)
    settings = SamplerSettings(function, even_steps, 10)
    batch = generate(denoiser, LINEAR, settings, (3, 8, 8), range(100, 107))
    for place, seed in ((0, 100), (3, 103), (6, 106)):
        alone = generate(denoiser, LINEAR, settings, (3, 8, 8), [seed])
        assert torch.equal(alone[0], batch[place])
    assert not torch.equal(batch[0], batch[1])


def test_generate_starts_from_its_seeds_noise_and_tells_its_steps():
    """The network's first input is the seeds' first normal draw to the bit; on_step sees (predicted
    x0, t) for each t of the spacing."""
    seen, told = [], []

    class Watching(Toy):
        def forward(self, x, timestep, condition):
            seen.append(x.clone())
            return super().forward(x, timestep, condition)

    denoiser = Denoiser(Watching(), LINEAR, PredictNoise())
    settings = SamplerSettings(ddim, quadratic_steps, 5)
    out = generate(
        denoiser, LINEAR, settings, (3, 8, 4), [11, 12], on_step=lambda x0, t: told.append((x0, t))
    )
    for k, seed in enumerate((11, 12)):
        assert torch.equal(
            seen[0][k], torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(seed))
        )
    assert [t for _, t in told] == quadratic_steps(LINEAR, 5)[:-1]
    assert torch.equal(told[-1][0], out)  # the step to 0 of DDIM is the last predicted x0
    assert not out.requires_grad


def test_generate_clips_the_predicted_x0_or_not():
    """clip keeps what on_step sees, and so the image, in [-1, 1]; without it a large x0 passes
    through."""

    def large(x_t, t):
        return Prediction(torch.full_like(x_t, 3.0), torch.zeros_like(x_t), Fraction(0.0))

    for clip, value in ((True, 1.0), (False, 3.0)):
        out = generate(
            large, LINEAR, SamplerSettings(ddim, trailing_steps, 4, clip), (1, 2, 2), [0]
        )
        assert torch.equal(out, torch.full_like(out, value))


@pytest.mark.parametrize(
    ("function", "spacing", "steps", "changed"),
    [
        (samplers.heun, trailing_steps, 20, True),
        (partial(ddim, eta=0.0), even_steps, 50, False),
        (ddim, partial(even_steps), 600, True),
        (ancestral, trailing_steps, 334, False),
        (samplers.dpm_solver, quadratic_steps, 20, False),
    ],
)
def test_images_of_an_earlier_version_are_told_apart(function, spacing, steps, changed):
    """Where the same settings made other images: as the claim of a folder and the protocol of an
    evaluation see them."""
    config = {"steps": steps}
    assert as_made(config, SamplerSettings(function, spacing, steps), LINEAR) == (
        config | {"revision": 2} if changed else config
    )


def test_a_sampler_stops_where_its_steps_end():
    """Steps may end at s > 0: two halves of a trajectory, joined, are the whole."""
    denoise, steps = ideal(LINEAR, *DATA["anisotropic"]), even_steps(LINEAR, 20)
    x = torch.randn(2, 3, 1, 1, dtype=torch.float64)
    for sampler in (samplers.ddim, samplers.ancestral):
        whole = sampler(denoise, LINEAR, x, steps, torch.ones_like)
        half = sampler(denoise, LINEAR, x, steps[:9], torch.ones_like)
        assert torch.equal(sampler(denoise, LINEAR, half, steps[8:], torch.ones_like), whole)


@pytest.mark.parametrize("name", options("sampler"))
def test_every_choice_of_a_sampler_keeps_the_data_of_a_gaussian(name):
    """Whatever is in conf/sampler: with 200 steps its 4,000 values have the mean of the data within
    4 standard errors and its standard deviation within 5%."""
    node = composed("sample", ["checkpoint=x", f"sampler={name}"])["sampler"]
    settings = parse(
        SamplerSettings, node | {"clip": False, "steps": 200}, ["diffusion"], "sampler"
    )
    steps = steps_of(LINEAR, settings)
    draw = torch.Generator().manual_seed(0)

    def randn(like):
        return torch.randn(like.shape, generator=draw, dtype=torch.float64)

    x = settings.function(
        ideal(LINEAR, *DATA["narrow"]), LINEAR, randn(torch.empty(4000, 1, 1, 1)), steps, randn
    )
    assert abs(x.mean() - 0.3) < 4 * 0.25 / 4000**0.5 and abs(x.std() / 0.25 - 1) < 0.05
