"""Shifts of singular values (Han et al. 2023, SVDiff)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from transfer.adapters import Injected, Layer, matrix_shape


class Spectrum(Injected):
    """U diag(relu(S + d)) V^T for W = U diag(S) V^T, written W + U diag(relu(S + d) - S) V^T, which
    is W to the bit at d = 0; and as S >= 0, relu(S + d) - S = max(d, -S), which cancels no digits.
    `weight.spectral.shift` is d, [branches, rank].

    U, S and V follow from W, which must stay frozen; they are not stored. They are computed in
    float64: where two singular values are close, their vectors are known only to rounding / gap,
    and a shift trained with one pair would be applied to another where float32 is factored by other
    hardware. Measured on 512 x 4608: 0.8 s, against 0.55 s in float32.
    """

    kind = "spectral"
    U: Tensor
    S: Tensor
    Vh: Tensor
    frozen_base = True

    def __init__(self, layer: Layer, branches: int):
        super().__init__()
        self.branches, self._factored = branches, ""  # the digest of the weight that was factored
        rows, columns = matrix_shape(layer, branches)
        rank, weight = min(rows, columns), layer.weight.detach()
        for name, shape in {"U": (rows, rank), "S": (rank,), "Vh": (rank, columns)}.items():
            self.register_buffer(name, weight.new_empty(branches, *shape), persistent=False)
        self.shift = nn.Parameter(weight.new_zeros(branches, rank))
        self.follow(weight)

    def forward(self, weight: Tensor) -> Tensor:
        change = torch.maximum(self.shift, -self.S)
        return weight + (self.U * change[:, None, :] @ self.Vh).view(weight.shape)

    @torch.no_grad()
    def follow(self, weight: Tensor) -> None:
        if weight.is_meta:
            return
        weight = weight.detach().cpu().contiguous()
        digest = hashlib.sha256(weight.numpy().data).hexdigest()
        if digest != self._factored:
            matrices = weight.double().view(self.branches, -1, weight[0].numel())
            factors = torch.linalg.svd(matrices, full_matrices=False)
            for own, new in zip((self.U, self.S, self.Vh), factors, strict=True):
                own.copy_(new)
            self._factored = digest


@dataclass(frozen=True)
class SpectralShift:
    """On linear layers and convolutions, these flattened to [out, in k k]. What the paper trains of
    one-dimensional weights, a rule trains.

    Args:
        branches: how many matrices a weight stacks; 3 factors q, k and v of a packed qkv apart, as
            where they are stored apart.
    Source:
        Han et al. 2023 (SVDiff).
    """

    patterns: Sequence[str]
    branches: int = 1
    tensors: ClassVar = ("weight",)
    frozen_base: ClassVar = Spectrum.frozen_base

    def on(self, layer: Layer, random: torch.Generator) -> Spectrum:
        return Spectrum(layer, self.branches)
