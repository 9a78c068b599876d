"""Learned variances and the hybrid loss: each number worked out by hand for one pixel, in plain
Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from diffusion import schedule as schedules
from diffusion.clipping import clip_x0
from diffusion.denoiser import Denoiser
from diffusion.losses import bound_loss, hybrid_loss, simple_loss
from diffusion.parameterization import PredictNoise, PredictX0
from diffusion.samplers import ancestral
from diffusion.variance import FixedLarge, FixedSmall, Learned, LearnedRange
from diffusion.variational_bound import bound_term

BETAS = [0.1, 0.2, 0.4]
THREE = schedules.from_betas(BETAS)
BAR = [1.0, 0.9, 0.72, 0.432]
# beta_t (1 - bar_{t-1}) / (1 - bar_t) for t = 1, 2, 3
POSTERIOR = [
    0.0,
    0.2 * 0.1 / 0.28,
    0.4 * 0.28 / 0.568,
]
# at t = 1 the value of the step above
LOWER = [
    math.log(POSTERIOR[1]),
    math.log(POSTERIOR[1]),
    math.log(POSTERIOR[2]),
]
UPPER = [math.log(b) for b in BETAS]


class Says(nn.Module):
    """A network of two parameters: what it says of the image, and of the variance."""

    def __init__(self, image: float, variance: float):
        super().__init__()
        self.image, self.variance = (
            nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (image, variance)
        )

    def forward(self, x, timestep, condition):
        return torch.cat([self.image.expand(x.shape), self.variance.expand(x.shape)], dim=1)


def pixel(value: float) -> torch.Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


def normal_kl(mean1, var1, mean2, var2):
    return 0.5 * (math.log(var2 / var1) - 1 + var1 / var2 + (mean1 - mean2) ** 2 / var2)


@pytest.mark.parametrize("t", [1, 2, 3])
@pytest.mark.parametrize("said", [-1.0, 0.0, 1.0, 0.3, 1.8])
def test_a_learned_range_is_a_fraction_between_the_posterior_and_beta(said, t):
    prediction = Denoiser(Says(0.2, said), THREE, PredictNoise(), LearnedRange())(pixel(0.5), t)
    fraction = (said + 1) / 2
    expected = fraction * UPPER[t - 1] + (1 - fraction) * LOWER[t - 1]
    assert prediction.variance.log(THREE, t - 1, t).item() == pytest.approx(expected, rel=1e-12)
    small = (
        Denoiser(Says(0.2, said), THREE, PredictNoise(), FixedSmall())
        .variance(None, t)
        .log(THREE, t - 1, t)
        .item()
    )
    large = torch.as_tensor(FixedLarge()(None, t).log(THREE, t - 1, t)).item()
    if said == -1:
        assert prediction.variance.log(THREE, t - 1, t).item() == pytest.approx(small)
    if said == 1 and t > 1:  # Ho's fixed large differs at t = 1
        assert prediction.variance.log(THREE, t - 1, t).item() == pytest.approx(large)


def test_a_learned_log_variance_is_the_output_itself_and_grows_with_the_step_as_beta_does():
    prediction = Denoiser(Says(0.2, -2.5), THREE, PredictNoise(), Learned())(pixel(0.5), 3)
    assert prediction.variance.log(THREE, 2, 3).item() == -2.5
    longer = 1 - 0.6 * 0.8  # variance of q(x_3 | x_1)
    assert prediction.variance.log(THREE, 1, 3).item() == pytest.approx(
        -2.5 + math.log(longer / 0.4)
    )


def test_the_image_is_the_first_half_of_the_channels():
    for variance in (LearnedRange(), Learned()):
        denoiser = Denoiser(Says(0.2, 9.0), THREE, PredictX0(), variance)
        prediction = denoiser(torch.zeros(2, 3, 4, 4, dtype=torch.float64), torch.tensor([1, 3]))
        assert prediction.x0.shape == (2, 3, 4, 4) and (prediction.x0 == 0.2).all()


@pytest.mark.parametrize("variance", [LearnedRange(), Learned()], ids=["range", "log variance"])
@pytest.mark.parametrize("t", [2, 3])
def test_the_bound_of_a_learned_variance_by_hand(t, variance):
    """KL(N(posterior mean of the true x0, posterior variance) || N(that of the predicted x0,
    learned variance)), in bits."""
    x0, noise, x0_said, said = 0.4, -0.7, 0.1, -0.4
    x_t = math.sqrt(BAR[t]) * x0 + math.sqrt(1 - BAR[t]) * noise
    of_x0 = math.sqrt(BAR[t - 1]) * BETAS[t - 1] / (1 - BAR[t])
    of_xt = math.sqrt(1 - BETAS[t - 1]) * (1 - BAR[t - 1]) / (1 - BAR[t])
    log_variance = (
        0.3 * UPPER[t - 1] + 0.7 * LOWER[t - 1] if isinstance(variance, LearnedRange) else said
    )
    expected = normal_kl(
        of_x0 * x0 + of_xt * x_t,
        POSTERIOR[t - 1],
        of_x0 * x0_said + of_xt * x_t,
        math.exp(log_variance),
    ) / math.log(2)
    loss = bound_loss(
        Denoiser(Says(x0_said, said), THREE, PredictX0(), variance).forward_pass(
            pixel(x0), torch.tensor([t]), pixel(noise)
        )
    )
    assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_the_first_step_of_a_learned_variance_by_hand():
    """The decoder: the mass of x0's bin of width 2/255 under N(predicted x0, learned variance). The
    mean at s = 0 is x0 itself."""
    level, x0_said, said = 140 / 127.5 - 1, 0.05, 0.5
    scale = math.exp(0.5 * (0.75 * UPPER[0] + 0.25 * LOWER[0]))
    cdf = lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2)))  # noqa: E731
    mass = cdf((level - x0_said + 1 / 255) / scale) - cdf((level - x0_said - 1 / 255) / scale)
    denoiser = Denoiser(Says(x0_said, said), THREE, PredictX0(), LearnedRange())
    loss = bound_loss(denoiser.forward_pass(pixel(level), torch.tensor([1]), pixel(0.3)))
    assert loss.item() == pytest.approx(-math.log2(mass), rel=1e-9)


@pytest.mark.parametrize("bound_weight", [0.001, 0.5])
def test_the_hybrid_loss_by_hand(bound_weight):
    """(noise - output)^2 + weight T KL in bits; with weight 0.001 the T / 1000 of the authors'
    code."""
    t, x0, noise, noise_said, said = 2, 0.4, -0.7, 0.2, 0.6
    alpha, sigma = math.sqrt(BAR[t]), math.sqrt(1 - BAR[t])
    x_t = alpha * x0 + sigma * noise
    x0_said = (x_t - sigma * noise_said) / alpha
    of_x0 = math.sqrt(BAR[1]) * 0.2 / (1 - BAR[2])
    learned = math.exp(0.8 * UPPER[1] + 0.2 * LOWER[1])
    # x_t's part of the mean is shared
    kl = normal_kl(of_x0 * x0, POSTERIOR[1], of_x0 * x0_said, learned) / math.log(2)
    expected = (noise - noise_said) ** 2 + bound_weight * 3 * kl
    denoiser = Denoiser(Says(noise_said, said), THREE, PredictNoise(), LearnedRange())
    loss = hybrid_loss(
        denoiser.forward_pass(pixel(x0), torch.tensor([t]), pixel(noise)), bound_weight=bound_weight
    )
    assert loss.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("t", [1, 2, 3])
def test_in_the_hybrid_loss_the_bound_does_not_teach_the_mean(t):
    """The image's gradient is that of L_simple alone; the variance's is that of the bound."""
    network = Says(0.2, 0.6)
    denoiser, t = Denoiser(network, THREE, PredictNoise(), LearnedRange()), torch.tensor([t])
    x0, noise = pixel(0.4), pixel(-0.7)

    def gradients(loss):
        return torch.autograd.grad(
            loss(denoiser.forward_pass(x0, t, noise)).sum(),
            [network.image, network.variance],
            allow_unused=True,
        )

    hybrid, simple, bound = (gradients(loss) for loss in (hybrid_loss, simple_loss, bound_loss))
    assert hybrid[0] == simple[0] and simple[1] == 0
    assert hybrid[1].item() == pytest.approx(0.003 * bound[1].item(), rel=1e-12) and bound[1] != 0
    assert bound[0] != 0  # L_vlb by itself teaches both


def test_the_best_learned_variance_is_the_true_one():
    """The bound over the variance is least where it is the posterior's plus the squared error of
    the mean."""
    t, x0, noise, x0_said = 3, 0.4, -0.7, 0.1
    of_x0 = math.sqrt(BAR[2]) * 0.4 / (1 - BAR[3])
    best = math.log(POSTERIOR[2] + (of_x0 * (x0 - x0_said)) ** 2)

    def bits(log_variance):
        denoiser = Denoiser(Says(x0_said, log_variance), THREE, PredictX0(), Learned())
        x_t = THREE.add_noise(pixel(x0), pixel(noise), t)
        return bound_term(THREE, denoiser(x_t, t), pixel(x0), x_t, torch.tensor([t])).item()

    assert bits(best) < min(bits(best - 0.01), bits(best + 0.01))


@pytest.mark.parametrize("s", [0, 1, 2])
def test_ancestral_sampling_with_a_learned_range(s):
    """One step from t = 3 to any s: the mean of the clipped x0, plus the learned deviation where s
    > 0."""
    denoiser = Denoiser(Says(5.0, 0.2), THREE, PredictX0(), LearnedRange())
    x, z = pixel(0.8), pixel(1.5)
    out = ancestral(clip_x0(denoiser, THREE), THREE, x, [3, s], lambda like: z).item()
    beta = 1 - BAR[3] / BAR[s]
    posterior = beta * (1 - BAR[s]) / (1 - BAR[3])
    mean = (
        math.sqrt(BAR[s]) * beta / (1 - BAR[3]) * 1.0
        + math.sqrt(1 - beta) * (1 - BAR[s]) / (1 - BAR[3]) * 0.8
    )
    deviation = math.exp(0.5 * (0.6 * math.log(beta) + 0.4 * math.log(posterior))) if s else 0.0
    assert out == pytest.approx(mean + deviation * 1.5, rel=1e-10)


@pytest.mark.parametrize("said", [30.0, -30.0, 200.0])
def test_an_extreme_variance_elsewhere_leaves_no_nan_through_the_decoder(said):
    """The decoder of t = 1 is masked out at all other t; a gradient of NaN times 0 would not be."""
    network = Says(300.0, said)
    loss = bound_loss(
        Denoiser(network, THREE, PredictX0(), LearnedRange()).forward_pass(
            pixel(0.4), torch.tensor([3]), pixel(-0.7)
        )
    )
    loss.sum().backward()
    assert network.image.grad.isfinite() and network.variance.grad.isfinite()
