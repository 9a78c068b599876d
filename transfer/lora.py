"""Low-rank changes of a weight (Hu et al. 2022): W + (alpha / rank) B A, with A at random and B = 0. `weight.lora.down` is A, and
`weight.lora.up` is B."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from transfer.adapters import Injected, Layer, matrix_shape


class LowRank(Injected):
    """W + scale (B A), the product viewed in W's shape. branches: W is a stack of so many matrices, each with its own B [m/n, r] and
    A [r, columns]; they lie stacked in up [m, r] and down [n r, columns]."""

    kind = "lora"

    def __init__(self, weight: Tensor, rows: int, columns: int, rank: int, scale: float, branches: int, random: torch.Generator):
        super().__init__()
        self.scale, self.branches = scale, branches
        down = nn.init.kaiming_uniform_(torch.empty(branches * rank, columns, device="cpu"), a=math.sqrt(5), generator=random)
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        B, A = self.up.unflatten(0, (self.branches, -1)), self.down.unflatten(0, (self.branches, -1))
        return weight + self.scale * (B @ A).view(weight.shape)


@dataclass(frozen=True)
class LoRA:
    """On linear layers; on convolutions in the factorization of LoCon (Yeh et al. 2024, LyCORIS): a k x k convolution down to rank
    channels, then a 1 x 1 up, whose product is B [out, rank] A [rank, in k k] in W's shape. alpha: null for rank. branches: how many
    matrices a weight stacks; 3 gives q, k and v of a packed qkv one LoRA each."""

    patterns: Sequence[str]
    rank: int
    alpha: float | None = None
    branches: int = 1
    tensors: ClassVar = ("weight",)

    def __post_init__(self) -> None:
        _at_least_one(rank=self.rank, branches=self.branches)

    def on(self, layer: Layer, random: torch.Generator) -> LowRank:
        rows, columns = matrix_shape(layer)
        if rows % self.branches:
            raise ValueError(f"its {rows} outputs are not branches={self.branches} matrices.")
        _check_rank(self.rank, min(rows // self.branches, columns))
        return LowRank(layer.weight, rows, columns, self.rank, _scale(self.alpha, self.rank), self.branches, random)


@dataclass(frozen=True)
class MatrixProductLoRA:
    """On convolutions, in the factorization of Hu et al.'s own code (loralib): B [out k, rank k] times A [rank k, in k], whose entries
    are read in the order of W's. No smaller convolutions do the same, and the rank of W's change can be rank k."""

    patterns: Sequence[str]
    rank: int
    alpha: float | None = None
    tensors: ClassVar = ("weight",)

    def __post_init__(self) -> None:
        _at_least_one(rank=self.rank)

    def on(self, layer: Layer, random: torch.Generator) -> LowRank:
        if not isinstance(layer, nn.Conv2d) or layer.kernel_size[0] != layer.kernel_size[1]:
            raise ValueError("only the weights of square convolutions can have it.")
        outputs, inputs, k, _ = layer.weight.shape
        _check_rank(self.rank, min(outputs, inputs))
        return LowRank(layer.weight, outputs * k, inputs * k, self.rank * k, _scale(self.alpha, self.rank), 1, random)


def _scale(alpha: float | None, rank: int) -> float:
    return 1.0 if alpha is None else alpha / rank


def _at_least_one(**settings: int) -> None:
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")


def _check_rank(rank: int, most: int) -> None:
    if rank > most:
        raise ValueError(f"rank={rank} is more than the {most} that the weight itself can have; choose a smaller one.")
