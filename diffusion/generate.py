"""From noise to images with one of the samplers, image by image reproducible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import Denoise, clip_x0
from diffusion.samplers import NoisePerImage, Sampler
from diffusion.schedule import NoiseSchedule
from runtime.errors import UserError


@dataclass(frozen=True)
class SamplerSettings:
    """function: the sampler. spacing: (T, steps) -> which steps. clip: keep the predicted x0 in [-1, 1]."""

    function: Sampler
    spacing: Callable[[int, int], list[int]]
    steps: int
    clip: bool = True


def steps_of(schedule: NoiseSchedule, settings: SamplerSettings) -> list[int]:
    """The falling t of a trajectory, 0 last. Raises UserError where they do not suit the schedule."""
    steps = settings.spacing(schedule.steps, settings.steps)
    if schedule.zero_terminal_snr and steps[0] < schedule.steps:
        raise UserError(f"a schedule with zero terminal SNR must be sampled from T = {schedule.steps} itself, and these steps begin at "
                        f"{steps[0]}: use spacing=trailing.")
    return steps


@torch.no_grad()
def generate(denoise: Denoise, schedule: NoiseSchedule, settings: SamplerSettings, shape: Sequence[int], seeds: Sequence[int],
             on_step: Callable[[Tensor, int], object] = lambda x0, t: None) -> Tensor:
    """One image [C, H, W] = shape for each seed -> [B, C, H, W], about [-1, 1], on the schedule's device.

    An image depends on its seed and not on the batch it is made in. on_step sees the first predicted x0 at each t: for a progress
    bar, a strip of denoising steps, or to stop (it may raise).
    """
    device, schedule = schedule.alpha_bar.device, schedule.to("cpu")  # a step's few numbers come from the host: nothing waits for them
    if settings.clip:
        denoise = clip_x0(denoise, schedule)
    reached = schedule.steps + 1

    def watched(x_t, t):
        nonlocal reached
        prediction = denoise(x_t, t)
        if t < reached:  # some samplers come twice
            reached = t
            on_step(prediction.x0, t)
        return prediction

    randn = NoisePerImage(seeds)
    x = randn(torch.empty(len(seeds), *shape, device=device))
    return settings.function(watched, schedule, x, steps_of(schedule, settings), randn)
