"""DPM-Solver++(2M) and Heun: held to their papers' formulas, to the exact solution on Gaussian
data, and to diffusers' schedulers."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import runtime.torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
from diffusers import DPMSolverMultistepScheduler, HeunDiscreteScheduler

from diffusion import schedule as schedules
from diffusion.denoiser import Denoiser, Prediction
from diffusion.generate import SamplerSettings, generate
from diffusion.parameterization import PredictNoise, PredictVelocity
from diffusion.samplers import ancestral, ddim, dpm_solver, heun
from diffusion.spacing import even_steps, inclusive_steps, quadratic_steps, trailing_steps
from diffusion.variance import Fraction

LINEAR = schedules.linear(1000)
FINE = schedules.rescaled_linear(200_000)
MEAN, VARIANCE = 0.3, 0.25**2  # of the data, along one axis


def ideal(schedule, mean=MEAN, variance=VARIANCE):
    """E[x0 | x_t] for x0 ~ N(mean, variance)."""

    def denoise(x_t, t):
        bar = schedule.alpha_bar[t]
        x0 = mean + bar.sqrt() * variance / (bar * variance + 1 - bar) * (x_t - bar.sqrt() * mean)
        return Prediction(x0, (x_t - bar.sqrt() * x0) / (1 - bar).sqrt(), Fraction(0.0))

    return denoise


def exact(schedule, x, t, s):
    """The probability flow through Gaussian marginals: an affine map of mean to mean and deviation
    to deviation."""
    bar_t, bar_s = schedule.alpha_bar[t].item(), schedule.alpha_bar[s].item()
    spread = math.sqrt((bar_s * VARIANCE + 1 - bar_s) / (bar_t * VARIANCE + 1 - bar_t))
    return math.sqrt(bar_s) * MEAN + spread * (x - math.sqrt(bar_t) * MEAN)


def in_log_snr(schedule, count, last):
    """count + 1 different t from T down to last, evenly in log(alpha / sigma)."""
    half_log_snr = (0.5 * schedule.snr(torch.arange(1, schedule.steps + 1)).log()).numpy()
    wanted = np.linspace(half_log_snr[-1], half_log_snr[last - 1], count + 1)
    return [int(np.abs(half_log_snr - w).argmin()) + 1 for w in wanted]


@pytest.mark.parametrize("spacing", ["log-SNR", "t"])
@pytest.mark.parametrize(
    ("sampler", "order"),
    [(dpm_solver, 2), (heun, 2), (ddim, 1)],
    ids=["dpm_solver", "heun", "ddim"],
)
def test_the_order_on_gaussian_data(sampler, order, spacing):
    """Twice the steps: a quarter of the error of a second-order sampler, half of DDIM's. Down to t
    = T / 200, where the step to 0, of first order, is not yet taken."""
    x, last = (
        torch.tensor([[1.7], [-0.4]], dtype=torch.float64)[:, :, None, None],
        FINE.steps // 200,
    )
    expected = exact(FINE, x, FINE.steps, last)

    def error(count):
        evenly = np.linspace(FINE.steps, last, count + 1).round().astype(int).tolist()
        steps = in_log_snr(FINE, count, last) if spacing == "log-SNR" else evenly
        return (sampler(ideal(FINE), FINE, x, steps, None) - expected).abs().max().item()

    counts = [64, 128, 256]
    orders = [math.log2(a / b) for a, b in pairwise(map(error, counts))]
    print(f"{sampler.__name__}, {spacing}: orders {orders}, error at 256 steps {error(256):.1e}")
    assert orders[-1] == pytest.approx(order, abs=0.15)


def test_few_steps_of_second_order_beat_ddim():
    x = torch.tensor([1.7], dtype=torch.float64)[:, None, None, None]
    expected = exact(LINEAR, x, 1000, 0)
    steps = quadratic_steps(LINEAR, 20)  # short towards t = 1, as the step to 0 is of first order
    error = {
        f.__name__: (f(ideal(LINEAR), LINEAR, x, steps, None) - expected).abs().item()
        for f in (ddim, dpm_solver, heun)
    }
    print(error)
    assert error["dpm_solver"] < error["ddim"] / 3 and error["heun"] < error["ddim"] / 3, error


@pytest.mark.parametrize(
    "steps", [trailing_steps(LINEAR, 10), even_steps(LINEAR, 7), [1000, 300, 2], [5, 0]], ids=str
)
def test_dpm_solver_is_algorithm_2(steps):
    """In the paper's own terms: lambda, h, r and D."""
    x = torch.tensor([1.3], dtype=torch.float64)[:, None, None, None]
    bar = LINEAR.alpha_bar.numpy()
    with np.errstate(divide="ignore"):
        alpha, sigma, lam = np.sqrt(bar), np.sqrt(1 - bar), 0.5 * np.log(bar / (1 - bar))
    denoise, value, before = ideal(LINEAR), x.item(), None
    for i, (t, s) in enumerate(pairwise(steps)):
        x0 = denoise(torch.tensor(value, dtype=torch.float64), t).x0.item()
        D = x0
        if i > 0 and s > 0:
            r = (lam[t] - lam[steps[i - 1]]) / (lam[s] - lam[t])
            D = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        value = sigma[s] / sigma[t] * value - alpha[s] * np.expm1(-(lam[s] - lam[t])) * D
        before = x0
    assert dpm_solver(denoise, LINEAR, x, steps, None).item() == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize(
    "steps", [trailing_steps(LINEAR, 10), even_steps(LINEAR, 7), [500, 300, 2], [5, 0]], ids=str
)
def test_heun_is_edms_algorithm_1(steps):
    """In EDM's variables: x / alpha, and sigma / alpha as the time; D(x; sigma) is the predicted
    x0. Where a step falls to less than a quarter (its own noise levels never do) the second D
    alone."""
    x = torch.tensor([1.3], dtype=torch.float64)[:, None, None, None]
    bar = LINEAR.alpha_bar.numpy()
    alpha, noise = np.sqrt(bar), np.sqrt((1 - bar) / bar)
    denoise = ideal(LINEAR)

    def derivative(value, t):
        return (
            value - denoise(torch.tensor(value * alpha[t], dtype=torch.float64), t).x0.item()
        ) / noise[t]

    value = x.item() / alpha[steps[0]]
    for t, s in pairwise(steps):
        d = derivative(value, t)
        euler = value + (noise[s] - noise[t]) * d
        if s == 0:
            value = euler
        elif noise[t] <= 4 * noise[s]:
            value = value + (noise[s] - noise[t]) * (d + derivative(euler, s)) / 2
        else:
            x0 = denoise(torch.tensor(euler * alpha[s], dtype=torch.float64), s).x0.item()
            value = x0 + noise[s] / noise[t] * (value - x0)
    assert heun(denoise, LINEAR, x, steps, None).item() == pytest.approx(
        value * alpha[steps[-1]], rel=1e-10
    )


