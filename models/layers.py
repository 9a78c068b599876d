"""The pieces of the UNets: those of Ho et al. 2020, which models/adm.py varies. Images are [B, C,
H, W], best in channels_last."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import dispatch
from kernels.reference import Act

NORM_EPS = 1e-6  # TensorFlow's default, which Ho's weights were trained with
NEAR_ZERO = 1e-10  # Ho's scale for the last layer of a block: it starts as the identity

M = TypeVar("M", bound=nn.Module)


def variance_scaling_(weight: Tensor, scale: float = 1.0) -> Tensor:
    """Uniform with variance scale / mean(fan in, fan out): Ho's initialization of every weight."""
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    limit = math.sqrt(3 * scale / ((fan_in + fan_out) / 2))
    return nn.init.uniform_(weight, -limit, limit)


def conv(in_channels: int, out_channels: int, kernel: int, scale: float = 1.0, **options) -> Conv2d:
    options = {"padding": kernel // 2, **options}
    return _initialized(Conv2d(in_channels, out_channels, kernel, **options), scale)


def linear(in_features: int, out_features: int, scale: float = 1.0) -> nn.Linear:
    return _initialized(Linear(in_features, out_features), scale)


def _initialized(layer, scale):
    if not layer.weight.is_meta:
        variance_scaling_(layer.weight, scale)
        nn.init.zeros_(layer.bias)
    return layer


def timestep_embedding(timestep: Tensor, channels: int) -> Tensor:
    """[B] -> [B, channels]: sines, then cosines, of frequencies 1 .. 1/10000, as in Ho's code."""
    half = channels // 2
    k = torch.arange(half, device=timestep.device, dtype=torch.float32)
    angle = timestep.float()[:, None] * torch.exp(k * (-math.log(10000) / (half - 1)))
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Filled:
    """A layer that is not initialized where there is no memory to fill: a network on the meta
    device takes half the time."""

    weight: Any

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()  # type: ignore[misc]


class Linear(Filled, nn.Linear):
    pass


class Conv2d(Filled, nn.Conv2d):
    """nn.Conv2d that can leave its bias to what comes next."""

    def forward(self, x: Tensor, biased: bool = True) -> Tensor:
        return self._conv_forward(x, self.weight, self.bias if biased else None)


class AugmentationEmbedding(Linear):
    """What was done to an image, added to the embedding of the timestep. It has no bias and starts
    at zero: nothing done adds nothing.

    Source:
        Karras et al. 2022 (EDM), appendix F.2.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class Sum(NamedTuple):
    """x + branch + bias, not added up yet: a fused norm does that on its way. bias: [C]."""

    x: Tensor
    branch: Tensor | None = None
    bias: Tensor | None = None

    # no property: torch.compile before 2.13 may not trace those of a tuple
    def total(self) -> Tensor:
        total = self.x if self.branch is None else self.x + self.branch
        # as autocast's convolution casts it
        return total if self.bias is None else total + self.bias.to(total.dtype)[:, None, None]


class GroupNorm(Filled, nn.GroupNorm):
    """Group norm with what follows it, as one operation of kernels.dispatch.

    Args:
        eps: Ho's unless told.
        dropout: in [0, 1).
    """

    def __init__(
        self,
        groups: int,
        channels: int,
        eps: float = NORM_EPS,
        act: Act = "silu",
        dropout: float = 0.0,
    ):
        super().__init__(groups, channels, eps)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be in [0, 1).")
        self.act, self.dropout = act, dropout

    @property
    def settings(self) -> tuple[Tensor, Tensor, int, float, Act]:
        return self.weight, self.bias, self.num_groups, self.eps, self.act

    def forward(
        self,
        x: Tensor,
        row_bias: Tensor | None = None,
        scale: Tensor | None = None,  # type: ignore[override]
        shift: Tensor | None = None,
    ) -> Tensor:
        """dropout(act(norm(x + row_bias) (1 + scale) + shift)).

        Args:
            row_bias, scale, shift: [B, C] or [1, C].
        """
        dropout = self.dropout if self.training else 0.0
        seed = torch.randint(2**62, (1,), device=x.device) if dropout else None
        return dispatch.group_norm_act(x, *self.settings, row_bias, scale, shift, dropout, seed)


class JoiningNorm(GroupNorm):
    """The same of a sum, beside which comes what a skip connection brings."""

    def forward(self, x: Sum, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(what was joined, its norm)"""
        row_bias = None if x.bias is None else x.bias[None]
        if skip is not None:
            return dispatch.group_norm_act_cat(x.x, skip, *self.settings, x.branch, row_bias)
        if x.branch is not None:
            return dispatch.add_group_norm_act(x.branch, x.x, *self.settings, row_bias)
        total = x.total()
        return total, dispatch.group_norm_act(total, *self.settings)


def added(a: Any, b: Tensor | None) -> Tensor:
    return a if b is None else a + b


def output_of(said: Any) -> Tensor:
    """What a module of these says, as one tensor: of several results it is the last."""
    if isinstance(said, Sum):
        return said.total()
    return said if isinstance(said, Tensor) else output_of(said[-1])


def to_channels_last(module: M, device: torch.device) -> M:
    """The module on the device, its weights in the memory format that convolutions are fastest
    in."""
    return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def same_size(x: Tensor) -> Tensor:
    return x


class Same(nn.Identity):
    """The shortcut of a block that does not change the width."""

    bias = None

    def forward(self, x: Tensor, biased: bool = True) -> Tensor:
        return x


class ResBlock(nn.Module):
    """norm, SiLU, conv, + time, norm, SiLU, dropout, conv, + shortcut.

    Args:
        resample: what changes the size of both branches.
    """

    TIME_WIDTHS = 1  # outputs of time_proj for each channel

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        groups: int,
        dropout: float,
        eps: float = NORM_EPS,
        resample: Callable[[Tensor], Tensor] = same_size,
    ):
        super().__init__()
        self.resample = resample
        self.norm1 = JoiningNorm(groups, in_channels, eps)
        self.conv1 = conv(in_channels, out_channels, 3)
        self.time_proj = linear(time_channels, self.TIME_WIDTHS * out_channels)
        self.norm2 = GroupNorm(groups, out_channels, eps, dropout=dropout)
        self.conv2 = conv(out_channels, out_channels, 3, scale=NEAR_ZERO)
        self.shortcut = (
            Same() if in_channels == out_channels else conv(in_channels, out_channels, 1)
        )

    def forward(self, stream: Sum, time: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Sum]:
        """The block on a stream that is not added up yet.

        Args:
            time: [B, TIME_WIDTHS * C], time_proj of the embedding after its SiLU.
        Returns:
            What came in, what goes out.
        """
        x, h = self.norm1(stream, skip)
        # on a GPU a bias is a pass of its own, which the next norm spares
        biased = not dispatch.fused(x.device)
        h = self.conv1(self.resample(h), biased)
        h = self.conv2(self.norm_with_time(h, time, None if biased else self.conv1.bias), biased)
        way = self.shortcut(self.resample(x), biased)
        return x, Sum(way, h, None if biased else added(self.conv2.bias, self.shortcut.bias))

    def norm_with_time(self, h: Tensor, time: Tensor, bias: Tensor | None) -> Tensor:
        """bias: [C], of conv1, where h lacks it."""
        return self.norm2(h, row_bias=added(time, bias))


