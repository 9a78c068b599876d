"""Held-out loss: the squared error of the predicted noise on images that training does not see, by decile of t."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from data.batches import to_x0
from diffusion.denoiser import Denoiser
from runtime.randomness import generator

CHUNK = 64


@torch.no_grad()
def held_out_loss(denoiser: Denoiser, images: np.ndarray, labels: np.ndarray, rows: np.ndarray, draws: int,
                  on_chunk: Callable[[], object] = lambda: None) -> dict[str, float]:
    """{"loss": mean over t, "loss_t0" .. "loss_t9": by decile of t, lowest noise first}.

    A fixed grid of (image, t, noise) triples, the same for every run on the same rows: t evenly over 1..T, images in turn. In
    units of noise whatever the network predicts; 1 is what predicting 0 would give. denoiser: in eval mode.
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
        condition = {"label": torch.from_numpy(labels[index]).to(device)}
        prediction = denoiser(denoiser.schedule.add_noise(x0, noise, t), t, condition)
        errors.append((prediction.noise - noise).square().flatten(1).mean(1).cpu())
    error, decile = torch.cat(errors).double(), (t_all[order] - 1) * 10 // T
    by_decile = {f"loss_t{d}": error[decile == d].mean().item() for d in range(10) if bool((decile == d).any())}
    return {"loss": error.mean().item()} | by_decile
