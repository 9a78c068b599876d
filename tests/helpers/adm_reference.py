"""The network of improved-diffusion and guided-diffusion (ADM) as formulas on its published names,
written independently of models/.

`shapes` lists the tensors of a configuration, `unet` computes with them; neither knows our modules.
Sources: Nichol and Dhariwal 2021, Dhariwal and Nichol 2021, and the names and the order of the
layers in their code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def shapes(
    channels,
    multipliers,
    blocks,
    attention_levels,
    in_channels=3,
    out_channels=3,
    classes=0,
    scale_shift=True,
    resample_blocks=False,
) -> dict[str, tuple[int, ...]]:
    """Published name -> shape."""
    time, widths = 4 * channels, [int(m * channels) for m in multipliers]
    found = {}

    def layer(name, *shape):
        assert f"{name}.weight" not in found
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    def residual(name, width_in, width):
        layer(f"{name}.in_layers.0", width_in)
        layer(f"{name}.in_layers.2", width, width_in, 3, 3)
        layer(f"{name}.emb_layers.1", (1 + scale_shift) * width, time)
        layer(f"{name}.out_layers.0", width)
        layer(f"{name}.out_layers.3", width, width, 3, 3)
        if width_in != width:
            layer(f"{name}.skip_connection", width, width_in, 1, 1)

    def attention(name, width):
        layer(f"{name}.norm", width)
        layer(f"{name}.qkv", 3 * width, width, 1)
        layer(f"{name}.proj_out", width, width, 1)

    layer("time_embed.0", time, channels)
    layer("time_embed.2", time, time)
    if classes:
        found["label_emb.weight"] = (classes, time)
    layer("input_blocks.0.0", widths[0], in_channels, 3, 3)
    width, n, skips = widths[0], 1, [widths[0]]
    for level, target in enumerate(widths):
        for _ in range(blocks):
            residual(f"input_blocks.{n}.0", width, target)
            if level in attention_levels:
                attention(f"input_blocks.{n}.1", target)
            width, n, skips = target, n + 1, [*skips, target]
        if level < len(widths) - 1:
            if resample_blocks:
                residual(f"input_blocks.{n}.0", width, width)
            else:
                layer(f"input_blocks.{n}.0.op", width, width, 3, 3)
            n, skips = n + 1, [*skips, width]
    residual("middle_block.0", width, width)
    attention("middle_block.1", width)
    residual("middle_block.2", width, width)
    n = 0
    for level, target in reversed(list(enumerate(widths))):
        for k in range(blocks + 1):
            residual(f"output_blocks.{n}.0", width + skips.pop(), target)
            place, width = 1, target
            if level in attention_levels:
                attention(f"output_blocks.{n}.1", width)
                place = 2
            if level and k == blocks:
                if resample_blocks:
                    residual(f"output_blocks.{n}.{place}", width, width)
                else:
                    layer(f"output_blocks.{n}.{place}.conv", width, width, 3, 3)
            n += 1
    layer("out.0", width)
    layer("out.2", out_channels, width, 3, 3)
    return found


class Once(dict):
    """A state dict each of whose tensors can be taken once."""

    def take(self, name: str) -> tuple[Tensor, Tensor]:
        return self.pop(f"{name}.weight"), self.pop(f"{name}.bias")

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self


def unet(
    state,
    x: Tensor,
    timestep: Tensor,
    label: Tensor | None = None,
    *,
    blocks: int,
    heads: int | None = None,
    head_channels: int | None = None,
    new_order: bool = False,
    timestep_scale: float = 1.0,
    groups: int = 32,
) -> Tensor:
    """Their network of published names. Asserts that every tensor is used, and none twice."""
    state = Once(state)
    half = state["time_embed.0.weight"].shape[1] // 2
    # float32, as theirs
    frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angle = (timestep.float() * timestep_scale)[:, None] * frequency
    time = torch.cat([torch.cos(angle), torch.sin(angle)], 1).to(x.dtype)
    time = F.linear(
        F.silu(F.linear(time, *state.take("time_embed.0"))), *state.take("time_embed.2")
    )
    if label is not None:
        time = time + state.pop("label_emb.weight")[label]

    def norm(name, h):
        return F.group_norm(h, groups, *state.take(name), eps=1e-5)

    def residual(name, h, resample):
        skip = resample(h)
        h = resample(F.silu(norm(f"{name}.in_layers.0", h)))
        h = F.conv2d(h, *state.take(f"{name}.in_layers.2"), padding=1)
        t = F.linear(F.silu(time), *state.take(f"{name}.emb_layers.1"))[:, :, None, None]
        if t.shape[1] == 2 * h.shape[1]:
            scale, shift = t[:, : h.shape[1]], t[:, h.shape[1] :]
            h = norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = norm(f"{name}.out_layers.0", h + t)
        h = F.conv2d(F.silu(h), *state.take(f"{name}.out_layers.3"), padding=1)
        if state.has(f"{name}.skip_connection"):
            skip = F.conv2d(skip, *state.take(f"{name}.skip_connection"))
        return skip + h

    def attention(name, h):
        batch, width, *size = h.shape
        count = heads or width // head_channels
        d = width // count
        # [B, 3 C, HW]
        qkv = F.conv1d(norm(f"{name}.norm", h.flatten(2)), *state.take(f"{name}.qkv"))
        outputs = []
        for head in range(count):  # rows of head k: 3 d in a row, or d in each of three thirds
            starts = [
                part * width + head * d if new_order else (3 * head + part) * d for part in range(3)
            ]
            q, k, v = (qkv[:, start : start + d] for start in starts)
            weight = torch.einsum("bdi,bdj->bij", q * d**-0.25, k * d**-0.25).softmax(-1)
            outputs.append(torch.einsum("bij,bdj->bdi", weight, v))
        return h + F.conv1d(torch.cat(outputs, 1), *state.take(f"{name}.proj_out")).reshape(
            batch, width, *size
        )

    def keep(h):
        return h

    def halve(h):
        return (
            h[:, :, ::2, ::2] + h[:, :, 1::2, ::2] + h[:, :, ::2, 1::2] + h[:, :, 1::2, 1::2]
        ) / 4

    def double(h):
        return h.repeat_interleave(2, -1).repeat_interleave(2, -2)

    h = F.conv2d(x, *state.take("input_blocks.0.0"), padding=1)
    skips, n = [h], 1
    while any(name.startswith(f"input_blocks.{n}.") for name in state):
        if state.has(f"input_blocks.{n}.0.op"):
            h = F.conv2d(h, *state.take(f"input_blocks.{n}.0.op"), stride=2, padding=1)
        else:
            h = residual(f"input_blocks.{n}.0", h, halve if n % (blocks + 1) == 0 else keep)
        if state.has(f"input_blocks.{n}.1.qkv"):
            h = attention(f"input_blocks.{n}.1", h)
        skips, n = [*skips, h], n + 1
    h = residual("middle_block.0", h, keep)
    h = attention("middle_block.1", h)
    h = residual("middle_block.2", h, keep)
    for n in range(len(skips)):
        h = residual(f"output_blocks.{n}.0", torch.cat([h, skips.pop()], 1), keep)
        if state.has(f"output_blocks.{n}.1.qkv"):
            h = attention(f"output_blocks.{n}.1", h)
        for k in (1, 2):
            if state.has(f"output_blocks.{n}.{k}.conv"):
                h = F.conv2d(double(h), *state.take(f"output_blocks.{n}.{k}.conv"), padding=1)
            elif state.has(f"output_blocks.{n}.{k}.in_layers.0"):
                h = residual(f"output_blocks.{n}.{k}", h, double)
    h = F.conv2d(F.silu(norm("out.0", h)), *state.take("out.2"), padding=1)
    assert not state, f"not used: {list(state)}"
    return h
