"""From a network's output to a prediction of x0 and noise, and the wrappers around such a prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.parameterization import Parameterization, PredictNoise, noise_of
from diffusion.schedule import NoiseSchedule, Time
from diffusion.variance import FixedLarge, Fraction, LogVariance, Variance

Condition = dict[str, Tensor]  # batch first: label [B]


class Prediction(NamedTuple):
    """x0 and noise agree: x_t = alpha x0 + sigma noise. variance.log(schedule, s, t): log variance of p(x_s | x_t)."""

    x0: Tensor
    noise: Tensor
    variance: Fraction | LogVariance


Denoise = Callable[[Tensor, Time], Prediction]  # (x_t, t); samplers see this and nothing else


class Denoiser(nn.Module):
    """A network, a schedule, what the network predicts and the variance of a reverse step.

    network(x [B, C, H, W], timestep [B] in 0..T-1, condition) -> [B, variance.outputs C, H, W]
    known: the schedule whose timesteps the network knows, where that is another one: at t it is then given the timestep of equal
    signal-to-noise ratio there, which may lie between two.
    on_output: told (x_t, t, condition, the network's output) of each call, where it is set.
    """

    on_output: Callable[[Tensor, Tensor, Condition, Tensor], object] | None = None

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, parameterization: Parameterization,
                 variance: Variance | None = None, known: NoiseSchedule | None = None):
        super().__init__()
        if schedule.zero_terminal_snr and isinstance(parameterization, PredictNoise):
            raise ValueError("A schedule with zero terminal SNR has no signal at T, where predicting the noise divides by "
                             "zero: choose parameterization=velocity or parameterization=x0.")
        self.network, self.schedule, self.parameterization = network, schedule, parameterization
        self.variance = variance or FixedLarge()
        self.known = known
        counted = torch.arange(schedule.steps + 1, device=schedule.alpha_bar.device) if known is None else known.equal_snr(schedule)
        self.timestep = counted - 1  # [T + 1]: Ho's weights count from 0

    def around(self, network: nn.Module) -> Denoiser:
        """The same around another network."""
        return Denoiser(network, self.schedule, self.parameterization, self.variance, self.known)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        device = fn(self.schedule.alpha_bar).device
        self.schedule, self.timestep = self.schedule.to(device), self.timestep.to(device)  # they follow the device and stay float64
        return self

    def outputs(self, x_t: Tensor, t: Time, condition: Condition | None = None) -> tuple[Tensor, Tensor | None]:
        """What the network says of the image, and of the variance where that is learned. float32 or wider, whatever the autocast."""
        t = t.expand(len(x_t)) if isinstance(t, Tensor) else torch.full((len(x_t),), t, device=x_t.device)
        out = self.network(x_t, self.timestep[t], condition or {})
        if self.on_output:
            self.on_output(x_t, t, condition or {}, out)
        return self.halves(out)

    def halves(self, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the network gave, as outputs() says it."""
        out = out.float() if out.dtype in (torch.bfloat16, torch.float16) else out
        return out.chunk(2, dim=1) if self.variance.outputs == 2 else (out, None)

    def predict(self, output: Tensor, of_variance: Tensor | None, x_t: Tensor, t: Time) -> Prediction:
        """The meaning of outputs()."""
        x0, noise = self.parameterization.decode(self.schedule, output, x_t, t)
        return Prediction(x0, noise, self.variance(of_variance, t))

    def forward(self, x_t: Tensor, t: Time, condition: Condition | None = None) -> Prediction:
        return self.predict(*self.outputs(x_t, t, condition), x_t, t)


def clip_x0(denoise: Denoise, schedule: NoiseSchedule) -> Denoise:
    """x0 kept in [-1, 1], and the noise made to agree with it."""

    def clipped(x_t: Tensor, t: Time) -> Prediction:
        prediction = denoise(x_t, t)
        x0 = prediction.x0.clamp(-1, 1)
        return prediction._replace(x0=x0, noise=noise_of(schedule, x0, x_t, t))

    return clipped


def guide(conditional: Denoise, reference: Denoise, scale: float) -> Denoise:
    """reference + scale (conditional - reference). reference: the null class (Ho and Salimans 2022, classifier-free guidance,
    where their w is scale - 1), or the frozen source (domain guidance). scale 1 is the conditional model, 0 the reference."""

    def guided(x_t: Tensor, t: Time) -> Prediction:
        towards, away = conditional(x_t, t), reference(x_t, t)
        return towards._replace(x0=torch.lerp(away.x0, towards.x0, scale), noise=torch.lerp(away.noise, towards.noise, scale))

    return guided
