"""Noise schedules. t counts the noising steps taken, 0..T; t = 0 is the clean image, so nothing
ever indexes -1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Time = Tensor | int  # a [B] tensor of integers in 0..T, or one for the whole batch


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """A [B] (or scalar, or x-shaped) coefficient, in x's type and shaped to multiply x [B, ...]."""
    coefficient = coefficient.to(x.dtype)
    return coefficient.reshape(-1, *[1] * (x.ndim - 1)) if coefficient.ndim == 1 else coefficient


@dataclass(frozen=True)
class NoiseSchedule:
    """q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I): Ho et al. 2020, eq. 4.

    alpha_bar: [T + 1] float64, alpha_bar[0] = 1, falling. Coefficients are computed in float64 and
    cast last.
    """

    alpha_bar: Tensor

    @property
    def steps(self) -> int:
        """T."""
        return len(self.alpha_bar) - 1

    @property
    def zero_terminal_snr(self) -> bool:
        return bool(self.alpha_bar[-1] == 0)

    def to(self, device: torch.device | str) -> NoiseSchedule:
        return NoiseSchedule(self.alpha_bar.to(device))

    def alpha_sigma(self, t: Time) -> tuple[Tensor, Tensor]:
        """Signal and noise scale at t, float64: x_t = alpha x_0 + sigma noise."""
        alpha_bar = self.alpha_bar[t]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def snr(self, t: Time) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2, float64; infinite at t = 0."""
        return self.alpha_bar[t] / (1 - self.alpha_bar[t])

    def equal_snr(self, other: NoiseSchedule) -> Tensor:
        """For each t = 0..T of another schedule, the time of this one with the same signal-to-noise
        ratio, float64 in 1..T of this one: between two of its times by their log ratios, and at the
        ends where it has none as low or as high."""
        # -inf where no signal is left
        ours, theirs = (
            torch.logit(s.alpha_bar).clamp(-1e3, 1e3).cpu().numpy() for s in (self, other)
        )
        t = np.interp(theirs, ours[:0:-1], np.arange(self.steps, 0, -1))
        return torch.from_numpy(t).to(other.alpha_bar)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Time) -> Tensor:
        """A draw of q(x_t | x_0). x0, noise: [B, ...]."""
        alpha, sigma = self.alpha_sigma(t)
        return expand(alpha, x0) * x0 + expand(sigma, x0) * noise

    def step_beta(self, s: Time, t: Time) -> Tensor:
        """Variance of q(x_t | x_s), s < t: 1 - alpha_bar_t / alpha_bar_s. For s = t - 1 it is Ho's
        beta_t."""
        return 1 - self.alpha_bar[t] / self.alpha_bar[s]

    def posterior_coefficients(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """The factors of x_0 and x_t in the mean of q(x_s | x_t, x_0); Ho et al. 2020, eq. 7, for
        any s < t."""
        alpha_bar_s, alpha_bar_t = self.alpha_bar[s], self.alpha_bar[t]
        beta = self.step_beta(s, t)
        of_x0 = alpha_bar_s.sqrt() * beta / (1 - alpha_bar_t)
        of_xt = (1 - beta).sqrt() * (1 - alpha_bar_s) / (1 - alpha_bar_t)
        return of_x0, of_xt

    def posterior_mean(self, x0: Tensor, x_t: Tensor, s: Time, t: Time) -> Tensor:
        """Mean of q(x_s | x_t, x_0). Any s < t: a sub-sequence of steps needs no respaced copy of
        the process."""
        of_x0, of_xt = self.posterior_coefficients(s, t)
        return expand(of_x0, x_t) * x0 + expand(of_xt, x_t) * x_t

    def posterior_variance(self, s: Time, t: Time) -> Tensor:
        """Variance of q(x_s | x_t, x_0); 0 at s = 0."""
        return self.step_beta(s, t) * (1 - self.alpha_bar[s]) / (1 - self.alpha_bar[t])


def from_betas(betas: Sequence[float] | np.ndarray) -> NoiseSchedule:
    """Any schedule from its betas, beta_1 .. beta_T, each in (0, 1); the last may be 1, which
    leaves no signal at T."""
    betas = np.asarray(betas, dtype=np.float64)
    inside = (betas > 0) & (betas <= 1)
    if betas.ndim != 1 or not len(betas) or not inside.all() or (betas[:-1] == 1).any():
        raise ValueError(
            "betas must be a list of numbers in (0, 1), of which only the last may be 1."
        )
    return NoiseSchedule(torch.from_numpy(np.concatenate([[1.0], np.cumprod(1 - betas)])))


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"schedule.steps must be at least 1, not {steps}.")


def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
    """Betas on a line: Ho et al. 2020, section 4."""
    _check_steps(steps)
    return from_betas(np.linspace(beta_start, beta_end, steps))


def rescaled_linear(
    steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> NoiseSchedule:
    """Ho's line of betas for any number of steps: betas times 1000 / T, so that about as little
    signal is left at T.

    Source:
        Nichol and Dhariwal 2021, their code (the paper does not say it).
    """
    if steps < max(1, 1000 * beta_end):
        raise ValueError(
            f"schedule.steps must be at least {math.ceil(1000 * beta_end)}, not {steps}: 1000 / "
            "steps * beta_end is a beta."
        )
    return linear(steps, 1000 / steps * beta_start, 1000 / steps * beta_end)


def scaled_linear(
    steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> NoiseSchedule:
    """Square roots of the betas on a line: Rombach et al. 2022 (latent diffusion)."""
    _check_steps(steps)
    return from_betas(np.linspace(beta_start**0.5, beta_end**0.5, steps) ** 2)


def _from_alpha_bar_function(alpha_bar: np.ndarray, max_beta: float) -> NoiseSchedule:
    return from_betas(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta))


def cosine(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
    """Nichol and Dhariwal 2021, eq. 17, betas clipped at max_beta."""
    _check_steps(steps)
    u = np.arange(steps + 1) / steps
    return _from_alpha_bar_function(np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2, max_beta)


def sigmoid(
    steps: int = 1000,
    start: float = -3.0,
    end: float = 3.0,
    tau: float = 1.0,
    max_beta: float = 0.999,
) -> NoiseSchedule:
    """alpha_bar along a sigmoid: Jabri et al. 2023; Chen 2023, algorithm 1. A larger tau flattens
    it."""
    _check_steps(steps)
    u = np.arange(steps + 1) / steps
    curve = 1 / (1 + np.exp(-(start + u * (end - start)) / tau))
    return _from_alpha_bar_function((curve[-1] - curve) / (curve[-1] - curve[0]), max_beta)


def zero_terminal(schedule: NoiseSchedule) -> NoiseSchedule:
    """The schedule with no signal left at T: sqrt(alpha_bar) shifted to end at 0 and scaled to keep
    step 1. Needs a parameterization other than the noise.

    Source:
        Lin et al. 2024, algorithm 1.
    """
    if schedule.steps < 2:
        raise ValueError(
            "zero terminal SNR needs at least 2 steps, as the first one keeps its signal."
        )
    root = schedule.alpha_bar.sqrt()
    first, last = root[1], root[-1]
    alpha_bar = ((root - last) * first / (first - last)) ** 2
    alpha_bar[0] = 1
    return NoiseSchedule(alpha_bar)
