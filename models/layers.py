"""The pieces of the UNets: those of Ho et al. 2020, which models/adm.py varies. Images are [B, C, H, W], best in channels_last."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6  # TensorFlow's default, which Ho's weights were trained with
NEAR_ZERO = 1e-10  # Ho's scale for the last layer of a block: it starts as the identity


def variance_scaling_(weight: Tensor, scale: float = 1.0) -> Tensor:
    """Uniform with variance scale / mean(fan in, fan out): Ho's initialization of every weight."""
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    limit = math.sqrt(3 * scale / ((fan_in + fan_out) / 2))
    return nn.init.uniform_(weight, -limit, limit)


def conv(in_channels: int, out_channels: int, kernel: int, scale: float = 1.0, **options) -> nn.Conv2d:
    return _initialized(nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, **options), scale)


def linear(in_features: int, out_features: int, scale: float = 1.0) -> nn.Linear:
    return _initialized(nn.Linear(in_features, out_features), scale)


def _initialized(layer, scale):
    variance_scaling_(layer.weight, scale)
    nn.init.zeros_(layer.bias)
    return layer


def timestep_embedding(timestep: Tensor, channels: int) -> Tensor:
    """[B] -> [B, channels]: sines, then cosines, of frequencies 1 .. 1/10000, as in Ho's code."""
    half = channels // 2
    frequency = torch.exp(torch.arange(half, device=timestep.device, dtype=torch.float32) * (-math.log(10000) / (half - 1)))
    angle = timestep.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm, with Ho's eps unless told, and safe where what lies below is frozen: torch's CPU kernel (2.13) ends the process with a
    segmentation fault if the weights need a gradient, a channels_last input does not."""

    def __init__(self, groups: int, channels: int, eps: float = NORM_EPS):
        super().__init__(groups, channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        trains = torch.is_grad_enabled() and (self.weight.requires_grad or self.bias.requires_grad)
        if trains and x.device.type == "cpu" and not x.requires_grad:
            x = x.detach().requires_grad_()
        return super().forward(x)


def same_size(x: Tensor) -> Tensor:
    return x


class ResBlock(nn.Module):
    """norm, SiLU, conv, + time, norm, SiLU, dropout, conv, + shortcut. resample: what changes the size of both branches."""

    TIME_WIDTHS = 1  # outputs of time_proj for each channel

    def __init__(self, in_channels: int, out_channels: int, time_channels: int, groups: int, dropout: float, eps: float = NORM_EPS,
                 resample: Callable[[Tensor], Tensor] = same_size):
        super().__init__()
        self.resample = resample
        self.norm1 = GroupNorm(groups, in_channels, eps)
        self.conv1 = conv(in_channels, out_channels, 3)
        self.time_proj = linear(time_channels, self.TIME_WIDTHS * out_channels)
        self.norm2 = GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(out_channels, out_channels, 3, scale=NEAR_ZERO)
        self.shortcut = nn.Identity() if in_channels == out_channels else conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """time: [B, time_channels], after its SiLU, which all blocks share."""
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        h = self.norm_with_time(h, self.time_proj(time)[:, :, None, None])
        h = self.conv2(self.dropout(F.silu(h)))
        return self.shortcut(self.resample(x)) + h

    def norm_with_time(self, h: Tensor, time: Tensor) -> Tensor:
        """time: [B, TIME_WIDTHS * C, 1, 1]."""
        return self.norm2(h + time)


class Attention(nn.Module):
    """Self-attention over the pixels of a level: x + out(attention(qkv(norm(x))))."""

    def __init__(self, channels: int, groups: int, heads: int, eps: float = NORM_EPS):
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(groups, channels, eps)
        self.qkv = linear(channels, 3 * channels)
        self.out = linear(channels, channels, scale=NEAR_ZERO)
        for branch in self.qkv.weight.data.chunk(3):  # three square matrices, each with its own fans
            variance_scaling_(branch)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(B, H * W, C)  # a view in channels_last
        q, k, v = self.qkv(tokens).view(B, H * W, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)  # [B, heads, HW, d]
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, H * W, C)
        return x + self.out(h).view(B, H, W, C).permute(0, 3, 1, 2)


def halve(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H/2, W/2]: means of 2x2."""
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, 2H, 2W]: nearest neighbours."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Downsample(nn.Module):
    """A convolution of stride 2, padded at the right and the bottom, as TensorFlow's "SAME" does on even sizes. The time is not read:
    it is there for residual blocks, which can stand in this place."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = _initialized(nn.Conv2d(channels, channels, 3, stride=2), 1.0)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbours, then a convolution. The time is not read, as in Downsample."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv(channels, channels, 3)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        return self.conv(double(x))
