"""From a network's output to a prediction of x0 and noise, and the wrappers around such a prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.parameterization import Parameterization, PredictNoise, noise_of
from diffusion.schedule import NoiseSchedule, Time

Condition = dict[str, Tensor]  # batch first: label [B]


class Prediction(NamedTuple):
    """x0 and noise agree: x_t = alpha x0 + sigma noise. variance: fraction for NoiseSchedule.reverse_log_variance."""

    x0: Tensor
    noise: Tensor
    variance: Tensor | float


Denoise = Callable[[Tensor, Time], Prediction]  # (x_t, t); samplers see this and nothing else
Variance = Callable[[Time], Tensor | float]  # t -> fraction between the posterior's log variance (0) and log beta (1)


def fixed_small(t: Time) -> float:
    """sigma_t^2 = the posterior's variance; Ho et al. 2020, section 3.2."""
    return 0.0


def fixed_large(t: Time) -> Tensor:
    """sigma_t^2 = beta_t, but at t = 1 the posterior's value of the step above, as in Ho's code: it makes for a better
    likelihood of the last step."""
    return (torch.as_tensor(t) > 1).double()


class Denoiser(nn.Module):
    """A network, a schedule and what the network predicts.

    network(x [B, C, H, W], timestep [B] in 0..T-1, condition) -> [B, C, H, W]
    """

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, parameterization: Parameterization,
                 variance: Variance = fixed_large):
        super().__init__()
        if schedule.zero_terminal_snr and isinstance(parameterization, PredictNoise):
            raise ValueError("A schedule with zero terminal SNR has no signal at T, where predicting the noise divides by "
                             "zero: choose parameterization=velocity or parameterization=x0.")
        self.network, self.schedule, self.parameterization, self.variance = network, schedule, parameterization, variance

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        moved = fn(self.schedule.alpha_bar)
        self.schedule = self.schedule.to(moved.device)  # follows the device, stays float64
        return self

    def output(self, x_t: Tensor, t: Time, condition: Condition | None = None) -> Tensor:
        """The network's raw output, float32 or wider, whatever the autocast."""
        t = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
        out = self.network(x_t, t - 1, condition or {})  # Ho's weights count timesteps from 0
        return out.float() if out.dtype in (torch.bfloat16, torch.float16) else out

    def forward(self, x_t: Tensor, t: Time, condition: Condition | None = None) -> Prediction:
        x0, noise = self.parameterization.decode(self.schedule, self.output(x_t, t, condition), x_t, t)
        return Prediction(x0, noise, self.variance(t))


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
