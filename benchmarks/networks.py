"""The networks that are compared: ours, diffusers' UNet2DModel with the same weights,
denoising-diffusion-pytorch's of about the size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.formats.diffusers import FAMILIES, to_diffusers
from models.unet import UNet

CONF = Path(__file__).parent.parent / "conf" / "model"


class Model(NamedTuple):
    """config: in conf/model. dim: of denoising-diffusion-pytorch's Unet with the dim_mults of its
    README, for about as many parameters."""

    config: str
    size: int
    dim: int


MODELS = {
    "cifar10": Model("ddpm_cifar10", 32, 64),
    "celeba64": Model("ddpm_celeba64", 64, 96),
    "demo": Model("demo", 24, 16),
}


def ours(model: Model) -> UNet:
    """With weights far from a fresh network's, whose last layers give almost 0: any two of those
    would agree."""
    network = UNet(**settings(model))
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p), alpha=0.02)
    return network


def settings(model: Model) -> dict:
    found = yaml.safe_load((CONF / f"{model.config}.yaml").read_text())
    assert found.pop("_target_") == "models.unet.UNet"
    return found | {"in_channels": 3}


def in_diffusers(diffusers: ModuleType, model: Model, network: UNet) -> nn.Module:
    """The UNet2DModel that computes what network does, with its weights."""
    unet = diffusers_unet(diffusers, model)
    unet.load_state_dict(to_diffusers(network.state_dict(), network))
    return unet


def diffusers_unet(diffusers: ModuleType, model: Model) -> nn.Module:
    """The UNet2DModel of the same config."""
    s = settings(model)
    down = [
        "AttnDownBlock2D" if level in s["attention_levels"] else "DownBlock2D"
        for level in range(len(s["multipliers"]))
    ]
    return diffusers.UNet2DModel(
        sample_size=model.size,
        block_out_channels=[s["channels"] * m for m in s["multipliers"]],
        layers_per_block=s["blocks"],
        down_block_types=down,
        up_block_types=[name.replace("Down", "Up") for name in reversed(down)],
        dropout=s["dropout"],
        attention_head_dim=None,
        norm_num_groups=s["groups"],
        **FAMILIES["models.unet.UNet"],
    )


def lucidrains(package: ModuleType, model: Model, flash: bool) -> nn.Module:
    """denoising-diffusion-pytorch's GaussianDiffusion around its Unet, as in its README. flash:
    which on a GPU has no fp32."""
    unet = package.Unet(dim=model.dim, dim_mults=(1, 2, 4, 8), flash_attn=flash)
    return package.GaussianDiffusion(unet, image_size=model.size, timesteps=1000)


@torch.no_grad()
def check_same_outputs(
    network: UNet, unet: nn.Module, size: int, device: torch.device, most: float = 1e-4
) -> None:
    """Ends the benchmark unless the two say the same, in fp32: largest difference over largest
    value."""
    x, t = torch.randn(2, 3, size, size, device=device), torch.tensor([10, 700], device=device)
    modes = network.training, unet.training
    a, b = network.eval()(x, t, {}), unet.eval()(x, t).sample
    network.train(modes[0]), unet.train(modes[1])
    difference = ((a - b).abs().max() / b.abs().max()).item()
    print(
        f"ours and diffusers with the same weights: outputs differ by {difference:.1e} of the "
        f"largest, {b.abs().max().item():.2f}"
    )
    if not difference <= most:
        raise SystemExit(
            f"not the same network: the outputs differ by {difference:.1e} of the largest, and "
            f"{most:.0e} is allowed."
        )


@torch.no_grad()
def gflop(call: Callable, size: int) -> float:
    """Of convolutions, linear layers and attention on one image, on the CPU; a multiplication and
    an addition are two."""
    with FlopCounterMode(display=False) as counter:
        call(torch.randn(1, 3, size, size), torch.tensor([500]))
    return counter.get_total_flops() / 1e9


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
