"""What a network's output means: round trips, the papers' formulas, the Denoiser and the wrappers
around it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from diffusion import schedule as schedules
from diffusion.clipping import clip_x0
from diffusion.denoiser import Denoiser, Prediction
from diffusion.guidance import guide
from diffusion.parameterization import (
    PredictMean,
    PredictNoise,
    PredictVelocity,
    PredictX0,
    noise_of,
)
from diffusion.variance import FixedLarge, FixedSmall, Fraction

ALL = [PredictNoise(), PredictX0(), PredictVelocity(), PredictMean()]
SCHEDULES = {
    "linear": schedules.linear(1000),
    "cosine": schedules.cosine(1000),
    "one step": schedules.linear(1),
    "zero terminal": schedules.zero_terminal(schedules.linear(1000)),
}


def name_of(value):
    """Readable test ids."""
    return value if isinstance(value, str) else type(value).__name__


def images(batch, *shape, seed=0):
    """Two independent float64 normal draws."""
    return torch.randn(
        2,
        batch,
        *(shape or (3, 2, 2)),
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )


class Constant(nn.Module):
    """Returns one fixed output and remembers what it was called with."""

    def __init__(self, output):
        super().__init__()
        self.output, self.calls = output, []

    def forward(self, x, timestep, condition):
        self.calls.append((x, timestep, condition))
        return self.output


@pytest.mark.parametrize("parameterization", ALL, ids=name_of)
@pytest.mark.parametrize("name", SCHEDULES)
def test_round_trip_at_every_t(parameterization, name):
    """decode(encode(x0, noise)) = (x0, noise) in float64 for every t in 1..T (no signal, so no
    noise prediction, at zero SNR)."""
    schedule = SCHEDULES[name]
    last = schedule.steps - (
        schedule.zero_terminal_snr and isinstance(parameterization, PredictNoise)
    )
    t = torch.arange(1, last + 1)
    x0, noise = images(len(t))
    x_t = schedule.add_noise(x0, noise, t)
    back = parameterization.decode(
        schedule, parameterization.encode(schedule, x0, noise, t), x_t, t
    )
    torch.testing.assert_close(back[0], x0, rtol=0, atol=1e-7)
    torch.testing.assert_close(back[1], noise, rtol=0, atol=1e-7)


@pytest.mark.parametrize("parameterization", ALL, ids=name_of)
def test_any_output_decodes_to_a_pair_that_makes_x_t(parameterization):
    """alpha x0 + sigma noise = x_t whatever the network says: the contract of Prediction."""
    schedule = SCHEDULES["linear"]
    t = torch.tensor([1, 2, 500, 999, 1000])
    output, x_t = images(5)
    x0, noise = parameterization.decode(schedule, output, x_t, t)
    alpha_bar = schedule.alpha_bar[t][:, None, None, None]
    torch.testing.assert_close(
        alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise, x_t, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("parameterization", ALL, ids=name_of)
def test_targets_are_the_papers(parameterization):
    """By hand, one t per image, from the betas: eps and mu~ (Ho et al. 2020, eq. 14 and 7), x0, v
    (Salimans and Ho 2022)."""
    betas = [0.1, 0.2, 0.4]
    schedule = schedules.from_betas(betas)
    x0, noise = images(3)
    targets = parameterization.encode(schedule, x0, noise, torch.tensor([1, 2, 3]))
    bar = 1.0
    for k, beta in enumerate(betas):
        before, bar = bar, bar * (1 - beta)
        x_t = math.sqrt(bar) * x0[k] + math.sqrt(1 - bar) * noise[k]
        mean = (
            math.sqrt(before) * beta / (1 - bar) * x0[k]
            + math.sqrt(1 - beta) * (1 - before) / (1 - bar) * x_t
        )
        expected = {
            PredictNoise: noise[k],
            PredictX0: x0[k],
            PredictMean: mean,
            PredictVelocity: math.sqrt(bar) * noise[k] - math.sqrt(1 - bar) * x0[k],
        }[type(parameterization)]
        torch.testing.assert_close(targets[k], expected, rtol=1e-12, atol=1e-12)


def test_mean_of_the_noise_form():
    """mu~ = (x_t - beta_t / sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_t), eq. 11 of Ho et al. 2020,
    is the same target."""
    schedule, beta = SCHEDULES["linear"], 1e-4 + (0.02 - 1e-4) * 299 / 999
    x0, noise = images(4)
    x_t = schedule.add_noise(x0, noise, 300)
    expected = (x_t - beta / (1 - schedule.alpha_bar[300]).sqrt() * noise) / math.sqrt(1 - beta)
    torch.testing.assert_close(
        PredictMean().encode(schedule, x0, noise, 300), expected, rtol=1e-10, atol=1e-12
    )


def test_velocity_is_the_derivative_along_the_angle():
    """v = d x / d phi, x = cos(phi) x0 + sin(phi) noise: Salimans and Ho 2022, by central
    differences."""
    schedule, step = SCHEDULES["cosine"], 1e-5
    x0, noise = images(2)
    for t in (1, 400, 999):
        phi = math.atan2((1 - schedule.alpha_bar[t]).sqrt(), schedule.alpha_bar[t].sqrt())
        after, before = (math.cos(phi + d) * x0 + math.sin(phi + d) * noise for d in (step, -step))
        torch.testing.assert_close(
            PredictVelocity().encode(schedule, x0, noise, t),
            (after - before) / (2 * step),
            rtol=1e-8,
            atol=1e-8,
        )


@pytest.mark.parametrize("parameterization", ALL, ids=name_of)
def test_tensor_and_int_t_agree(parameterization):
    """A batch at different t equals its images one by one, with an int t, to the bit."""
    schedule, t = SCHEDULES["linear"], [1, 7, 1000]
    x0, noise = images(3)
    target = parameterization.encode(schedule, x0, noise, torch.tensor(t))
    decoded = parameterization.decode(schedule, target, x0, torch.tensor(t))
    for k, step in enumerate(t):
        one = slice(k, k + 1)
        assert torch.equal(
            parameterization.encode(schedule, x0[one], noise[one], step), target[one]
        )
        alone = parameterization.decode(schedule, target[one], x0[one], step)
        assert torch.equal(alone[0], decoded[0][one]) and torch.equal(alone[1], decoded[1][one])


def test_noise_prediction_is_refused_at_zero_terminal_snr():
    """x0 = (x_T - noise) / 0 has no answer; the message names the cure."""
    with pytest.raises(ValueError, match="parameterization=velocity"):
        Denoiser(nn.Identity(), SCHEDULES["zero terminal"], PredictNoise())
    with pytest.raises(ValueError, match="zero terminal SNR"):
        Denoiser(nn.Identity(), schedules.from_betas([0.5, 1.0]), PredictNoise())


@pytest.mark.parametrize(
    "parameterization", [PredictX0(), PredictVelocity(), PredictMean()], ids=name_of
)
def test_zero_terminal_snr_decodes_at_the_end(parameterization):
    """At T, x_T is the noise itself: the others are accepted, decode to a finite x0, and the noise
    is x_T."""
    output, x_t = images(2)
    prediction = Denoiser(Constant(output), SCHEDULES["zero terminal"], parameterization)(x_t, 1000)
    torch.testing.assert_close(prediction.noise, x_t, rtol=1e-12, atol=1e-12)
    if isinstance(parameterization, PredictVelocity):
        torch.testing.assert_close(prediction.x0, -output, rtol=1e-12, atol=1e-12)
    if isinstance(parameterization, PredictX0):
        assert torch.equal(prediction.x0, output)
    # mu~ = sqrt(alpha_bar_{T-1}) x0 when x_T carries no signal
    if isinstance(parameterization, PredictMean):
        torch.testing.assert_close(
            prediction.x0,
            output / SCHEDULES["zero terminal"].alpha_bar[999].sqrt(),
            rtol=1e-9,
            atol=1e-9,
        )


def test_denoiser_counts_the_networks_timesteps_from_zero():
    """The network sees t - 1 [B] (Ho's weights), an int t becomes a full batch, and no condition
    becomes an empty one."""
    x_t = images(3)[0]
    network = Constant(x_t)
    denoiser = Denoiser(network, SCHEDULES["linear"], PredictNoise())
    denoiser(x_t, 1000)
    denoiser(x_t, torch.tensor([1, 20, 1000]), {"label": torch.tensor([5, 6, 7])})
    assert network.calls[0][1].tolist() == [999] * 3 and network.calls[0][2] == {}
    assert network.calls[1][1].tolist() == [0, 19, 999] and network.calls[1][2][
        "label"
    ].tolist() == [5, 6, 7]
    assert torch.equal(network.calls[0][0], x_t)


def test_a_network_that_knows_another_schedule_is_told_the_timestep_of_equal_noise():
    """The target's schedule is every second step of the source's: there the source's network must
    be asked exactly what it was asked."""
    source = schedules.cosine(1000)
    target = schedules.NoiseSchedule(source.alpha_bar[::2])
    network = Constant(torch.zeros(3, 3, 2, 2, dtype=torch.float64))
    x, t = images(3)[0], torch.tensor([1, 250, 500])
    Denoiser(network, source, PredictVelocity())(x, 2 * t)
    told = Denoiser(network, target, PredictVelocity(), known=source)
    for denoiser in (told, told.around(network)):
        denoiser(x, t)
        torch.testing.assert_close(
            network.calls[-1][1], network.calls[0][1].double(), rtol=0, atol=1e-9
        )


def test_a_forward_pass_has_what_its_network_was_given_and_said():
    network = Constant(torch.zeros(2, 3, 2, 2, dtype=torch.float64))
    denoiser = Denoiser(network, schedules.linear(10), PredictNoise())
    (x0, noise), t = images(2), torch.tensor([3, 7])
    step = denoiser.forward_pass(x0, t, noise, {"label": t})
    given, timestep, condition = network.calls[-1]
    assert (
        step.x_t is given
        and torch.equal(step.x_t, denoiser.schedule.add_noise(x0, noise, t))
        and torch.equal(timestep, t - 1)
    )
    assert condition["label"] is t and step.output is network.output and step.of_variance is None
    torch.testing.assert_close(step.prediction.x0, denoiser(step.x_t, t).x0, rtol=0, atol=0)


@pytest.mark.parametrize("parameterization", ALL, ids=name_of)
def test_denoiser_recovers_x0_and_noise_from_the_target(parameterization):
    """A network that outputs the training target makes the Denoiser return the truth, with the
    variance asked for."""
    schedule, t = SCHEDULES["linear"], torch.tensor([1, 500])
    x0, noise = images(2)
    network = Constant(parameterization.encode(schedule, x0, noise, t))
    for variance, fractions in ((FixedSmall(), [0, 0]), (FixedLarge(), [0, 1])):
        prediction = Denoiser(network, schedule, parameterization, variance)(
            schedule.add_noise(x0, noise, t), t
        )
        torch.testing.assert_close(prediction.x0, x0, rtol=0, atol=1e-9)
        torch.testing.assert_close(prediction.noise, noise, rtol=0, atol=1e-9)
        assert torch.as_tensor(prediction.variance.value).expand(2).tolist() == fractions


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_outputs_are_widened(dtype):
    """What autocast leaves in 16 bits is decoded in float32, also by a Denoiser cast to 16 bits,
    whose schedule stays float64."""
    x_t = torch.randn(2, 3, 4, 4)
    denoiser = Denoiser(Constant(x_t.to(dtype)), SCHEDULES["linear"], PredictNoise()).to(dtype)
    assert denoiser.outputs(x_t, 5)[0].dtype == torch.float32
    assert denoiser.schedule.alpha_bar.dtype == torch.float64
    assert denoiser(x_t, 5).x0.dtype == torch.float32


def test_clip_keeps_the_pair_consistent():
    """x0 within [-1, 1], untouched where it already was, the noise made to agree with x_t, the
    variance passed on."""
    schedule = SCHEDULES["linear"]
    t = torch.tensor([1, 500, 1000])
    output, x_t = images(3)
    denoiser = Denoiser(Constant(output), schedule, PredictNoise())
    plain, clipped = denoiser(x_t, t), clip_x0(denoiser, schedule)(x_t, t)
    assert (plain.x0.abs() > 1).any() and clipped.x0.abs().max() <= 1
    inside = plain.x0.abs() <= 1
    assert inside.any() and torch.equal(clipped.x0[inside], plain.x0[inside])
    assert torch.equal(clipped.x0[~inside], plain.x0[~inside].sign())
    torch.testing.assert_close(clipped.noise[inside], plain.noise[inside], rtol=1e-6, atol=1e-6)
    alpha_bar = schedule.alpha_bar[t][:, None, None, None]
    torch.testing.assert_close(
        alpha_bar.sqrt() * clipped.x0 + (1 - alpha_bar).sqrt() * clipped.noise,
        x_t,
        rtol=1e-12,
        atol=1e-12,
    )
    assert torch.equal(clipped.variance.value, plain.variance.value)


def test_noise_of_inverts_add_noise():
    """(x_t - sqrt(alpha_bar) x0) / sqrt(1 - alpha_bar) at both ends of a schedule."""
    schedule = SCHEDULES["cosine"]
    x0, noise = images(2)
    for t in (1, 1000):
        torch.testing.assert_close(
            noise_of(schedule, x0, schedule.add_noise(x0, noise, t), t),
            noise,
            rtol=1e-10,
            atol=1e-10,
        )


def fixed_prediction(seed, fraction=0.0):
    """A Denoise that returns one fixed pair."""
    x0, noise = images(2, seed=seed)
    return lambda x_t, t: Prediction(x0, noise, Fraction(fraction))


def test_guide_is_the_line_through_both():
    """reference + w (conditional - reference) in x0 and in noise; exactly the conditional at 1 and
    the reference at 0."""
    conditional, reference = fixed_prediction(1, 0.25), fixed_prediction(2, 0.75)
    c, r = conditional(None, 1), reference(None, 1)
    for scale in (-1.0, 0.5, 2.0, 7.5):
        guided = guide(conditional, reference, scale)(None, 1)
        torch.testing.assert_close(
            guided.x0, (1 - scale) * r.x0 + scale * c.x0, rtol=1e-12, atol=1e-12
        )
        torch.testing.assert_close(
            guided.noise, (1 - scale) * r.noise + scale * c.noise, rtol=1e-12, atol=1e-12
        )
        assert guided.variance.value == 0.25
    for scale, end in ((1.0, c), (0.0, r)):
        guided = guide(conditional, reference, scale)(None, 1)
        assert torch.equal(guided.x0, end.x0) and torch.equal(guided.noise, end.noise)


def test_guide_is_classifier_free_guidance():
    """(1 + w) eps(x, c) - w eps(x), eq. 6 of Ho and Salimans 2022 with w = scale - 1, and the pair
    still makes x_t."""
    schedule = SCHEDULES["linear"]
    conditional, unconditional = images(2, seed=3)
    x_t, t, w = images(2, seed=4)[0], 321, 1.5
    parts = [
        Denoiser(Constant(output), schedule, PredictNoise())
        for output in (conditional, unconditional)
    ]
    guided = guide(*parts, 1 + w)(x_t, t)
    torch.testing.assert_close(
        guided.noise, (1 + w) * conditional - w * unconditional, rtol=1e-12, atol=1e-12
    )
    alpha_bar = schedule.alpha_bar[t]
    torch.testing.assert_close(
        alpha_bar.sqrt() * guided.x0 + (1 - alpha_bar).sqrt() * guided.noise,
        x_t,
        rtol=1e-10,
        atol=1e-10,
    )