@pytest.mark.parametrize("spacing", [trailing_steps, inclusive_steps])
@pytest.mark.parametrize(
    "schedule",
    [schedules.cosine(1000), schedules.cosine(4000), schedules.sigmoid(1000)],
    ids=["cosine", "cosine of 4000", "sigmoid"],
)
def test_heun_from_hardly_any_signal(schedule, spacing):
    """sigma / alpha falls from 80,000 to 13 in the first step of the cosine of 4000, which a mean
    of two slopes does not follow."""
    x, steps = (
        torch.tensor([1.7, -0.4], dtype=torch.float64)[:, None, None, None],
        spacing(schedule, 20)[:-1],
    )
    expected = exact(schedule, x, schedule.steps, steps[-1])
    error = {
        f: (f(ideal(schedule), schedule, x, steps, None) - expected).abs().max().item()
        for f in (heun, ddim)
    }
    print(error)
    assert error[heun] < error[ddim] / 2


@pytest.mark.parametrize("fall", [1.1, 1.5, 2, 3, 3.9, 4.1, 8, 31.6, 1000])
def test_heun_errs_less_than_ddim_in_the_worst_case(fall):
    """One step over which sigma / alpha falls so many times, from 100 down, for Gaussian data of
    any variance: |log(x_s / exact)|."""
    noise = torch.tensor([0, 100 / fall, 100], dtype=torch.float64)
    schedule, x = (
        schedules.NoiseSchedule(1 / (1 + noise**2)),
        torch.ones(1, 1, 1, 1, dtype=torch.float64),
    )
    (alpha_t, _), (alpha_s, _) = schedule.alpha_sigma(2), schedule.alpha_sigma(1)
    errors = {heun: [], ddim: []}
    for variance in np.logspace(-4, 10, 300):
        exact_x = (
            alpha_s / alpha_t * math.sqrt((variance + noise[1] ** 2) / (variance + noise[2] ** 2))
        )
        for sampler, found in errors.items():
            found.append(
                abs(
                    (sampler(ideal(schedule, 0.0, variance), schedule, x, [2, 1], None) / exact_x)
                    .log()
                    .item()
                )
            )
    print({sampler.__name__: max(found) for sampler, found in errors.items()})
    assert max(errors[heun]) < max(errors[ddim])


