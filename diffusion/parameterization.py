"""What the network predicts. Each class turns (x0, noise) into the training target and a prediction
back into (x0, noise)."""

from typing import Protocol

import torch
from torch import Tensor

from diffusion.schedule import NoiseSchedule, Time, expand


class Parameterization(Protocol):
    """x0, noise, x_t, output: [B, C, H, W]; t: [B] or an int, in 1..T."""

    def encode(self, schedule: NoiseSchedule, x0: Tensor, noise: Tensor, t: Time) -> Tensor:
        """The target of the network at x_t."""

    def decode(
        self, schedule: NoiseSchedule, output: Tensor, x_t: Tensor, t: Time
    ) -> tuple[Tensor, Tensor]:
        """(x0, noise) with x_t = alpha x0 + sigma noise."""

    def x0_weight(self, schedule: NoiseSchedule, t: Time) -> Tensor:
        """The squared error of the target over that of x0, float64: how the plain loss weights
        t."""


def _scales(schedule: NoiseSchedule, t: Time, x: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = schedule.alpha_sigma(t)
    return expand(alpha, x), expand(sigma, x)


def noise_of(schedule: NoiseSchedule, x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
    """The noise that leads from x0 to x_t."""
    alpha, sigma = _scales(schedule, t, x_t)
    return (x_t - alpha * x0) / sigma


class PredictNoise:
    """eps; Ho et al. 2020, eq. 11-14."""

    def encode(self, schedule: NoiseSchedule, x0: Tensor, noise: Tensor, t: Time) -> Tensor:
        return noise

    def decode(
        self, schedule: NoiseSchedule, output: Tensor, x_t: Tensor, t: Time
    ) -> tuple[Tensor, Tensor]:
        alpha, sigma = _scales(schedule, t, x_t)
        return (x_t - sigma * output) / alpha, output

    def x0_weight(self, schedule: NoiseSchedule, t: Time) -> Tensor:
        return schedule.snr(t)


class PredictX0:
    """The clean image."""

    def encode(self, schedule: NoiseSchedule, x0: Tensor, noise: Tensor, t: Time) -> Tensor:
        return x0

    def decode(
        self, schedule: NoiseSchedule, output: Tensor, x_t: Tensor, t: Time
    ) -> tuple[Tensor, Tensor]:
        return output, noise_of(schedule, output, x_t, t)

    def x0_weight(self, schedule: NoiseSchedule, t: Time) -> Tensor:
        return torch.ones_like(schedule.snr(t))


class PredictVelocity:
    """v = alpha noise - sigma x0; Salimans and Ho 2022, section 4."""

    def encode(self, schedule: NoiseSchedule, x0: Tensor, noise: Tensor, t: Time) -> Tensor:
        alpha, sigma = _scales(schedule, t, x0)
        return alpha * noise - sigma * x0

    def decode(
        self, schedule: NoiseSchedule, output: Tensor, x_t: Tensor, t: Time
    ) -> tuple[Tensor, Tensor]:
        alpha, sigma = _scales(schedule, t, x_t)
        return alpha * x_t - sigma * output, sigma * x_t + alpha * output

    def x0_weight(self, schedule: NoiseSchedule, t: Time) -> Tensor:
        return schedule.snr(t) + 1


class PredictMean:
    """The mean of q(x_{t-1} | x_t, x_0); Ho et al. 2020, eq. 8 and the rows "mean prediction" of
    table 2."""

    def encode(self, schedule: NoiseSchedule, x0: Tensor, noise: Tensor, t: Time) -> Tensor:
        return schedule.posterior_mean(x0, schedule.add_noise(x0, noise, t), t - 1, t)

    def decode(
        self, schedule: NoiseSchedule, output: Tensor, x_t: Tensor, t: Time
    ) -> tuple[Tensor, Tensor]:
        of_x0, of_xt = schedule.posterior_coefficients(t - 1, t)
        x0 = (output - expand(of_xt, x_t) * x_t) / expand(of_x0, x_t)
        return x0, noise_of(schedule, x0, x_t, t)

    def x0_weight(self, schedule: NoiseSchedule, t: Time) -> Tensor:
        return schedule.posterior_coefficients(t - 1, t)[0] ** 2
