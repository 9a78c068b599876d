"""Samplers: free functions (denoise, schedule, x_T, steps, randn) -> x_0.

steps is any falling sequence of t that ends in 0; x_T [B, C, H, W] belongs to its first t. randn(x)
gives standard normal noise like x; a sampler calls it once for each step that needs noise.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.denoiser import Denoise
from diffusion.schedule import NoiseSchedule, expand
from runtime.errors import UserError

RandnLike = Callable[[Tensor], Tensor]
Sampler = Callable[[Denoise, NoiseSchedule, Tensor, Sequence[int], RandnLike], Tensor]


def ancestral(
    denoise: Denoise, schedule: NoiseSchedule, x: Tensor, steps: Sequence[int], randn: RandnLike
) -> Tensor:
    """Any sub-sequence of steps. The last step, to 0, adds no noise.

    Source:
        Ho et al. 2020, algorithm 2.
    """
    for t, s in pairwise(steps):
        prediction = denoise(x, t)
        x = schedule.posterior_mean(prediction.x0, x, s, t)
        if s > 0:
            log_variance = prediction.variance.log(schedule, s, t)
            x = x + expand((0.5 * log_variance).exp(), x) * randn(x)
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