class Attention(nn.Module):
    """Self-attention over the pixels of a level: x + out(attention(qkv(norm(x))))."""

    def __init__(self, channels: int, groups: int, heads: int, eps: float = NORM_EPS):
        super().__init__()
        self.heads = heads
        self.norm = JoiningNorm(groups, channels, eps, act="identity")
        self.qkv = linear(channels, 3 * channels)
        self.out = linear(channels, channels, scale=NEAR_ZERO)
        # three square matrices, each with its own fans
        for branch in self.qkv.weight.data.chunk(3):
            variance_scaling_(branch)

    def forward(self, stream: Sum) -> Sum:
        x, h = self.norm(stream)
        B, C, H, W = x.shape
        tokens = h.permute(0, 2, 3, 1).reshape(B, H * W, C)  # a view in channels_last
        h = self.out(dispatch.attention(self.qkv(tokens), self.heads))
        return Sum(x, h.view(B, H, W, C).permute(0, 3, 1, 2))


def halve(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H/2, W/2]: means of 2x2."""
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, 2H, 2W]: nearest neighbours."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def pad_end(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H + 1, W + 1]: zeros at the bottom and the right, as TensorFlow's
    "SAME" adds to even sizes for a stride of 2."""
    return F.pad(x, (0, 1, 0, 1))


class Resample(nn.Module):
    """A change of the size: prepare, then a convolution. The time is not read: it is there for
    residual blocks, which can stand in this place."""

    def __init__(self, layer: Conv2d, prepare: Callable[[Tensor], Tensor] = same_size):
        super().__init__()
        self.conv, self.prepare = layer, prepare

    def forward(self, x: Sum, time: Tensor | None = None) -> tuple[Tensor, Sum]:
        total = x.total()
        return total, Sum(self.conv(self.prepare(total)))
