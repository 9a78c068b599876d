"""Losses. Each is a function of a pass of the network -> [B], nats or squared error averaged over
an image's values."""

from collections.abc import Callable

from torch import Tensor

from diffusion.denoiser import ForwardPass
from diffusion.schedule import NoiseSchedule
from diffusion.variational_bound import bound_term

Loss = Callable[[ForwardPass], Tensor]
# (schedule, t [B]) -> [B] weight of the squared error of x0
Weight = Callable[[NoiseSchedule, Tensor], Tensor]


def simple_loss(step: ForwardPass) -> Tensor:
    """L_simple: the squared error of whatever the network predicts.

    Source:
        Ho et al. 2020, eq. 14.
    """
    target = step.denoiser.parameterization.encode(step.schedule, step.x0, step.noise, step.t)
    return (step.output - target).square().flatten(1).mean(1)


def weighted_loss(step: ForwardPass, *, weight: Weight) -> Tensor:
    """The squared error of x0 times weight, whatever the network predicts."""
    own = step.denoiser.parameterization.x0_weight(step.schedule, step.t)
    return simple_loss(step) * (weight(step.schedule, step.t) / own).to(step.x0.dtype)


def min_snr(schedule: NoiseSchedule, t: Tensor, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma). Of the noise's error that is min(SNR, gamma) / SNR, of the velocity's
    min(SNR, gamma) / (SNR + 1).

    Source:
        Hang et al. 2023 (Min-SNR).
    """
    return schedule.snr(t).clamp(max=gamma)


def p2(schedule: NoiseSchedule, t: Tensor, gamma: float = 1.0, k: float = 1.0) -> Tensor:
    """1 / (k + SNR)^gamma of the noise's error.

    Source:
        Choi et al. 2022 (P2).
    """
    snr = schedule.snr(t)
    return snr / (k + snr) ** gamma


def hybrid_loss(step: ForwardPass, *, bound_weight: float = 0.001) -> Tensor:
    """L_simple + bound_weight L_vlb, where L_vlb teaches the variance only.

    L_vlb is a sum over t, here T times the term of one t, in bits as in the authors' code (which
    says it as T / 1000 with weight 1).

    Source:
        Nichol and Dhariwal 2021, eq. 16.
    """
    prediction = step.denoiser.predict(step.output.detach(), step.of_variance, step.x_t, step.t)
    bound = bound_term(step.schedule, prediction, step.x0, step.x_t, step.t)
    return simple_loss(step) + bound_weight * step.schedule.steps * bound


def bound_loss(step: ForwardPass) -> Tensor:
    """The term of the variational bound at t in 1..T, L_{t-1}, or L_0 at t = 1; bits per value.

    The sum over t plus prior_bits is the bound itself.

    Source:
        Ho et al. 2020, eq. 5.
    """
    return bound_term(step.schedule, step.prediction, step.x0, step.x_t, step.t)


TEACH_VARIANCE = (bound_loss, hybrid_loss)
