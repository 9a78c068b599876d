"""Images/s of whole trajectories, ancestral and DDIM, with our UNet and with diffusers' of the same
weights:

    python -m benchmarks.sampling --model cifar10 --batch 1,16 --compile

Ours is what sample.py runs, with and without a CUDA graph; theirs the loop of its pipelines over
its DDPMScheduler or DDIMScheduler, without the pipelines' progress bar and PNGs. Ancestral takes
1000 steps and DDIM 50; --steps shortens both, which is the default on a CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn

from benchmarks.common import (
    CLOCKS,
    arguments,
    clocks,
    interleaved,
    numbers,
    peer,
    ratio_cell,
    report,
    speed,
)
from benchmarks.networks import MODELS, Model, check_same_outputs, in_diffusers, ours
from diffusion.denoiser import Denoiser
from diffusion.generate import SamplerSettings, generate, steps_of
from diffusion.image_noise import NoisePerImage
from diffusion.parameterization import PredictNoise
from diffusion.samplers import ancestral, ddim
from diffusion.schedule import linear
from diffusion.spacing import even_steps  # even: diffusers' own default
from kernels import dispatch
from runtime.precision import arithmetic, pick_precision
from sampling.cuda_graph import cast_ahead, prepared

SAMPLERS = {"ancestral": 1000, "ddim": 50}  # steps of a whole trajectory
CPU_STEPS = 10
MOST = 1e-3  # difference of the images
HEADING = [
    "model",
    "precision",
    "sampler",
    "steps",
    "batch",
    "implementation",
    "median s",
    "images/s",
    "ours eager over this (median, min, max)",
    "ours with a graph over this (median, min, max)",
    "pairs",
    *CLOCKS,
]


def main(argv: Sequence[str] | None = None) -> None:
    chosen = arguments(
        "images/s of ancestral and DDIM sampling",
        argv,
        model=tuple(MODELS),
        sampler=("both", *SAMPLERS),
        batch="",
        steps=0,
        pairs=3,
        precision=("auto", "fp32", "tf32", "bf16"),
        kernels=("auto", "triton", "reference"),
        compile=False,
    )
    precision, cuda = pick_precision(chosen.precision, chosen.device), chosen.device.type == "cuda"
    arithmetic("fp32", chosen.device)  # for the checks
    dispatch.select(chosen.kernels, chosen.device)
    torch.manual_seed(0)
    model = MODELS[chosen.model]
    network = (
        ours(model)
        .to(chosen.device, memory_format=torch.channels_last)
        .eval()
        .requires_grad_(False)
    )
    denoiser = Denoiser(network, linear(), PredictNoise()).to(chosen.device)
    diffusers = peer("diffusers")
    unets = theirs(diffusers, denoiser, model, chosen.device) if diffusers else {}
    ways = {"ours": (denoiser, False)} | ({"ours with a graph": (denoiser, True)} if cuda else {})
    if chosen.compile:
        ways["ours compiled"] = compiled(denoiser), cuda
        unets |= {
            f"{name} compiled": torch.compile(unet, dynamic=False) for name, unet in unets.items()
        }
    autocast = arithmetic(precision, chosen.device)
    if precision == "bf16":  # as sample.py
        for each, _ in ways.values():
            cast_ahead(each.network, torch.bfloat16)
    rows = []
    most = chosen.steps or (max(SAMPLERS.values()) if cuda else CPU_STEPS)
    for sampler, whole in SAMPLERS.items():
        if chosen.sampler not in ("both", sampler):
            continue
        steps = min(most, whole)
        for batch in numbers(chosen.batch, (1, 4), (1, 16), chosen.device):
            # past its limit of compilations of one function, torch goes on without compiling
            torch.compiler.reset()
            noise = noise_of(range(batch), model.size, chosen.device)
            with torch.no_grad(), autocast():
                made = {
                    name: Ours(each, sampler, steps, graph) for name, (each, graph) in ways.items()
                }
                made |= {
                    name: Theirs(diffusers, unet, sampler, steps) for name, unet in unets.items()
                }
                seconds, failed = interleaved(
                    {name: partial(each, noise) for name, each in made.items()},
                    chosen.pairs,
                    chosen.device,
                    warming={name: partial(each.call, noise) for name, each in made.items()},
                )
            said = clocks(chosen.device)
            rows += [
                [
                    chosen.model,
                    precision,
                    sampler,
                    steps,
                    batch,
                    name,
                    *speed(seconds[name], batch, failed.get(name)),
                    *against_ours(seconds, name),
                    chosen.pairs,
                    *said,
                ]
                for name in made
            ]
    if most < max(SAMPLERS.values()):
        print(
            f"Trajectories cut to at most {most} steps (--steps; whole ones are 1000 ancestral, "
            "50 DDIM): the images/s are of these."
        )
    report([HEADING, *rows], chosen.csv, chosen.device)


def theirs(
    diffusers: ModuleType, denoiser: Denoiser, model: Model, device: torch.device
) -> dict[str, nn.Module]:
    """The same network in diffusers, by layout, once outputs and images are found to be ours."""
    unets = {}
    for name, layout in {
        "diffusers": torch.contiguous_format,
        "diffusers channels_last": torch.channels_last,
    }.items():
        unet = in_diffusers(diffusers, model, denoiser.network)
        # as its pipelines have it: autocast keeps the cast of a weight that needs a gradient
        unets[name] = unet.to(device, memory_format=layout).eval()
    check_same_outputs(denoiser.network, unets["diffusers"], model.size, device)
    check_same_images(diffusers, denoiser, unets["diffusers"], model.size)
    return unets


def noise_of(seeds: Sequence[int], size: int, device: torch.device) -> Tensor:
    """What generate() starts from."""
    return NoisePerImage(seeds)(torch.empty(len(seeds), 3, size, size, device=device))


def compiled(denoiser: Denoiser) -> Denoiser:
    """With a network whose pass, which prepared() calls, is compiled."""
    network = copy.deepcopy(denoiser.network)
    network.run = torch.compile(network.run, dynamic=False)
    return denoiser.around(network).eval()


class Ours:
    """A trajectory as sample.py makes it; what is prepared once for all trajectories is not
    timed."""

    def __init__(
        self, denoiser: Denoiser, sampler: str, steps: int, graph: bool, clip: bool = True
    ):
        self.schedule = denoiser.schedule
        self.settings = SamplerSettings(
            {"ancestral": ancestral, "ddim": ddim}[sampler], even_steps, steps, clip
        )
        self.steps = steps_of(self.schedule, self.settings)[:-1]
        self.denoise = prepared(denoiser, self.steps, graph)(None)

    def call(self, noise: Tensor) -> object:
        return self.denoise(noise, self.steps[0])

    def __call__(self, noise: Tensor) -> Tensor:
        return generate(
            self.denoise, self.schedule, self.settings, noise.shape[1:], range(len(noise))
        )


class Theirs:
    """The loop of DDPMPipeline or DDIMPipeline, timesteps on the CPU as there. Clipped as ours: the
    noise made to agree with the x0."""

    def __init__(
        self, diffusers: ModuleType, unet: nn.Module, sampler: str, steps: int, clip: bool = True
    ):
        self.unet = unet
        if sampler == "ancestral":
            self.scheduler, self.options = (
                diffusers.DDPMScheduler(variance_type="fixed_large", clip_sample=clip),
                {},
            )
        else:
            self.scheduler, self.options = (
                diffusers.DDIMScheduler(clip_sample=clip),
                {"eta": 0.0, "use_clipped_model_output": clip},
            )
        self.scheduler.set_timesteps(steps)

    def call(self, noise: Tensor) -> object:
        return self.unet(noise, self.scheduler.timesteps[0])

    def __call__(self, noise: Tensor) -> Tensor:
        x = noise
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(
                self.unet(x, t).sample.float(), t, x, **self.options
            ).prev_sample
        return x


@torch.no_grad()
def check_same_images(
    diffusers: ModuleType, denoiser: Denoiser, unet: nn.Module, size: int, steps: int = 5
) -> None:
    """Ends the benchmark unless DDIM makes the same images of the same noise, in fp32: largest
    difference over largest value. Random weights give x0 far outside of [-1, 1], so without
    clipping is the sharper check."""
    device = denoiser.schedule.alpha_bar.device
    noise = noise_of(range(2), size, device)
    for clip in (True, False):
        images = Ours(denoiser, "ddim", steps, device.type == "cuda", clip)(noise)
        other = Theirs(diffusers, unet, "ddim", steps, clip)(noise)
        difference = ((images - other).abs().max() / other.abs().max()).item()
        print(
            f"DDIM of {steps} steps from the same noise, {'clipped' if clip else 'not clipped'}: "
            f"images differ by {difference:.1e} of the largest, {other.abs().max().item():.2f}"
        )
        if not difference <= MOST:
            raise SystemExit(
                f"not the same images: they differ by {difference:.1e} of the largest, and "
                f"{MOST:.0e} is allowed."
            )


def against_ours(seconds: dict[str, list[float]], name: str) -> list[str]:
    return [
        "" if name == ours else ratio_cell(seconds[name], seconds.get(ours))
        for ours in ("ours", "ours with a graph")
    ]


if __name__ == "__main__":
    main()
