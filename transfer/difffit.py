"""The scales of DiffFit (Xie et al. 2023): one g per channel of a residual branch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from diffusion.schedule import expand
from transfer.adapters import Injected, Layer, matrix_shape


class Scale(Injected):
    """g W, by output row; the same g on the bias. `weight.scale.g`, which the bias shares, so that
    it is listed once."""

    kind = "scale"
    decays = False  # g = 1 leaves the branch as it is, and g = 0 takes it out

    def __init__(self, bias: Tensor):
        super().__init__()
        self.g = nn.Parameter(torch.ones_like(bias))

    def forward(self, tensor: Tensor) -> Tensor:
        return tensor * expand(self.g, tensor)


@dataclass(frozen=True)
class BranchScale:
    """x + g F(x) with g = 1 at the start: F ends in a layer with a bias, whose outputs g
    multiplies.

    Args:
        patterns: globs on the names of these last layers, `*.conv2` and `*.attention.*.out`.
    """

    patterns: Sequence[str]
    tensors: ClassVar = ("weight", "bias")

    def on(self, layer: Layer, random: torch.Generator) -> Scale:
        matrix_shape(layer)
        if layer.bias is None:
            raise ValueError("it has no bias, which g multiplies too.")
        return Scale(layer.bias)
