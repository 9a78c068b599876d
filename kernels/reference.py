"""What every fused operation computes, in plain torch: the specification, the judge and the path of
a CPU.

Images are [N, C, H, W], in channels_last or not. Adaptive terms are [N, C] (or [1, C], the same for
all images).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Act = Literal["silu", "identity"]


def group_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    act: Act = "silu",
    row_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """dropout(act(norm(x + row_bias) (1 + scale) + shift)), norm with weight and bias (Wu and He
    2018, eq. 1 to 6).

    row_bias, scale, shift: [N, C]; scale and shift come together. dropout: the share of zeros,
    drawn by keep() from seed, an int64 tensor of one element on x's device.
    """
    if row_bias is not None:
        x = x + per_channel(row_bias)
    trains = torch.is_grad_enabled() and (weight.requires_grad or bias.requires_grad)
    if trains and x.device.type == "cpu" and not x.requires_grad:
        # torch's CPU kernel (2.13) ends the process if the weights need a gradient, a channels_last
        # input does not
        x = x.detach().requires_grad_()
    y = F.group_norm(x, groups, weight, bias, eps)
    if scale is not None and shift is not None:
        y = y * (1 + per_channel(scale)) + per_channel(shift)
    if act == "silu":
        y = F.silu(y, inplace=not y.requires_grad)
    if not dropout:
        return y
    assert seed is not None
    return y * keep(y, dropout, seed).div_(kept_share(dropout))


def add_group_norm_act(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    act: Act = "silu",
    row_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(sum, y): sum = residual + x + row_bias, y = group_norm_act(sum)."""
    total = residual + x
    if row_bias is not None:
        total = total + per_channel(row_bias)
    return total, group_norm_act(total, weight, bias, groups, eps, act)


def group_norm_act_cat(
    x: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    act: Act = "silu",
    residual: Tensor | None = None,
    row_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(cat, y): cat = [x (+ residual + row_bias), skip] along the channels, y =
    group_norm_act(cat). A group may lie on both sides. residual and row_bias have x's channels."""
    if residual is not None:
        x = residual + x
    if row_bias is not None:
        x = x + per_channel(row_bias)
    cat = torch.cat([x, skip], dim=1)
    return cat, group_norm_act(cat, weight, bias, groups, eps, act)


def attention(qkv: Tensor, heads: int) -> Tensor:
    """[B, T, 3 C] -> [B, T, C]: softmax(q k^T / sqrt(d)) v in each head (Vaswani et al. 2017, eq.
    1). The last axis of qkv is (q, k, v), then the head, then d = C / heads."""
    # [B, heads, T, d]
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def per_channel(values: Tensor) -> Tensor:
    return values[:, :, None, None]


# Philox's multipliers and, from Weyl sequences, what its key grows by in a round
M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
LOW = 0xFFFFFFFF
Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). Words of
    32 bits, in int64 tensors."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = M0 * c0, M1 * c2  # 64 bits, right whatever their sign
        # of b and a, only the low 32 count
        c0, c1, c2, c3 = ((b >> 32) ^ c1 ^ k0) & LOW, b, ((a >> 32) ^ c3 ^ k1) & LOW, a
        k0, k1 = k0 + W0 & LOW, k1 + W1 & LOW
    return c0, c1 & LOW, c2, c3 & LOW


def threshold(dropout: float) -> int:
    """Half a word below it is a zero: dropout in steps of 2^-16."""
    return min(round(dropout * 2**16), 2**16 - 1)


def kept_share(dropout: float) -> float:
    """The probability that an element is kept, which is what it is divided by: so the mean
    stays."""
    return 1 - threshold(dropout) / 2**16


def keep(like: Tensor, dropout: float, seed: Tensor) -> Tensor:
    """[N, C, H, W] in like's type and memory format: 0 with probability dropout, else 1. The
    elements (n, c, hw) of eight pixels in a row, hw // 8 = k, are the halves, low before high, of
    the four words of Philox at counter (k C + c, n, 0, 0) under the 64 bits of seed: the mask
    depends on no layout and no tile."""
    N, C, H, W = like.shape
    eights = -(-H * W // 8)
    first = torch.arange(eights * C, device=like.device)
    image = torch.arange(N, device=like.device)[:, None]
    zero = torch.zeros_like(image)
    words = philox((first, image, zero, zero), (seed & LOW, seed >> 32 & LOW))  # [N, eights C] each
    halves = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], dim=1)
    kept = halves.view(N, 8, eights, C).transpose(1, 2) >= threshold(dropout)  # [N, eights, 8, C]
    mask = kept.flatten(1, 2)[:, : H * W].reshape(N, H, W, C).permute(0, 3, 1, 2)
    return torch.empty_like(like).copy_(mask)