def test_no_step_waits_for_the_device():
    """On the meta device whatever asks for a value raises."""
    denoiser = Denoiser(Toy(), LINEAR, PredictNoise()).to("meta")
    x, schedule = torch.empty(2, 3, 4, 4, device="meta"), denoiser.schedule
    # heun copies it first
    for sampler, known in (
        (ancestral, schedule),
        (ddim, schedule),
        (dpm_solver, schedule),
        (heun, LINEAR),
    ):
        assert sampler(denoiser, known, x, [1000, 500, 1, 0], torch.randn_like).shape == x.shape


@pytest.mark.parametrize("sampler", [dpm_solver, heun])
def test_zero_terminal_snr(sampler):
    """From T itself, where x_T tells nothing and the log-SNR is minus infinity: finite, and near
    the exact deviation."""
    schedule = schedules.zero_terminal(LINEAR)
    x = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)[:, None, None, None]
    out = sampler(ideal(schedule), schedule, x, trailing_steps(LINEAR, 50), None).flatten()
    assert out[1].item() == pytest.approx(MEAN, abs=1e-6)
    assert ((out[2] - out[0]) / 2).item() == pytest.approx(math.sqrt(VARIANCE), rel=0.1)
    denoiser = Denoiser(Toy(), schedule, PredictVelocity())
    assert (
        sampler(denoiser, schedule, torch.randn(2, 3, 4, 4), trailing_steps(LINEAR, 5), None)
        .isfinite()
        .all()
    )


@pytest.mark.parametrize(
    ("sampler", "calls"),
    [(dpm_solver, 5), (heun, 9), (ddim, 5)],
    ids=["dpm_solver", "heun", "ddim"],
)
def test_progress_counts_steps_and_not_calls(sampler, calls):
    seen, called = [], []

    def denoise(x, t):
        called.append(t)
        return ideal(LINEAR)(x.double(), t)

    settings = SamplerSettings(sampler, trailing_steps, 5)
    generate(denoise, LINEAR, settings, (1, 2, 2), [0, 1], lambda x0, t: seen.append(t))
    assert seen == [1000, 800, 600, 400, 200] and len(called) == calls


@pytest.mark.parametrize(
    ("total", "count"),
    [(1000, 1000), (1000, 50), (4000, 250), (1000, 7), (10, 3), (1, 1), (5, 2), (1000, 1)],
)
def test_inclusive_steps(total, count):
    """K real numbers evenly from 1 to T, both among them, rounded; from high to low."""
    expected = [round(float(v)) for v in np.linspace(total, 1, count)]
    steps = inclusive_steps(schedules.linear(total), count)
    assert len(steps) == count + 1 and all(
        abs(a - b) <= 1 for a, b in zip(steps, [*expected, 0], strict=True)
    )
    assert (
        steps[0] == total
        and steps[-2] == (1 if count > 1 else total)
        and all(t > s for t, s in pairwise(steps))
    )


# against diffusers


class Toy(nn.Module):
    """A smooth function of pixels, neighbours and time; timesteps from 0, as diffusers' networks
    take them."""

    def forward(self, x, timestep, condition):
        time = timestep.to(x.dtype)[:, None, None, None] / 1000
        return torch.tanh(0.8 * x + 0.3 * x.roll(1, -1) - 0.2 * x.roll(1, -2) + time) + 0.1 * time


def start():
    return torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0))


def theirs(scheduler, count):
    """The last x of a diffusers scheduler's trajectory; float32, which they cast to."""
    scheduler.set_timesteps(count)
    x = start() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        noise = Toy()(scheduler.scale_model_input(x, t), t.expand(len(x)), {})
        x = scheduler.step(noise, t, x).prev_sample
    return x


@pytest.mark.parametrize("count", [8, 20, 50])
def test_dpm_solver_is_diffusers(count):
    scheduler = DPMSolverMultistepScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
    )
    ours = dpm_solver(
        Denoiser(Toy(), LINEAR, PredictNoise()),
        LINEAR,
        start().double(),
        trailing_steps(LINEAR, count),
        None,
    )
    torch.testing.assert_close(theirs(scheduler, count).double(), ours, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("count", [8, 20, 50])
def test_heun_is_diffusers(count):
    """Theirs starts from sqrt(1 + sigma^2) x_T in EDM's variable, which is x_T / alpha: the
    same."""
    scheduler = HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing")
    ours = heun(
        Denoiser(Toy(), LINEAR, PredictNoise()),
        LINEAR,
        start().double(),
        trailing_steps(LINEAR, count),
        None,
    )
    torch.testing.assert_close(theirs(scheduler, count).double(), ours, rtol=2e-3, atol=2e-3)
