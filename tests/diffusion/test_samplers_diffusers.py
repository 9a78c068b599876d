"""Whole sampling trajectories against diffusers' schedulers: float64, the same network, the same
noise, every x compared.

Where diffusers leaves the papers:
- Its DDPMScheduler leaves out the noise at timestep 0 and not on the step to the image. With
  trailing steps, which do not visit timestep 0, it adds noise of variance beta ("fixed_large") or
  1e-20 (its clamp) to the finished image. Algorithm 2 of Ho et al. 2020 adds none there, so that
  one x is held to the predicted x0, which is the mean of the step to 0.
- Its "fixed_large" lacks Ho's value for the first step, which shows in a likelihood only, never in
  a trajectory.
- Its DDIMScheduler keeps the unclipped noise beside the clipped x0 unless told
  use_clipped_model_output; we always make them agree.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import runtime.torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
from diffusers import DDIMScheduler, DDPMScheduler

from diffusion import schedule as schedules
from diffusion.clipping import clip_x0
from diffusion.denoiser import Denoiser
from diffusion.parameterization import PredictNoise, PredictVelocity, PredictX0
from diffusion.samplers import ancestral, ddim
from diffusion.spacing import even_steps, trailing_steps
from diffusion.variance import FixedLarge, FixedSmall

PREDICTIONS = {"epsilon": PredictNoise, "sample": PredictX0, "v_prediction": PredictVelocity}
VARIANCES = {"fixed_small": FixedSmall(), "fixed_large": FixedLarge()}
LINEAR = schedules.linear(1000)
SPACINGS = {"leading": even_steps, "trailing": trailing_steps}


class Toy(nn.Module):
    """A smooth function of pixels, neighbours and time; timesteps from 0, as diffusers' networks
    take them."""

    def forward(self, x, timestep, condition):
        time = timestep.to(x.dtype)[:, None, None, None] / 1000
        return torch.tanh(0.8 * x + 0.3 * x.roll(1, -1) - 0.2 * x.roll(1, -2) + time) + 0.1 * time


def in_float64(scheduler):
    """A diffusers scheduler whose tables are float64: linear betas 1e-4 .. 0.02, computed here."""
    scheduler.betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def start():
    """x_T, wide enough that x0 has to be clipped."""
    return 1.5 * torch.randn(
        2, 3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


def theirs(scheduler, count, **options):
    """Every x of a diffusers scheduler's trajectory, the last one included, its noise drawn from
    seed 1; and the last x0."""
    scheduler.set_timesteps(count)
    x, xs, generator, network = start(), [], torch.Generator().manual_seed(1), Toy()
    for t in scheduler.timesteps:
        xs.append(x)
        step = scheduler.step(
            network(x, t.expand(len(x)), {}), t, x, generator=generator, **options
        )
        x = step.prev_sample
    return [*xs, x], step.pred_original_sample


def ours(sampler, denoiser, schedule, steps, clip):
    """The same of our sampler, seen through the denoiser it calls; its noise from the same seed, in
    the order it asks for it."""
    xs, generator = [], torch.Generator().manual_seed(1)
    denoise = clip_x0(denoiser, schedule) if clip else denoiser

    def watched(x, t):
        xs.append(x)
        return denoise(x, t)

    out = sampler(
        watched,
        schedule,
        start(),
        steps,
        lambda like: torch.randn(like.shape, dtype=like.dtype, generator=generator),
    )
    return [*xs, out]


def assert_same(a, b):
    """Each x within 1e-9 of the other's largest value."""
    assert len(a) == len(b)
    worst = max(((x - y).abs().max() / y.abs().max()).item() for x, y in zip(a, b, strict=True))
    print(f"largest relative difference of {len(a)} x: {worst:.1e}")
    assert worst < 1e-9


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize(
    ("count", "spacing", "clip"),
    [
        (1000, "leading", True),
        (50, "leading", True),
        (50, "leading", False),
        (50, "trailing", True),
        (7, "trailing", False),
    ],
)
def test_ancestral_is_ddpm_scheduler(count, spacing, variance, prediction, clip):
    """All 1000 steps and sub-sequences, both variances, three predictions, clipped and not."""
    scheduler = in_float64(
        DDPMScheduler(
            1000,
            variance_type=variance,
            prediction_type=prediction,
            clip_sample=clip,
            timestep_spacing=spacing,
        )
    )
    schedule = schedules.linear(1000)
    denoiser = Denoiser(Toy(), schedule, PREDICTIONS[prediction](), VARIANCES[variance])
    xs, x0 = theirs(scheduler, count)
    if spacing == "trailing":
        xs[-1] = x0  # see above
    assert_same(ours(ancestral, denoiser, schedule, SPACINGS[spacing](LINEAR, count), clip), xs)


