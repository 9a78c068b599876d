"""The UNet of Ho et al. 2020, appendix B. Its module names are the interface of transfer: `down.1.attention.0.qkv` is the
first attention of level 1 on the way down; level 0 has the full resolution on both ways, and up.0 runs last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.layers import (
    NEAR_ZERO,
    NORM_EPS,
    Attention,
    Downsample,
    GroupNorm,
    ResBlock,
    Upsample,
    conv,
    linear,
    timestep_embedding,
)


class Level(nn.Module):
    """The blocks of one resolution, each with its attention or none, and the change to the next resolution."""

    def __init__(self, block: list[nn.Module], attention: list[nn.Module], **resample: nn.Module):
        super().__init__()
        self.block, self.attention = nn.ModuleList(block), nn.ModuleList(attention)
        for name, module in resample.items():
            self.add_module(name, module)


class UNet(nn.Module):
    """(x [B, in_channels, H, W], timestep [B] in 0..T-1, condition) -> [B, out_channels, H, W].

    channels: width of level 0. multipliers: width of each level over it. blocks: residual blocks a level (one more on the
    way up). attention_levels: levels with attention after each block; the middle always has it. heads: of attention.
    classes: number of labels, 0 for none; label `classes` is the null class, and what a missing condition means.
    H and W must be divisible by 2^(levels - 1); they need not be equal.

    The constructor is the skeleton of other UNets too: a subclass says with the small methods what it is filled with.
    """

    EPS = NORM_EPS  # of every norm

    def __init__(self, channels: int, multipliers: Sequence[int], blocks: int, attention_levels: Sequence[int],
                 in_channels: int = 3, out_channels: int = 3, dropout: float = 0.0, heads: int = 1, groups: int = 32,
                 classes: int = 0, gradient_checkpointing: bool = False):
        super().__init__()
        self.channels, self.classes, self.gradient_checkpointing = channels, classes, gradient_checkpointing
        self.dropout, self.heads, self.groups = dropout, heads, groups
        widths = [int(channels * m) for m in multipliers]
        self._check(widths, blocks, attention_levels)
        self.multiple = 2 ** (len(widths) - 1)

        def attention(level, width):
            return self.attention(width) if level in attention_levels else nn.Identity()

        self.time_mlp = nn.Sequential(linear(channels, 4 * channels), nn.SiLU(), linear(4 * channels, 4 * channels))
        if classes:
            self.class_embedding = nn.Embedding(classes + 1, 4 * channels)
        width = self.first_width(widths)
        self.conv_in = conv(in_channels, width, 3)
        skips, self.down = [width], nn.ModuleList()
        for level, target in enumerate(widths):
            inputs = [width] + [target] * (blocks - 1)
            last = level == len(widths) - 1
            self.down.append(Level([self.res_block(w, target) for w in inputs], [attention(level, target) for _ in inputs],
                                   **({} if last else {"downsample": self.downsample(target)})))
            skips += [target] * (blocks + (not last))
            width = target
        self.mid = Level([self.res_block(width, width), self.res_block(width, width)], [self.attention(width)])
        levels = []
        for level, target in reversed(list(enumerate(widths))):
            inputs = [skips.pop() + (width if k == 0 else target) for k in range(blocks + 1)]
            levels.append(Level([self.res_block(w, target) for w in inputs], [attention(level, target) for _ in inputs],
                                **({"upsample": self.upsample(target)} if level else {})))
            width = target
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = GroupNorm(groups, width, self.EPS)
        self.conv_out = conv(width, out_channels, 3, scale=NEAR_ZERO)

    def first_width(self, widths: Sequence[int]) -> int:
        """Of conv_in."""
        return self.channels

    def res_block(self, width_in: int, width_out: int) -> nn.Module:
        return ResBlock(width_in, width_out, 4 * self.channels, self.groups, self.dropout, self.EPS)

    def heads_of(self, width: int) -> int:
        """Attention heads at a width."""
        if width % self.heads:
            raise ValueError(f"the width of every attention must be divisible by heads={self.heads}, and {width} is not.")
        return self.heads

    def attention(self, width: int) -> nn.Module:
        return Attention(width, self.groups, self.heads_of(width), self.EPS)

    def downsample(self, width: int) -> nn.Module:
        return Downsample(width)

    def upsample(self, width: int) -> nn.Module:
        return Upsample(width)

    def embed_timestep(self, timestep: Tensor) -> Tensor:
        """[B] -> [B, channels]"""
        return timestep_embedding(timestep, self.channels)

    def _check(self, widths: Sequence[int], blocks: int, attention_levels: Sequence[int]) -> None:
        if not widths or blocks < 1:
            raise ValueError("multipliers must have at least one level and blocks be at least one block a level.")
        if bad := [w for w in [self.first_width(widths), *widths] if w % self.groups]:
            raise ValueError(f"every width must be divisible by groups={self.groups}, and {bad[0]} is not: change channels or groups.")
        if bad := [level for level in attention_levels if not 0 <= level < len(widths)]:
            raise ValueError(f"attention_levels: there is no level {bad[0]}, they are 0 to {len(widths) - 1}.")
        if self.channels % 2 or self.channels < 4:
            raise ValueError(f"channels must be even and at least 4 for the time embedding, not {self.channels}.")

    def embed(self, timestep: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """[B, 4 channels]: time, plus the class where there is one."""
        time = self.time_mlp(self.embed_timestep(timestep).to(self.conv_in.weight.dtype))
        if self.classes:
            label = condition.get("label")
            time = time + self.class_embedding(torch.full_like(timestep, self.classes, dtype=torch.long) if label is None else label)
        return F.silu(time)

    def forward(self, x: Tensor, timestep: Tensor, condition: dict[str, Tensor]) -> Tensor:
        if x.shape[-2] % self.multiple or x.shape[-1] % self.multiple:
            raise ValueError(f"images of {x.shape[-2]}x{x.shape[-1]}: with {len(self.down)} levels, height and width must be "
                             f"divisible by {self.multiple}; set data.size to such a size.")
        time = self.embed(timestep, condition)
        h = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for level in self.down:
            for block, attention in zip(level.block, level.attention, strict=True):
                h = self._run(block, attention, h, time)
                skips.append(h)
            if hasattr(level, "downsample"):
                h = self._run(level.downsample, nn.Identity(), h, time)
                skips.append(h)
        h = self._run(self.mid.block[0], self.mid.attention[0], h, time)
        h = self.mid.block[1](h, time)
        for level in reversed(self.up):
            for block, attention in zip(level.block, level.attention, strict=True):
                h = self._run(block, attention, torch.cat([h, skips.pop()], dim=1), time)
            if hasattr(level, "upsample"):
                h = self._run(level.upsample, nn.Identity(), h, time)
        return self.conv_out(F.silu(self.norm_out(h)))

    def _run(self, block: nn.Module, attention: nn.Module, h: Tensor, time: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(lambda h, time: attention(block(h, time)), h, time, use_reentrant=False)
        return attention(block(h, time))
