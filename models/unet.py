"""The UNet of Ho et al. 2020, appendix B. Its module names are the interface of transfer:
`down.1.attention.0.qkv` is the first attention of level 1 on the way down; level 0 has the full
resolution on both ways, and up.0 runs last."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.layers import (
    NEAR_ZERO,
    NORM_EPS,
    Attention,
    AugmentationEmbedding,
    JoiningNorm,
    Resample,
    ResBlock,
    Sum,
    conv,
    double,
    linear,
    pad_end,
    same_size,
    timestep_embedding,
)


class Level(nn.Module):
    """The blocks of one resolution, each with its attention or none, and the change to the next
    resolution."""

    block: Any
    attention: Any

    def __init__(self, block: list[nn.Module], attention: list[nn.Module]):
        super().__init__()
        self.block, self.attention = nn.ModuleList(block), nn.ModuleList(attention)


class UNet(nn.Module):
    """(x [B, in_channels, H, W], timestep [B] in 0..T-1, condition) -> [B, out_channels, H, W].

    H and W must be divisible by 2^(levels - 1); they need not be equal. The constructor is the
    skeleton of other UNets too: a subclass says with the small methods what it is filled with.

    Args:
        channels: width of level 0.
        multipliers: width of each level over it.
        blocks: residual blocks a level (one more on the way up).
        attention_levels: levels with attention after each block; the middle always has it.
        heads: of attention.
        classes: number of labels, 0 for none; label `classes` is the null class, and what a missing
            condition means.
        augmentations: numbers that tell what was done to an image (data.augmentation), 0 for none;
            zeros, and what a missing condition means, are an image as it is.
    Raises:
        ValueError: where the settings cannot go together.
    Source:
        Ho et al. 2020, appendix B.
    """

    EPS = NORM_EPS  # of every norm
    block_type: type[ResBlock] = ResBlock  # of every residual block
    down: Any  # a list of Level
    up: Any

    def __init__(
        self,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        attention_levels: Sequence[int],
        in_channels: int = 3,
        out_channels: int = 3,
        dropout: float = 0.0,
        heads: int = 1,
        groups: int = 32,
        classes: int = 0,
        gradient_checkpointing: bool = False,
        augmentations: int = 0,
    ):
        super().__init__()
        self.channels, self.classes, self.dropout = channels, classes, dropout
        self.heads, self.groups = heads, groups
        self.gradient_checkpointing = gradient_checkpointing
        widths = [int(channels * m) for m in multipliers]
        self._check(widths, blocks, attention_levels)
        last = len(widths) - 1
        self.multiple = 2**last
        self.time_mlp = nn.Sequential(
            linear(channels, 4 * channels), nn.SiLU(), linear(4 * channels, 4 * channels)
        )
        if classes:
            self.class_embedding = nn.Embedding(classes + 1, 4 * channels)
        self.augmentation_embedding = (
            AugmentationEmbedding(augmentations, channels) if augmentations else None
        )
        width = self.first_width(widths)
        self.conv_in = conv(in_channels, width, 3)
        skips, self.down = [width], nn.ModuleList()
        for k, target in enumerate(widths):
            inputs = [width] + [target] * (blocks - 1)
            level = self.level(inputs, target, k in attention_levels)
            skips += [target] * blocks
            if k < last:
                level.downsample = self.downsample(target)
                skips.append(target)
            self.down.append(level)
            width = target
        self.mid = Level(
            [self.res_block(width, width), self.res_block(width, width)], [self.attention(width)]
        )
        self.up = nn.ModuleList()
        for k in range(last, -1, -1):
            target = widths[k]
            inputs = [w + skips.pop() for w in [width] + [target] * blocks]
            level = self.level(inputs, target, k in attention_levels)
            if k:
                level.upsample = self.upsample(target)
            self.up.insert(0, level)
            width = target
        self.norm_out = JoiningNorm(groups, width, self.EPS)
        self.conv_out = conv(width, out_channels, 3, scale=NEAR_ZERO)
        # as they run; no second name for any of them
        self.res_blocks = tuple(
            module
            for part in [*self.down, self.mid, *reversed(self.up)]
            for module in part.modules()
            if isinstance(module, ResBlock)
        )

    def level(self, inputs: list[int], width: int, attends: bool) -> Level:
        """With a block for each width that comes in."""
        attention = self.attention if attends else nn.Identity
        return Level([self.res_block(w, width) for w in inputs], [attention(width) for _ in inputs])

    def first_width(self, widths: Sequence[int]) -> int:
        """Of conv_in."""
        return self.channels

    def res_block(
        self, width_in: int, width_out: int, resample: Callable[[Tensor], Tensor] = same_size
    ) -> nn.Module:
        return self.block_type(
            width_in, width_out, 4 * self.channels, self.groups, self.dropout, self.EPS, resample
        )

    def heads_of(self, width: int) -> int:
        """Attention heads at a width."""
        if width % self.heads:
            raise ValueError(
                f"the width of every attention must be divisible by heads={self.heads}, and "
                f"{width} is not."
            )
        return self.heads

    def attention(self, width: int) -> nn.Module:
        return Attention(width, self.groups, self.heads_of(width), self.EPS)

    def downsample(self, width: int) -> nn.Module:
        return Resample(conv(width, width, 3, stride=2, padding=0), pad_end)

    def upsample(self, width: int) -> nn.Module:
        return Resample(conv(width, width, 3), double)

    def embed_timestep(self, timestep: Tensor) -> Tensor:
        """[B] -> [B, channels]"""
        return timestep_embedding(timestep, self.channels)

    def _check(self, widths: Sequence[int], blocks: int, attention_levels: Sequence[int]) -> None:
        if not widths or blocks < 1:
            raise ValueError(
                "multipliers must have at least one level and blocks be at least one block a level."
            )
        for width in [self.first_width(widths), *widths]:
            if width % self.groups:
                raise ValueError(
                    f"every width must be divisible by groups={self.groups}, and {width} is not: "
                    "change channels or groups."
                )
        for level in attention_levels:
            if not 0 <= level < len(widths):
                raise ValueError(
                    f"attention_levels: there is no level {level}, they are 0 to {len(widths) - 1}."
                )
        if self.channels % 2 or self.channels < 4:
            raise ValueError(
                f"channels must be even and at least 4 for the time embedding, not {self.channels}."
            )

    def time_terms(self, timestep: Tensor, condition: dict[str, Tensor]) -> list[Tensor]:
        """What the timestep, the augmentation and the class add in each residual block: [B,
        TIME_WIDTHS * C] each, in the order in which the blocks run."""
        time = self.embed_timestep(timestep).to(self.conv_in.weight.dtype)
        if self.augmentation_embedding is not None and "augmentation" in condition:
            time = time + self.augmentation_embedding(condition["augmentation"].to(time.dtype))
        time = self.time_mlp(time)
        if self.classes:
            label = condition.get("label")
            if label is None:
                label = torch.full_like(timestep, self.classes, dtype=torch.long)
            time = time + self.class_embedding(label)
        time = F.silu(time)  # [B, 4 channels]
        return [block.time_proj(time) for block in self.res_blocks]

    def forward(self, x: Tensor, timestep: Tensor, condition: dict[str, Tensor]) -> Tensor:
        H, W = x.shape[-2:]
        if H % self.multiple or W % self.multiple:
            raise ValueError(
                f"images of {H}x{W}: with {len(self.down)} levels, height and width must be "
                f"divisible by {self.multiple}; set data.size to such a size."
            )
        return self.run(x, self.time_terms(timestep, condition))

    def run(self, x: Tensor, time_terms: Sequence[Tensor]) -> Tensor:
        """The network once its time_terms are known, which depend on the timestep and the class
        alone."""
        time = dict(zip(self.res_blocks, time_terms, strict=True))
        h = Sum(self.conv_in(x.contiguous(memory_format=torch.channels_last)))
        skips = []
        for level in self.down:
            for block, attention in zip(level.block, level.attention):
                x, h = self._unit(block, attention, h, time[block])
                skips.append(x)
            if hasattr(level, "downsample"):
                x, h = self._unit(level.downsample, same_size, h, time.get(level.downsample))
                skips.append(x)
        first, last = self.mid.block
        x, h = self._unit(first, self.mid.attention[0], h, time[first])
        skips.append(x)
        _, h = last(h, time[last])
        for level in reversed(self.up):
            for block, attention in zip(level.block, level.attention):
                _, h = self._unit(block, attention, h, time[block], skips.pop())
            if hasattr(level, "upsample"):
                _, h = self._unit(level.upsample, same_size, h, time.get(level.upsample))
        _, h = self.norm_out(h)
        return self.conv_out(h)

    def _unit(
        self, block: nn.Module, attention: Any, h: Sum, *inputs: Tensor | None
    ) -> tuple[Tensor, Sum]:
        """(what came in, what goes out) of a block and its attention."""

        def of_tensors(x, *inputs):
            _, h = block(Sum(x), *inputs)
            return attention(h).total()

        if self.gradient_checkpointing and torch.is_grad_enabled():
            x = h.total()  # between checkpoints stands one tensor
            return x, Sum(checkpoint(of_tensors, x, *inputs, use_reentrant=False))
        x, h = block(h, *inputs)
        return x, attention(h)
