"""Low-rank changes of a weight (Hu et al. 2022): W + (alpha / rank) B A, with A at random and B =
0. `weight.lora.down` is A, and `weight.lora.up` is B."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from transfer.adapters import Injected, Layer, matrix_shape


class LowRank(Injected):
    """W + scale (B A), the product viewed in W's shape.

    Args:
        branches: W is a stack of so many matrices, each with its own B [m/n, r] and A [r, columns];
            they lie stacked in up [m, r] and down [n r, columns].
    """

    kind = "lora"

    def __init__(
        self, weight: Tensor, rank: int, scale: float, branches: int, random: torch.Generator
    ):
        super().__init__()
        self.scale, self.branches = scale, branches
        down = torch.empty(branches * rank, weight[0].numel(), device="cpu")
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=random)
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))

    def forward(self, weight: Tensor) -> Tensor:
        B, A = (factor.unflatten(0, (self.branches, -1)) for factor in (self.up, self.down))
        return weight + self.scale * (B @ A).view(weight.shape)


@dataclass(frozen=True)
class LoRA:
    """A low-rank change of a linear layer or a convolution. A convolution's goes k x k down to rank
    channels, then 1 x 1 up: the product is B [out, rank] A [rank, in k k] in W's shape.

    Args:
        alpha: null for rank.
        branches: how many matrices a weight stacks; 3 gives q, k and v of a packed qkv one LoRA
            each.
    Source:
        Hu et al. 2022; on convolutions the factorization of LoCon (Yeh et al. 2024, LyCORIS).
    """

    patterns: Sequence[str]
    rank: int
    alpha: float | None = None
    branches: int = 1
    tensors: ClassVar = ("weight",)

    def on(self, layer: Layer, random: torch.Generator) -> LowRank:
        most = min(matrix_shape(layer, self.branches))
        if not 1 <= self.rank <= most:
            raise ValueError(f"rank={self.rank} must be 1 to {most}, which the weight itself has.")
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        return LowRank(layer.weight, self.rank, scale, self.branches, random)
