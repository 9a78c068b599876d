"""DDIM by the formulas of its paper and the schedules of the published files, with nothing of
diffusion/: what make contact holds our samples against where no other implementation reads a
file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def linear(steps: int = 1000) -> Tensor:
    """alpha_bar [T] of Ho et al. 2020."""
    betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    return (1 - betas).cumprod(0)


def cosine(steps: int = 4000) -> Tensor:
    """alpha_bar [T] of Nichol and Dhariwal 2021, eq. 17, with their bound on beta."""

    def f(t: int) -> float:
        return math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f(t + 1) / f(t), 0.999) for t in range(steps)]
    return (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0)


@torch.no_grad()
def ddim_images(
    network: Callable[[Tensor, Tensor], Tensor],
    alpha_bar: Tensor,
    shape: Sequence[int],
    seeds: Sequence[int],
    steps: int,
    on_step: Callable[[], object],
) -> Tensor:
    """Song et al. 2021, eq. 12, eta 0: x0 clipped to [-1, 1], and the noise that goes with it.

    Args:
        network: (x, timestep from 0) -> what it says; its first channels are the noise.
    Returns:
        [B, C, H, W] from the noise of these seeds.
    """
    x = torch.stack([torch.randn(shape, generator=_generator(seed)) for seed in seeds])
    apart = len(alpha_bar) // steps
    for k in reversed(range(steps)):
        now = alpha_bar[k * apart].item()
        after = alpha_bar[(k - 1) * apart].item() if k else 1.0
        noise = network(x, torch.full((len(x),), k * apart))[:, : shape[0]]
        x0 = ((x - (1 - now) ** 0.5 * noise) / now**0.5).clamp(-1, 1)
        noise = (x - now**0.5 * x0) / (1 - now) ** 0.5
        x = after**0.5 * x0 + (1 - after) ** 0.5 * noise
        on_step()
    return x


def weights_as_published(found: Any) -> dict[str, Tensor]:
    """The state dict of a loaded file: of DDIM's list its last entry, the average."""
    state = found[-1] if isinstance(found, list) else found
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def error_of_a_pixel_alone(alpha_bar: float, variance: float) -> float:
    """Mean squared error of the best guess c x_t of the noise that looks at one pixel of x_t = a x0
    + s noise and at no neighbour: a^2 v / (a^2 v + s^2), where v is the mean square of x0. No
    trained network is as bad, nor does one that says what it sees get below."""
    return alpha_bar * variance / (alpha_bar * variance + 1 - alpha_bar)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