@pytest.mark.parametrize("clip", [True, False], ids=["clip", "no clip"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("count", "spacing"), [(50, "leading"), (20, "trailing")])
def test_ddim_is_ddim_scheduler(count, spacing, eta, prediction, clip):
    """Both spacings, three etas, three predictions; clipped, the noise is made to agree with x0
    (use_clipped_model_output)."""
    scheduler = in_float64(
        DDIMScheduler(1000, prediction_type=prediction, clip_sample=clip, timestep_spacing=spacing)
    )
    schedule = schedules.linear(1000)
    denoiser = Denoiser(Toy(), schedule, PREDICTIONS[prediction]())
    assert_same(
        ours(partial(ddim, eta=eta), denoiser, schedule, SPACINGS[spacing](LINEAR, count), clip),
        theirs(scheduler, count, eta=eta, use_clipped_model_output=clip)[0],
    )


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_zero_terminal_snr_is_diffusers(eta):
    """Lin et al. 2024: trailing steps and velocity from exactly 0 at T, on diffusers' own rescaled
    betas in float64."""
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    scheduler = in_float64(
        DDIMScheduler(
            1000, prediction_type="v_prediction", clip_sample=True, timestep_spacing="trailing"
        )
    )
    scheduler.alphas_cumprod = (1 - rescale_zero_terminal_snr(scheduler.betas)).cumprod(0)
    schedule = schedules.zero_terminal(schedules.linear(1000))
    denoiser = Denoiser(Toy(), schedule, PredictVelocity())
    assert_same(
        ours(partial(ddim, eta=eta), denoiser, schedule, trailing_steps(LINEAR, 20), True),
        theirs(scheduler, 20, eta=eta, use_clipped_model_output=True)[0],
    )


@pytest.mark.parametrize("count", [1, 7, 10, 50, 300, 1000])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_steps_are_diffusers_timesteps(spacing, count):
    """Its 0-based timesteps are ours less 1; of Song et al.'s evenly spaced ones, which are more
    than count where that does not divide T, it keeps the lowest."""
    scheduler = DDIMScheduler(1000, timestep_spacing=spacing)
    scheduler.set_timesteps(count)
    assert (scheduler.timesteps + 1).tolist() == SPACINGS[spacing](LINEAR, count)[-count - 1 : -1]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear", {"beta_start": 1e-4, "beta_end": 0.02}),
        ("cosine", {}),
        ("scaled_linear", {"beta_start": 0.00085, "beta_end": 0.012}),
    ],
)
def test_schedules_are_diffusers(name, options):
    """Its alphas_cumprod, which are float32, to float32 rounding of 1000 factors."""
    beta_schedule = {"cosine": "squaredcos_cap_v2"}.get(name, name)
    alpha_bar = DDPMScheduler(1000, beta_schedule=beta_schedule, **options).alphas_cumprod
    torch.testing.assert_close(
        getattr(schedules, name)(1000).alpha_bar[1:].float(), alpha_bar, rtol=1e-4, atol=1e-7
    )
