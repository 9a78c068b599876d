"""New rows of the class table (Gal et al. 2023, textual inversion, whose tokens are classes
here)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from transfer.adapters import Injected, Layer


class Rows(Injected):
    """The table with its first rows taken from a parameter of their own, `weight.rows.new` [count,
    width]."""

    kind = "rows"

    def __init__(self, table: Tensor, count: int):
        super().__init__()
        self.new = nn.Parameter(table.detach()[:count].clone())

    def forward(self, table: Tensor) -> Tensor:
        return torch.cat([self.new, table[len(self.new) :]])


@dataclass(frozen=True)
class NewRows:
    """The first rows of class_embedding train apart from the rest, from where they are.

    Args:
        count: auto for the target's classes.
    Source:
        Gal et al. 2023 (Textual Inversion).
    """

    count: int | Literal["auto"] = "auto"
    patterns: ClassVar = ("class_embedding.weight",)
    tensors: ClassVar = ("weight",)

    def on(self, layer: Layer, random: torch.Generator) -> Rows:
        assert self.count != "auto", "the number of the target's classes stands in its place by now"
        most = len(layer.weight) - 1
        if not 1 <= self.count <= most:
            raise ValueError(
                f"count={self.count} must be auto or 1 to {most}, the rows before that of the null "
                "class."
            )
        return Rows(layer.weight, self.count)
