"""From noise to images with one of the samplers, image by image reproducible."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion.clipping import clip_x0
from diffusion.denoiser import Denoise, Prediction
from diffusion.image_noise import NoisePerImage
from diffusion.samplers import Sampler, heun
from diffusion.schedule import NoiseSchedule
from diffusion.spacing import Spacing, even_steps
from runtime.config_schema import Settings
from runtime.errors import UserError

log = logging.getLogger(__name__)
# standard deviation of images' mean brightness, in [-1, 1], that the start of sampling is judged by
BRIGHTNESS = 0.2
LOST = 0.1  # share of it that the start may lose beside what is lost from T


@dataclass(frozen=True)
class SamplerSettings(Settings):
    """function: the sampler. spacing: (schedule, steps) -> which steps. clip: keep the predicted x0
    in [-1, 1]."""

    function: Sampler
    spacing: Spacing
    steps: int
    clip: bool = True


def steps_of(schedule: NoiseSchedule, settings: SamplerSettings) -> list[int]:
    """The falling t of a trajectory, 0 last.

    Raises:
        UserError: where there are not so many steps, or they do not suit the schedule.
    """
    if not 1 <= settings.steps <= schedule.steps:
        raise UserError(
            f"sampler.steps must be between 1 and the schedule's {schedule.steps}, not "
            f"{settings.steps}."
        )
    steps = settings.spacing(schedule, settings.steps)
    if schedule.zero_terminal_snr and steps[0] < schedule.steps:
        raise UserError(
            f"a schedule with zero terminal SNR must be sampled from T = {schedule.steps} itself, "
            f"and these steps begin at {steps[0]}: use spacing=trailing."
        )
    return steps


def bar_of_images(count: int, steps: int, **settings: Any) -> "tqdm[Any]":
    """A progress bar of images, each as far as its steps are; update(1) is one step of one."""
    form = "{l_bar}{bar}| {n:.1f}/{total:.0f} images [{elapsed}<{remaining}, {rate_fmt}]"
    scale: dict[str, Any] = {"unit": " images", "unit_scale": 1 / steps, "bar_format": form}
    return tqdm(total=count * steps, **scale, **settings)


def as_made(
    config: dict[str, Any], settings: SamplerSettings, schedule: NoiseSchedule
) -> dict[str, Any]:
    """The config of these settings as it is kept beside images and compared: with a revision where
    the same settings once made other images, which are Heun's, and those of even steps whose number
    does not divide T."""
    function, spacing = (
        getattr(part, "func", part) for part in (settings.function, settings.spacing)
    )
    changed = function is heun or (spacing is even_steps and schedule.steps % settings.steps > 0)
    return config | {"revision": 2} if changed else config


def lost_brightness(schedule: NoiseSchedule, t: int, values: int) -> float:
    """The share, 0 to 1, of images' mean brightness (as it differs from gray) that is lost where
    sampling begins at t with noise alone.

    The mean of an image's values = H W C pixels stands in noise of variance sigma^2 / values only,
    so it shows long before the image does. Where it varies by N(m, v) from image to image, the
    probability flow from N(0, I) at t ends with

        mean  m (1 - sqrt(S / (1 + S))),   S = v values alpha_bar / (1 - alpha_bar),

    and the share is sqrt(S / (1 + S)), with v = 0.2^2. A number of pixels four times as large wants
    a quarter of the SNR at the start.
    """
    signal = BRIGHTNESS**2 * values * schedule.snr(t).item()
    return math.sqrt(signal / (1 + signal))


def warn_of_start(schedule: NoiseSchedule, settings: SamplerSettings, shape: Sequence[int]) -> None:
    """Says, once in a process, where a spacing begins so late that images of this shape, [C, H, W],
    keep too little brightness."""
    first, values = steps_of(schedule, settings)[0], math.prod(shape)
    always = lost_brightness(schedule, schedule.steps, values)
    lost = lost_brightness(schedule, first, values) - always
    if lost > LOST:
        _warn_once(
            f"sampling begins at t = {first} of T = {schedule.steps} with noise alone, where "
            f"images of {shape[1]}x{shape[2]}, {shape[0]} channels, still show: about {lost:.0%} "
            "of their mean brightness is lost, so they come out too gray and too much alike. "
            "spacing=log_snr begins at T."
        )


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


@torch.no_grad()
def generate(
    denoise: Denoise,
    schedule: NoiseSchedule,
    settings: SamplerSettings,
    shape: Sequence[int],
    seeds: Sequence[int],
    on_step: Callable[[Tensor, int], object] = lambda x0, t: None,
) -> Tensor:
    """One image for each seed, which depends on its seed and not on the batch it is made in.

    Args:
        shape: [C, H, W].
        on_step: sees the first predicted x0 at each t: for a progress bar, a strip of denoising
            steps, or to stop (it may raise).
    Returns:
        [B, C, H, W], about [-1, 1], on the schedule's device.
    """
    # a step's few numbers come from the host: nothing waits for them
    device, schedule = schedule.alpha_bar.device, schedule.to("cpu")
    if settings.clip:
        denoise = clip_x0(denoise, schedule)
    reached = schedule.steps + 1

    def watched(x_t: Tensor, t: Any) -> Prediction:
        nonlocal reached
        prediction = denoise(x_t, t)
        if t < reached:  # some samplers come twice
            reached = t
            on_step(prediction.x0, t)
        return prediction

    randn = NoisePerImage(seeds)
    x = randn(torch.empty(len(seeds), *shape, device=device))
    return settings.function(watched, schedule, x, steps_of(schedule, settings), randn)
