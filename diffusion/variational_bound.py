"""The terms of the variational bound: Kullback-Leibler divergences and the discretized decoder."""

import math

import torch
from torch import Tensor

from diffusion.denoiser import Prediction
from diffusion.schedule import NoiseSchedule, expand
from diffusion.variance import Fraction


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
    the mean where it does not cancel, in float64: far bins keep a finite log.

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
