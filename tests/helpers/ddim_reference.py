"""Ho et al. 2020's network as formulas on the names of DDIM's checkpoints (Song et al. 2021),
written independently of models/."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.helpers.adm_reference import Once


def shapes(channels, multipliers, blocks, attention_levels):
    """Their names -> shapes, for RGB."""
    found, time, widths = {}, 4 * channels, [m * channels for m in multipliers]

    def layer(name, *shape):
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    def residual(name, width_in, width):
        layer(f"{name}.norm1", width_in)
        layer(f"{name}.conv1", width, width_in, 3, 3)
        layer(f"{name}.temb_proj", width, time)
        layer(f"{name}.norm2", width)
        layer(f"{name}.conv2", width, width, 3, 3)
        if width_in != width:
            layer(f"{name}.nin_shortcut", width, width_in, 1, 1)

    def attention(name, width):
        layer(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{name}.{part}", width, width, 1, 1)

    layer("temb.dense.0", time, channels)
    layer("temb.dense.1", time, time)
    layer("conv_in", channels, 3, 3, 3)
    before = [channels, *widths]
    for level, width in enumerate(widths):
        for k in range(blocks):
            residual(f"down.{level}.block.{k}", before[level] if k == 0 else width, width)
            if level in attention_levels:
                attention(f"down.{level}.attn.{k}", width)
        if level < len(widths) - 1:
            layer(f"down.{level}.downsample.conv", width, width, 3, 3)
    residual("mid.block_1", widths[-1], widths[-1])
    attention("mid.attn_1", widths[-1])
    residual("mid.block_2", widths[-1], widths[-1])
    below = [*widths[1:], widths[-1]]
    for level, width in enumerate(widths):
        for k in range(blocks + 1):
            residual(
                f"up.{level}.block.{k}",
                (below[level] if k == 0 else width) + (before[level] if k == blocks else width),
                width,
            )
            if level in attention_levels:
                attention(f"up.{level}.attn.{k}", width)
        if level:
            layer(f"up.{level}.upsample.conv", width, width, 3, 3)
    layer("norm_out", widths[0])
    layer("conv_out", 3, widths[0], 3, 3)
    return found


def random_state(configuration):
    """Weights that keep the signal's size, norms about 1, biases 0.3."""
    generator, state = torch.Generator().manual_seed(0), {}
    for name, shape in shapes(**configuration).items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        is_scale = ".norm" in f".{name}" and name.endswith("weight")
        state[name] = (
            noise * noise[0].numel() ** -0.5 if noise.ndim > 1 else 0.3 * noise + float(is_scale)
        )
    return state


def reference(state, x, timestep, blocks):
    """Ho et al. 2020 on their names. Every tensor is used, and none twice."""
    state = Once(state)
    half = state["temb.dense.0.weight"].shape[1] // 2
    angle = timestep.float()[:, None] * torch.exp(
        torch.arange(half, dtype=torch.float32) * -(math.log(10000) / (half - 1))
    )
    time = F.linear(
        torch.cat([angle.sin(), angle.cos()], 1).to(x.dtype), *state.take("temb.dense.0")
    )
    time = F.linear(F.silu(time), *state.take("temb.dense.1"))

    def norm(name, h):
        return F.group_norm(h, 32, *state.take(name), eps=1e-6)

    def residual(name, h):
        skip = (
            F.conv2d(h, *state.take(f"{name}.nin_shortcut"))
            if state.has(f"{name}.nin_shortcut")
            else h
        )
        h = F.conv2d(F.silu(norm(f"{name}.norm1", h)), *state.take(f"{name}.conv1"), padding=1)
        h = h + F.linear(F.silu(time), *state.take(f"{name}.temb_proj"))[:, :, None, None]
        return skip + F.conv2d(
            F.silu(norm(f"{name}.norm2", h)), *state.take(f"{name}.conv2"), padding=1
        )

    def attention(name, h):
        if not state.has(f"{name}.q"):
            return h
        normed = norm(f"{name}.norm", h)
        q, k, v = (F.conv2d(normed, *state.take(f"{name}.{part}")).flatten(2) for part in "qkv")
        weight = (torch.einsum("bdi,bdj->bij", q, k) / math.sqrt(q.shape[1])).softmax(-1)
        return h + F.conv2d(
            torch.einsum("bij,bdj->bdi", weight, v).reshape(h.shape),
            *state.take(f"{name}.proj_out"),
        )

    h = F.conv2d(x, *state.take("conv_in"), padding=1)
    skips, levels = [h], len({name.split(".")[1] for name in state if name.startswith("down.")})
    for level in range(levels):
        for k in range(blocks):
            h = attention(f"down.{level}.attn.{k}", residual(f"down.{level}.block.{k}", h))
            skips.append(h)
        if level < levels - 1:
            h = F.conv2d(
                F.pad(h, (0, 1, 0, 1)), *state.take(f"down.{level}.downsample.conv"), stride=2
            )
            skips.append(h)
    h = residual("mid.block_2", attention("mid.attn_1", residual("mid.block_1", h)))
    for level in reversed(range(levels)):
        for k in range(blocks + 1):
            h = attention(
                f"up.{level}.attn.{k}",
                residual(f"up.{level}.block.{k}", torch.cat([h, skips.pop()], 1)),
            )
        if level:
            h = h.repeat_interleave(2, -1).repeat_interleave(2, -2)
            h = F.conv2d(h, *state.take(f"up.{level}.upsample.conv"), padding=1)
    h = F.conv2d(F.silu(norm("norm_out", h)), *state.take("conv_out"), padding=1)
    assert not state, f"not used: {list(state)}"
    return h
