"""Training and sampling-forward images/s of our UNet, of diffusers' UNet2DModel with the same
weights, and of denoising-diffusion-pytorch:

    python -m benchmarks.unet --model cifar10 --mode both --batch 1,16,128,512 --compile

Each is called as its own documentation does: ours in channels_last, as train.py puts it, theirs as
built, and diffusers' in channels_last too. All train with the same AdamW (fused), clipping and
average of the weights. A forward is one call of the network without gradients.
denoising-diffusion-pytorch's has about as many parameters, most of them at low resolutions: its
forward is fewer FLOP, which the table says. Peers that are not installed are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
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
from benchmarks.networks import (
    MODELS,
    Model,
    check_same_outputs,
    count,
    gflop,
    in_diffusers,
    lucidrains,
    ours,
)
from diffusion.denoiser import Denoiser
from diffusion.losses import simple_loss
from diffusion.parameterization import PredictNoise
from diffusion.schedule import linear
from kernels import dispatch
from models.unet import UNet
from runtime.precision import arithmetic, pick_precision
from training.ema import Ema

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
HEADING = [
    "model",
    "parameters",
    "GFLOP of a forward",
    "mode",
    "precision",
    "batch",
    "implementation",
    "compiled",
    "layout",
    "median s",
    "images/s",
    "ours over this (median, min, max)",
    "ours compiled over this (median, min, max)",
    "pairs",
    *CLOCKS,
]


class Candidate(NamedTuple):
    """network: whose parameters train. gflop: of one image. loss: (x0 in [-1, 1], t in 1..1000,
    noise) -> scalar. forward: (x_t) -> output."""

    name: str
    compiled: bool
    layout: str
    network: nn.Module
    gflop: float
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    forward: Callable[[Tensor], Tensor]

    @property
    def key(self) -> str:
        return f"{self.name}{' compiled' if self.compiled else ''} {self.layout}"


def main(argv: Sequence[str] | None = None) -> None:
    chosen = arguments(
        "training and forward images/s",
        argv,
        model=tuple(MODELS),
        mode=("both", "training", "forward"),
        batch="",
        pairs=12,
        precision=("auto", "fp32", "tf32", "bf16"),
        kernels=("auto", "triton", "reference"),
        compile=False,
    )
    precision = pick_precision(chosen.precision, chosen.device)
    torch.manual_seed(0)
    dispatch.select("reference", chosen.device)  # the operations that can be counted
    candidates = gathered(
        MODELS[chosen.model], chosen.device, precision, [False, True] if chosen.compile else [False]
    )
    dispatch.select(chosen.kernels, chosen.device)
    arithmetic("fp32", chosen.device)
    for other in (c for c in candidates if c.name == "diffusers"):
        check_same_outputs(
            candidates[0].network, other.network, MODELS[chosen.model].size, chosen.device
        )
    autocast = arithmetic(precision, chosen.device)
    rows = []
    for mode in ("training", "forward") if chosen.mode == "both" else (chosen.mode,):
        prepare = {"training": training, "forward": sampling}[mode]
        steps = {c.key: prepare(c, autocast) for c in candidates}
        for batch in numbers(chosen.batch, (1, 4), (1, 16, 128, 512), chosen.device):
            # past its limit of compilations of one function, torch goes on without compiling
            torch.compiler.reset()
            inputs = {
                layout: images(batch, MODELS[chosen.model].size, chosen.device, layout)
                for layout in LAYOUTS
            }
            runs = {
                c.key: lambda c=c, s=steps, i=inputs: s[c.key](*i[c.layout]) for c in candidates
            }
            seconds, failed = interleaved(runs, chosen.pairs, chosen.device, warmup=3)
            said = clocks(chosen.device)
            for c in candidates:
                what = [chosen.model, count(c.network), f"{c.gflop:.2f}", mode, precision, batch]
                rows.append(
                    [
                        *what,
                        c.name,
                        "yes" if c.compiled else "no",
                        c.layout,
                        *speed(seconds[c.key], batch, failed.get(c.key)),
                        *against_ours(c, seconds),
                        chosen.pairs,
                        *said,
                    ]
                )
    report([HEADING, *rows], chosen.csv, chosen.device)


def gathered(
    model: Model, device: torch.device, precision: str, compiled: list[bool]
) -> list[Candidate]:
    """Ours first. Each has weights of its own, equal where the networks are."""
    source = ours(model)
    found = [of_ours(with_weights(source, ours(model)), model.size, device, c) for c in compiled]
    if diffusers := peer("diffusers"):
        for layout in LAYOUTS:
            for c in compiled:
                found.append(
                    of_diffusers(
                        diffusers, in_diffusers(diffusers, model, source), device, layout, c
                    )
                )
    if package := peer("denoising-diffusion-pytorch"):
        for c in compiled:
            diffusion = lucidrains(
                package, model, flash=device.type == "cpu" or precision == "bf16"
            )
            found.append(of_lucidrains(diffusion, model.size, device, c))
    return found


def with_weights(source: UNet, network: UNet) -> UNet:
    network.load_state_dict(source.state_dict())
    return network


def called(network: nn.Module, compiled: bool) -> nn.Module:
    return torch.compile(network, dynamic=False) if compiled else network


def of_ours(network: UNet, size: int, device: torch.device, compiled: bool) -> Candidate:
    flop = gflop(lambda x, t: network(x, t, {}), size)
    network.to(device, memory_format=torch.channels_last)
    denoiser = Denoiser(called(network, compiled), linear(), PredictNoise()).to(device)
    return as_ours(network, denoiser, compiled, flop)


def as_ours(
    network: UNet, denoiser: Denoiser, compiled: bool = False, flop: float = 0.0
) -> Candidate:
    """Of a network that is placed, and the denoiser around it."""
    return Candidate(
        "ours",
        compiled,
        "channels_last",
        network,
        flop,
        lambda *batch: simple_loss(denoiser.forward_pass(*batch)).mean(),
        lambda x: denoiser.outputs(x, 500)[0],
    )


def of_diffusers(
    diffusers: ModuleType, network: nn.Module, device: torch.device, layout: str, compiled: bool
) -> Candidate:
    flop = gflop(network, network.config.sample_size)
    network.to(device, memory_format=LAYOUTS[layout])
    return as_diffusers(diffusers, network, layout, compiled, flop)


def as_diffusers(
    diffusers: ModuleType,
    network: nn.Module,
    layout: str,
    compiled: bool = False,
    flop: float = 0.0,
) -> Candidate:
    """Of a network that is placed."""
    call, scheduler = called(network, compiled), diffusers.DDPMScheduler()
    return Candidate(
        "diffusers",
        compiled,
        layout,
        network,
        flop,
        lambda x0, t, noise: F.mse_loss(
            call(scheduler.add_noise(x0, noise, t - 1), t - 1).sample.float(), noise
        ),
        lambda x: call(x, 499).sample,
    )


def of_lucidrains(
    diffusion: nn.Module, size: int, device: torch.device, compiled: bool
) -> Candidate:
    """It draws t and noise itself, from images in [0, 1]."""
    network = diffusion.model
    flop = gflop(network, size)
    call = diffusion.to(device).model = called(network, compiled)
    return Candidate(
        "denoising-diffusion-pytorch",
        compiled,
        "NCHW",
        network,
        flop,
        lambda x0, t, noise: diffusion(x0 / 2 + 0.5),
        lambda x: call(x, torch.full((len(x),), 499, device=x.device)),
    )


def images(
    batch: int, size: int, device: torch.device, layout: str
) -> tuple[Tensor, Tensor, Tensor]:
    def placed(x):
        return x.to(device, memory_format=LAYOUTS[layout])

    return (
        placed(torch.rand(batch, 3, size, size) * 2 - 1),
        torch.randint(1, 1001, (batch,)).to(device),
        placed(torch.randn(batch, 3, size, size)),
    )


def training(candidate: Candidate, autocast: Callable) -> Callable:
    """One step as training.loop takes it."""
    network = candidate.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, weight_decay=0.0, fused=True)
    ema = Ema(network, 0.9999)

    def step(x0: Tensor, t: Tensor, noise: Tensor) -> None:
        with autocast():
            loss = candidate.loss(x0, t, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(10**6)

    return step


def sampling(candidate: Candidate, autocast: Callable) -> Callable:
    candidate.network.eval()

    def forward(x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        with torch.no_grad(), autocast():
            return candidate.forward(noise)

    return forward


def against_ours(candidate: Candidate, seconds: dict[str, list[float]]) -> list[str]:
    """How many times as fast as this one ours is: eager, and compiled where that is timed."""
    return [
        "" if candidate.key == ours else ratio_cell(seconds[candidate.key], seconds.get(ours))
        for ours in ("ours channels_last", "ours compiled channels_last")
    ]


if __name__ == "__main__":
    main()
