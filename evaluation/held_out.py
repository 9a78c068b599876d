"""Held-out loss: the squared error of the predicted noise on images that training does not see, by decile of t."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.batches import to_x0
from diffusion.denoiser import Denoiser
from runtime.randomness import generator

CHUNK = 64


class HeldOut(NamedTuple):
    """Draw by draw, on the CPU; the k-th draw of two denoisers is of the same image, t and noise.

    errors: [draws] float64, in units of noise. decile: [draws] of t, 0 (lowest noise) to 9. image: [draws], its place in rows.
    """

    errors: Tensor
    decile: Tensor
    image: Tensor

    def values(self) -> dict[str, float]:
        """{"loss": mean over t, "loss_t0" .. "loss_t9": by decile of t}; a decile that no draw fell into is left out."""
        by_decile = {f"loss_t{d}": self.errors[self.decile == d].mean().item() for d in range(10) if bool((self.decile == d).any())}
        return {"loss": self.errors.mean().item()} | by_decile


@torch.no_grad()
def held_out_errors(denoiser: Denoiser, images: np.ndarray, labels: np.ndarray | None, rows: np.ndarray, draws: int,
                    on_chunk: Callable[[], object] = lambda: None) -> HeldOut:
    """On a fixed grid of (image, t, noise) triples, the same for every run on the same rows: t evenly over 1..T, images in turn.

    In units of noise whatever the network predicts; 1 is what predicting 0 would give. denoiser: in eval mode. images: [*, H, W, C]
    uint8. labels: [*] of all images, None for the null class, as for images of a domain whose classes the network does not have.
    """
    T, device = denoiser.schedule.steps, denoiser.schedule.alpha_bar.device
    t_all = 1 + (torch.arange(draws) * 2 + 1) * T // (2 * draws)
    order = torch.randperm(draws, generator=generator("held-out"))
    errors: list[Tensor] = []
    for start in range(0, draws, CHUNK):
        on_chunk()
        chosen = order[start : start + CHUNK]
        index = rows[(start + np.arange(len(chosen))) % len(rows)]
        x0 = to_x0(torch.from_numpy(images[index]).to(device))
        t = t_all[chosen].to(device)
        noise = torch.randn(x0.shape, generator=generator("held-out", start)).to(device)
        condition = {} if labels is None else {"label": torch.from_numpy(labels[index]).to(device)}
        prediction = denoiser(denoiser.schedule.add_noise(x0, noise, t), t, condition)
        errors.append((prediction.noise - noise).square().flatten(1).mean(1).cpu())
    return HeldOut(torch.cat(errors).double(), (t_all[order] - 1) * 10 // T, torch.arange(draws) % len(rows))
