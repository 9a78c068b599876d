"""Samplers: free functions (denoise, schedule, x_T, steps, randn) -> x_0.

steps is any falling sequence of t that ends in 0; x_T [B, C, H, W] belongs to its first t. randn(x)
gives standard normal noise like x; a sampler calls it once for each step that needs noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from diffusion.denoiser import Denoise
from diffusion.schedule import NoiseSchedule, expand
from runtime.errors import UserError

RandnLike = Callable[[Tensor], Tensor]
Sampler = Callable[[Denoise, NoiseSchedule, Tensor, Sequence[int], RandnLike], Tensor]
# (schedule, count) -> the falling t of a trajectory, 0 last
Spacing = Callable[[NoiseSchedule, int], list[int]]


def ancestral(
    denoise: Denoise, schedule: NoiseSchedule, x: Tensor, steps: Sequence[int], randn: RandnLike
) -> Tensor:
    """Any sub-sequence of steps. The last step, to 0, adds no noise.

    Source:
        Ho et al. 2020, algorithm 2.
    """
    for t, s in pairwise(steps):
        prediction = denoise(x, t)
        mean = schedule.posterior_mean(prediction.x0, x, s, t)
        if s == 0:
            return mean
        log_variance = prediction.variance.log(schedule, s, t)
        x = mean + expand((0.5 * log_variance).exp(), x) * randn(x)
    return x


def ddim(
    denoise: Denoise,
    schedule: NoiseSchedule,
    x: Tensor,
    steps: Sequence[int],
    randn: RandnLike,
    eta: float = 0.0,
) -> Tensor:
    """eta 0 is deterministic; eta 1 is ancestral sampling with the posterior's variance.

    Raises:
        UserError: where eta is not in [0, 1].
    Source:
        Song et al. 2021, eq. 12 and 16.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"sampler.function.eta must be between 0 and 1, not {eta}.")
    for t, s in pairwise(steps):
        prediction = denoise(x, t)
        alpha, sigma = schedule.alpha_sigma(s)
        fresh = eta * schedule.posterior_variance(s, t).sqrt()
        along = (sigma**2 - fresh**2).sqrt()
        x = expand(alpha, x) * prediction.x0 + expand(along, x) * prediction.noise
        if eta > 0 and s > 0:
            x = x + expand(fresh, x) * randn(x)
    return x


def dpm_solver(
    denoise: Denoise, schedule: NoiseSchedule, x: Tensor, steps: Sequence[int], randn: RandnLike
) -> Tensor:
    """DPM-Solver++(2M). Deterministic, one call a step, of second order; the first step, and the
    last, which has no log-SNR to reach, are of first order.

    Source:
        Lu et al. 2022 (arXiv:2211.01095), algorithm 2.
    """
    before: tuple[Tensor, Tensor] | None = None  # x0 and h of the step before
    for t, s in pairwise(steps):
        x0 = slope = denoise(x, t).x0
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        h = (alpha_s * sigma_t / (sigma_s * alpha_t)).log()  # the step in log(alpha / sigma)
        if before and s > 0:
            x0_before, h_before = before
            slope = x0 + expand(h / (2 * h_before), x) * (x0 - x0_before)
        ratio = sigma_s / sigma_t
        x = expand(ratio, x) * x + expand(alpha_s - alpha_t * ratio, x) * slope
        before = x0, h
    return x


def heun(
    denoise: Denoise, schedule: NoiseSchedule, x: Tensor, steps: Sequence[int], randn: RandnLike
) -> Tensor:
    """Heun's method for the equation in x / alpha over n = sigma / alpha. Deterministic, two calls
    a step, of second order; the step to 0 is of first order (DDIM's).

    The mean of two slopes is a DDIM step whose x0 is

        x0(t) + weight (x0(s) - x0(t)),   weight = n_t / (2 n_s),

    which passes x0(s) where n more than halves. For Gaussian data of any variance this errs less
    than DDIM as long as n falls to no less than a quarter, and without bound beyond (the last step
    of a sigmoid's 1000 is 31-fold): there x0(s) is taken as it is.

    Source:
        Karras et al. 2022, algorithm 1.
    """
    schedule = schedule.to("cpu")  # its numbers decide, and no step should wait for the device
    for t, s in pairwise(steps):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        ratio = expand(sigma_s / sigma_t, x)
        of_x0 = expand(alpha_s - alpha_t * sigma_s / sigma_t, x)
        x0 = denoise(x, t).x0
        if s > 0:
            fall = alpha_s * sigma_t / (sigma_s * alpha_t)  # n_t / n_s
            weight = fall / 2 if fall <= 4 else torch.ones_like(fall)
            x0 = torch.lerp(x0, denoise(ratio * x + of_x0 * x0, s).x0, expand(weight, x))
        x = ratio * x + of_x0 * x0
    return x


def log_snr_steps(schedule: NoiseSchedule, count: int) -> list[int]:
    """count steps from T to 1, both among them, evenly in the log of the signal-to-noise ratio,
    each rounded to a t of its own. Under zero terminal SNR, where that log has no end,
    trailing_steps.

    Source:
        Lu et al. 2022 (DPM-Solver, arXiv:2206.00927), "step size schedule".
    """
    if schedule.zero_terminal_snr or count == 1:
        return trailing_steps(schedule, count)
    log_snr, k = torch.logit(schedule.alpha_bar[1:]).cpu().numpy(), np.arange(count)
    wanted = np.linspace(log_snr[-1], log_snr[0], count)
    t = np.interp(-wanted, -log_snr, np.arange(1, schedule.steps + 1)).round().astype(int)
    t = np.minimum.accumulate(t + k) - k  # where several round to one t, the later ones go below it
    return [*np.maximum(t, count - k).tolist(), 0]  # and leave room for those that follow


def even_steps(schedule: NoiseSchedule, count: int) -> list[int]:
    """Every (T // count)-th step from 1.

    The authors' code takes range(0, T, T // count), which is more than count where count does not
    divide T; diffusers' "leading" keeps the lowest count of these.

    Source:
        Song et al. 2021, appendix D.2, "linear".
    """
    return [*reversed(range(1, schedule.steps + 1, schedule.steps // count)), 0]


def quadratic_steps(schedule: NoiseSchedule, count: int) -> list[int]:
    """linspace(0, sqrt(0.8 T), count)^2, for CIFAR-10 and Ho's line of betas.

    It begins at 0.8 T, where another schedule or a larger image holds much of x0. Steps that round
    to the same t are one.

    Source:
        Song et al. 2021, appendix D.2 and code.
    """
    squares = np.linspace(0, np.sqrt(0.8 * schedule.steps), count) ** 2
    return [*sorted({1 + int(u) for u in squares}, reverse=True), 0]


def trailing_steps(schedule: NoiseSchedule, count: int) -> list[int]:
    """count steps evenly down from T itself, which zero terminal SNR needs.

    Source:
        Lin et al. 2024, table 2.
    """
    return [round(schedule.steps * k / count) for k in range(count, 0, -1)] + [0]


def inclusive_steps(schedule: NoiseSchedule, count: int) -> list[int]:
    """count steps evenly from T to 1, both among them; diffusers' "linspace".

    Source:
        Nichol and Dhariwal 2021, section 4.
    """
    if count == 1:
        return [schedule.steps, 0]
    length = (schedule.steps - 1) / (count - 1)
    # summed, as in their code: so halves round alike
    evenly = accumulate([0.0] + (count - 1) * [length])
    return [*sorted((1 + round(u) for u in evenly), reverse=True), 0]
