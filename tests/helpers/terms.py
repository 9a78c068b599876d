"""A start of a transfer in a few lines, for what is built from one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.dataset import Dataset
from data.settings import DataSettings
from diffusion import schedule as schedules
from diffusion.denoiser import Denoiser, ForwardPass
from diffusion.parameterization import Parameterization, PredictNoise
from diffusion.schedule import NoiseSchedule
from models.unet import UNet
from transfer.context import Start

SCHEDULE = schedules.linear(100)


def images(n: int, height: int = 8, width: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(
        0, 256, (n, height, width, channels), dtype=np.uint8
    )


def dataset(pictures: np.ndarray) -> Dataset:
    rows = np.arange(len(pictures))
    return Dataset(
        pictures,
        np.zeros(len(pictures), dtype=np.int64),
        {"train": rows, "validation": rows[:0], "test": rows[:0]},
        [],
    )


def source_images(start: Start, n: int) -> Dataset:
    """What a config names as the images of the source."""
    return dataset(images(n, *start.target.images.shape[1:], seed=1))


def start_of(
    network: nn.Module,
    target: Dataset | None = None,
    cache: Path = Path("nowhere"),
    seed: int = 0,
    flip: bool = False,
    parameterization: Parameterization | None = None,
    schedule: NoiseSchedule = SCHEDULE,
) -> Start:
    target = target or dataset(images(4))
    settings = DataSettings(
        reader=lambda memory: None,
        size=list(target.images.shape[1:3]),
        channels=target.images.shape[3],
        flip=flip,
    )
    return Start(
        Denoiser(network, schedule, parameterization or PredictNoise()),
        None,
        (),
        target,
        settings,
        None,
        seed,
        4,
        cache,
    )


def unet(seed: int = 0, **options) -> UNet:
    """A tiny one in which every weight matters: none is near zero, as Ho's last layers of a block
    are."""
    network = UNet(8, (1, 2), 1, (1,), groups=4, **options)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw) + (parameter == 1))
    return network


def batch(
    n: int = 4, height: int = 8, width: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """x0, t and noise."""
    draw = torch.Generator().manual_seed(seed)
    x0, noise = (torch.randn(n, 3, height, width, generator=draw, dtype=dtype) for _ in range(2))
    return x0.clamp(-1, 1), torch.randint(1, 101, (n,), generator=draw), noise


def seen_by(
    denoiser: Denoiser,
    seed: int = 0,
    n: int = 4,
    dtype: torch.dtype = torch.float32,
    condition=None,
) -> ForwardPass:
    """What a step sees: the student's pass has just been."""
    x0, t, noise = batch(n, seed=seed, dtype=dtype)
    return denoiser.forward_pass(x0, t, noise, condition)
