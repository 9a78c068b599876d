"""What is done to training images: where data.flip says so, half of them are mirrored."""

import torch
from torch import Tensor

from runtime.seeds import generator


def draw_flips(count: int, seed: int, k: int) -> Tensor:
    """[count] bool: which images of batch k are mirrored."""
    return torch.rand(count, generator=generator(seed, "flip", k)) < 0.5


def mirror(x0: Tensor, flip: Tensor) -> Tensor:
    """x0 [B, C, H, W], left and right exchanged where flip [B] says so."""
    return torch.where(flip[:, None, None, None], x0.flip(-1), x0)
