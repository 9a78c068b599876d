"""Between the uint8 pixels of images and x0 in [-1, 1], and the picture that shows them."""

from collections.abc import Sequence

import numpy as np
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


def to_picture(images: np.ndarray, shown: Sequence[int] | None = None) -> np.ndarray:
    """[..., C] -> [..., 1 or 3], the channels that are shown, counted from 1. None: gray and colour
    as they are, of two channels the first, of more the first three."""
    channels = images.shape[-1]
    if shown is None:
        shown = shown_by_default(channels)
    whole = list(shown) == list(range(1, channels + 1))
    return images if whole else images[..., [channel - 1 for channel in shown]]


def shown_by_default(channels: int) -> Sequence[int]:
    return [1, 2, 3] if channels > 2 else [1]


def check_shown(shown: Sequence[int] | None, channels: int) -> None:
    """Raises ValueError where to_picture cannot show these of so many channels."""
    if shown is None:
        return
    if len(shown) not in (1, 3) or not 1 <= min(shown) <= max(shown) <= channels:
        raise ValueError(
            f"shown={list(shown)}: three channels, or one, are needed of the {channels}, counted "
            "from 1."
        )
