"""Spacings: (schedule, count) -> the falling t that a sampler visits, 0 last."""

from collections.abc import Callable
from itertools import accumulate

import numpy as np
import torch

from diffusion.schedule import NoiseSchedule

Spacing = Callable[[NoiseSchedule, int], list[int]]


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
    return [round(schedule.steps * k / count) for k in range(count, -1, -1)]


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
