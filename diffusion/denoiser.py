"""From a network's output to a prediction of x0 and noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion.parameterization import Parameterization, PredictNoise
from diffusion.schedule import NoiseSchedule, Time
from diffusion.variance import FixedLarge, Fraction, LogVariance, Variance

Condition = dict[str, Tensor]  # batch first: label [B]


class Prediction(NamedTuple):
    """x0 and noise agree: x_t = alpha x0 + sigma noise. variance.log(schedule, s, t): log variance
    of p(x_s | x_t)."""

    x0: Tensor
    noise: Tensor
    variance: Fraction | LogVariance


Denoise = Callable[[Tensor, Time], Prediction]  # (x_t, t); samplers see this and nothing else


def full(x: Tensor) -> Tensor:
    """float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Denoiser(nn.Module):
    """A network, a schedule, what the network predicts and the variance of a reverse step.

    network(x [B, C, H, W], timestep [B] in 0..T-1, condition) -> [B, variance.outputs C, H, W]
    known: the schedule whose timesteps the network knows, where that is another one: at t it is
    then given the timestep of equal signal-to-noise ratio there, which may lie between two.
    """

    network: Any  # a module with .classes, the number of labels that it knows
    timestep: Tensor

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        parameterization: Parameterization,
        variance: Variance | None = None,
        known: NoiseSchedule | None = None,
    ):
        super().__init__()
        if schedule.zero_terminal_snr and isinstance(parameterization, PredictNoise):
            raise ValueError(
                "A schedule with zero terminal SNR has no signal at T, where predicting the noise "
                "divides by zero: choose parameterization=velocity or parameterization=x0."
            )
        self.network, self.schedule, self.parameterization = network, schedule, parameterization
        self.variance = variance or FixedLarge()
        self.known = known
        counted = (
            torch.arange(schedule.steps + 1, device=schedule.alpha_bar.device)
            if known is None
            else known.equal_snr(schedule)
        )
        self.timestep = counted - 1  # [T + 1]: Ho's weights count from 0

    def around(self, network: nn.Module) -> Denoiser:
        """The same around another network."""
        return Denoiser(network, self.schedule, self.parameterization, self.variance, self.known)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Denoiser:
        super()._apply(fn, recurse)
        device = fn(self.schedule.alpha_bar).device
        # they follow the device and stay float64
        self.schedule, self.timestep = self.schedule.to(device), self.timestep.to(device)
        return self

    def outputs(
        self, x_t: Tensor, t: Time, condition: Condition | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What the network says of the image, and of the variance where that is learned. float32 or
        wider, whatever the autocast."""
        timestep = self.timestep[t].expand(len(x_t))
        return self.halves(self.network(x_t, timestep, condition or {}))

    def halves(self, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the network gave, as outputs() says it."""
        out = full(out)
        if self.variance.outputs == 1:
            return out, None
        mean, of_variance = out.chunk(2, dim=1)
        return mean, of_variance

    def predict(
        self, output: Tensor, of_variance: Tensor | None, x_t: Tensor, t: Time
    ) -> Prediction:
        """The meaning of outputs()."""
        x0, noise = self.parameterization.decode(self.schedule, output, x_t, t)
        return Prediction(x0, noise, self.variance(of_variance, t))

    def forward(self, x_t: Tensor, t: Time, condition: Condition | None = None) -> Prediction:
        return self.predict(*self.outputs(x_t, t, condition), x_t, t)

    def forward_pass(
        self, x0: Tensor, t: Tensor, noise: Tensor, condition: Condition | None = None
    ) -> ForwardPass:
        """Of the images x0 [B, C, H, W] in [-1, 1], noised to t [B] in 1..T."""
        x_t = self.schedule.add_noise(x0, noise, t)
        return ForwardPass(
            self, x0, t, noise, condition or {}, x_t, *self.outputs(x_t, t, condition)
        )


@dataclass(frozen=True)
class ForwardPass:
    """One pass of a network over noised images, and all that a loss or a penalty asks of it.

    x_t: the tensor that the network was given, and no copy. output, of_variance: what it said, with
    the gradient, as Denoiser.outputs returns them.
    """

    denoiser: Denoiser
    x0: Tensor
    t: Tensor
    noise: Tensor
    condition: Condition
    x_t: Tensor
    output: Tensor
    of_variance: Tensor | None

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    @cached_property
    def prediction(self) -> Prediction:
        return self.denoiser.predict(self.output, self.of_variance, self.x_t, self.t)
