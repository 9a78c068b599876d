"""Losses. Each is a function of a pass of the network -> [B], nats or squared error averaged over
an image's values."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.denoiser import ForwardPass, Prediction
from diffusion.schedule import NoiseSchedule, expand
from diffusion.variance import Fraction

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


def bound_term(
    schedule: NoiseSchedule, prediction: Prediction, x0: Tensor, x_t: Tensor, t: Tensor
) -> Tensor:
    """[B], bits per value. x0 in [-1, 1] on the grid of 256 levels."""
    s = t - 1
    mean = schedule.posterior_mean(prediction.x0, x_t, s, t)
    log_variance = expand(prediction.variance.log(schedule, s, t), x_t)
    true_mean = schedule.posterior_mean(x0, x_t, s, t)
    # At s = 0 the true posterior is a point: its log variance only stands in for where() below.
    true_log_variance = expand(Fraction(0.0).log(schedule, s, t), x_t)
    kl = gaussian_kl(true_mean, true_log_variance, mean, log_variance).flatten(1).mean(1)
    first = expand(t, x0) == 1
    # Elsewhere the decoder sees what it cannot fail on: where() would let the NaN of a gradient
    # through.
    decoder = -discretized_gaussian_log_likelihood(
        x0, torch.where(first, mean, x0), torch.where(first, 0.5 * log_variance, 0.0)
    )
    return torch.where(t == 1, decoder.flatten(1).mean(1), kl) / math.log(2)


TEACH_VARIANCE = (bound_loss, hybrid_loss)


def prior_bits(schedule: NoiseSchedule, x0: Tensor) -> Tensor:
    """[B], L_T of eq. 5: KL of q(x_T | x_0) to the standard normal, bits per value."""
    alpha, sigma = schedule.alpha_sigma(schedule.steps)
    zero = x0.new_zeros(())
    kl = gaussian_kl(alpha.to(x0) * x0, 2 * sigma.log().to(x0), zero, zero)
    return kl.flatten(1).mean(1) / math.log(2)


def gaussian_kl(
    mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor
) -> Tensor:
    """KL(N1 || N2) by value, nats."""
    return 0.5 * (
        log_variance2
        - log_variance1
        - 1
        + (log_variance1 - log_variance2).exp()
        + (mean1 - mean2).square() * (-log_variance2).exp()
    )


def discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log of the mass that N(mean, exp(log_scale)^2) gives to x's bin of width 2/255, the outer
    bins open-ended; nats.

    With the exact normal distribution function. (The authors' code approximates it by a tanh and
    cuts the mass off at 1e-12, so a far x has no gradient there.) The mass is taken on the side of
    the mean
    where it does not cancel, in float64: far bins keep a finite log.

    Source:
        Ho et al. 2020, eq. 13.
    """
    x, mean, inverse_scale = x.double(), mean.double(), (-log_scale).double().exp()
    upper = torch.where(x > 0.999, math.inf, (x - mean + 1 / 255) * inverse_scale)
    lower = torch.where(x < -0.999, -math.inf, (x - mean - 1 / 255) * inverse_scale)
    # mirror so that both edges lie on the left: there the function is accurate
    flip = lower + upper > 0
    upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return log_upper + torch.log1p(-(log_lower - log_upper).exp())
