"""Files of weights, and images as networks of photographs take them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.features import in_colour
from models.formats.published import read_weights
from runtime.errors import UserError

Resample = Literal["bilinear", "bicubic"]


def weight_file(path: str, what: str, source: str) -> Path:
    """what: whose weights these are. source: where the file is to be had, for the message where it
    is not there."""
    file = Path(path).expanduser()
    if not file.is_file():
        found = "is a folder, and a file is needed" if file.is_dir() else "is not there"
        raise UserError(
            f"the weights of {what}: {path} {found}. Nothing is downloaded here: {source}. Then "
            "name the file by the setting path of these features, such as features.path=FILE."
        )
    return file


def tensors(file: Path) -> dict[str, Tensor]:
    """The state dict of a file, safetensors or what torch.save wrote; nothing in it is run."""
    try:
        found = read_weights(file)
        if (
            not isinstance(found, dict)
            or not found
            or not all(isinstance(tensor, Tensor) for tensor in found.values())
        ):
            raise UserError("no state dict: save the dict of the network's tensors alone.")
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    return found


def load_into(
    network: torch.nn.Module, state: dict[str, Tensor], file: Path, what: str, assign: bool = False
) -> None:
    """Every tensor of the network from state and none left over, or a UserError with the first that
    does not fit."""
    own = network.state_dict()
    wrong = (
        [f"{name} is missing" for name in own if name not in state]
        + [f"{name} is of no use" for name in state if name not in own]
        + [
            f"{name} is {list(state[name].shape)} there and {list(own[name].shape)} here"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ]
    )
    if wrong:
        raise UserError(
            f"{file} holds no weights of {what}: {wrong[0]}"
            + (f", and {len(wrong) - 1} more." if len(wrong) > 1 else ".")
        )
    network.load_state_dict(state, assign=assign)


class Normalized:
    """images [B, H, W, 1 or 3] uint8 -> [B, 3, size, size]: in colour, the whole picture brought to
    a square (antialiased), and of its values in 0..1 (x - mean) / std."""

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], resample: Resample):
        if size < 1:
            raise ValueError(f"size={size} must be at least 1.")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(
                f"mean={list(mean)} and std={list(std)} must be three numbers each, one a "
                "colour, those of std above 0."
            )
        self.size, self.resample = size, resample
        self.mean, self.std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)

    def to(self, device: torch.device | str) -> None:
        self.mean, self.std = self.mean.to(device), self.std.to(device)

    def __call__(self, images: Tensor) -> Tensor:
        return (
            resized(in_colour(images).float() / 255, self.size, self.resample).clamp(0, 1)
            - self.mean
        ) / self.std


def resized(x: Tensor, size: int, resample: Resample) -> Tensor:
    """[B, 3, H, W] -> [B, 3, size, size]; antialiased where it becomes smaller. Bicubic goes beyond
    the range of x at edges."""
    return F.interpolate(x, size=(size, size), mode=resample, align_corners=False, antialias=True)
