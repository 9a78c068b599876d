"""Samplers: free functions (denoise, schedule, x_T, steps, randn) -> x_0.

steps is any falling sequence of t that ends in 0; x_T [B, C, H, W] belongs to its first t. randn(x) gives standard normal
noise like x; a sampler calls it once for each step that needs noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from diffusion.denoiser import Denoise
from diffusion.schedule import NoiseSchedule, expand
from runtime.errors import UserError

RandnLike = Callable[[Tensor], Tensor]
Sampler = Callable[[Denoise, NoiseSchedule, Tensor, Sequence[int], RandnLike], Tensor]


def ancestral(denoise: Denoise, schedule: NoiseSchedule, x: Tensor, steps: Sequence[int], randn: RandnLike) -> Tensor:
    """Ho et al. 2020, algorithm 2, on any sub-sequence of steps. The last step, to 0, adds no noise."""
    for t, s in _descend(steps, schedule):
        prediction = denoise(x, t)
        mean = schedule.posterior_mean(prediction.x0, x, s, t)
        if s == 0:
            return mean
        log_variance = prediction.variance.log(schedule, s, t)
        x = mean + expand((0.5 * log_variance).exp(), x) * randn(x)
    return x


def ddim(denoise: Denoise, schedule: NoiseSchedule, x: Tensor, steps: Sequence[int], randn: RandnLike, eta: float = 0.0) -> Tensor:
    """Song et al. 2021, eq. 12 and 16. eta 0 is deterministic; eta 1 is ancestral sampling with the posterior's variance."""
    if not 0 <= eta <= 1:
        raise UserError(f"sampler.function.eta must be between 0 and 1, not {eta}.")
    for t, s in _descend(steps, schedule):
        prediction = denoise(x, t)
        alpha, sigma = schedule.alpha_sigma(s)
        fresh = eta * schedule.posterior_variance(s, t).sqrt()
        x = expand(alpha, x) * prediction.x0 + expand((sigma**2 - fresh**2).sqrt(), x) * prediction.noise
        if eta > 0 and s > 0:
            x = x + expand(fresh, x) * randn(x)
    return x


def dpm_solver(denoise: Denoise, schedule: NoiseSchedule, x: Tensor, steps: Sequence[int], randn: RandnLike) -> Tensor:
    """DPM-Solver++(2M): Lu et al. 2022 (arXiv:2211.01095), algorithm 2. Deterministic, one call a step, of second order; the first
    step, and the last, which has no log-SNR to reach, are of first order."""
    x0_before = h_before = None
    for t, s in _descend(steps, schedule):
        x0 = slope = denoise(x, t).x0
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        h = (alpha_s * sigma_t / (sigma_s * alpha_t)).log()  # the step in log(alpha / sigma)
        if x0_before is not None and s > 0:
            slope = x0 + expand(h / (2 * h_before), x) * (x0 - x0_before)
        ratio = sigma_s / sigma_t
        x = expand(ratio, x) * x + expand(alpha_s - alpha_t * ratio, x) * slope
        x0_before, h_before = x0, h
    return x


def heun(denoise: Denoise, schedule: NoiseSchedule, x: Tensor, steps: Sequence[int], randn: RandnLike) -> Tensor:
    """Karras et al. 2022, algorithm 1, for the equation in x / alpha over sigma / alpha. Deterministic, two calls a step, of second
    order. Of first order (which is DDIM's) are the last step and one from hardly any signal: there the mean of two slopes would add
    the change of x0 alpha_s^2 / (2 alpha_t) times, and from more than once on that is farther off."""
    schedule = schedule.to("cpu")  # its numbers decide, and no step should wait for the device
    for t, s in _descend(steps, schedule):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        here = denoise(x, t)
        euler = expand(alpha_s, x) * here.x0 + expand(sigma_s, x) * here.noise
        if s == 0 or alpha_s**2 > 2 * alpha_t:
            x = euler
            continue
        there = denoise(euler, s)
        ratio = alpha_s / alpha_t
        x = expand(ratio, x) * x + expand((sigma_s - ratio * sigma_t) / 2, x) * (here.noise + there.noise)
    return x


def _descend(steps: Sequence[int], schedule: NoiseSchedule) -> Iterator[tuple[int, int]]:
    if len(steps) < 2 or steps[0] > schedule.steps or steps[-1] < 0 or any(t <= s for t, s in pairwise(steps)):
        raise ValueError(f"Sampling steps must fall from at most T = {schedule.steps} to 0, not {list(steps)[:8]} ...")
    return pairwise(steps)


def even_steps(total: int, count: int) -> list[int]:
    """count steps, total // count apart, from 1: Song et al. 2021, appendix D.2, "linear"; diffusers' "leading"."""
    _check_count(total, count)
    return [1 + k * (total // count) for k in reversed(range(count))] + [0]


def quadratic_steps(total: int, count: int) -> list[int]:
    """linspace(0, sqrt(0.8 T), count)^2: Song et al. 2021, appendix D.2 and code. Steps that round to the same t are one."""
    _check_count(total, count)
    return [*sorted({1 + int(u) for u in np.linspace(0, np.sqrt(0.8 * total), count) ** 2}, reverse=True), 0]


def trailing_steps(total: int, count: int) -> list[int]:
    """count steps evenly down from T itself, which zero terminal SNR needs: Lin et al. 2024, table 2."""
    _check_count(total, count)
    return [round(total * k / count) for k in range(count, 0, -1)] + [0]


def inclusive_steps(total: int, count: int) -> list[int]:
    """count steps evenly from T to 1, both among them: Nichol and Dhariwal 2021, section 4; diffusers' "linspace"."""
    _check_count(total, count)
    if count == 1:
        return [total, 0]
    evenly = accumulate([0.0] + (count - 1) * [(total - 1) / (count - 1)])  # summed, as in their code: so halves round alike
    return [*sorted((1 + round(u) for u in evenly), reverse=True), 0]


def _check_count(total: int, count: int) -> None:
    if not 1 <= count <= total:
        raise UserError(f"sampler.steps must be between 1 and the schedule's {total}, not {count}.")


class NoisePerImage:
    """Noise of image k by (seed, k) and the number of the draw: the same bits in whatever batch it is made.

    Drawn on the CPU, so that every device sees the same. seeds: one integer for each image of the batch.
    """

    def __init__(self, seeds: Sequence[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, like: Tensor) -> Tensor:
        noise = torch.stack([torch.randn(like.shape[1:], generator=g) for g in self.generators])
        noise = noise.pin_memory() if like.is_cuda else noise  # so that the copy waits for nothing
        return noise.to(like.device, like.dtype, non_blocking=True)
