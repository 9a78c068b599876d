"""Between the uint8 pixels of images and x0 in [-1, 1]."""

import torch
from torch import Tensor

from data.augmentation import mirror


def to_x0(images: Tensor, flip: Tensor | None = None) -> Tensor:
    """[B, H, W, C] uint8 -> [B, C, H, W] in [-1, 1], channels_last, flipped where flip says."""
    x0 = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    return x0 if flip is None else mirror(x0, flip)


def to_uint8(x0: Tensor) -> Tensor:
    """[B, C, H, W] in [-1, 1] -> [B, H, W, C] uint8."""
    return ((x0.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
