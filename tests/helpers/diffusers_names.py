"""The names of diffusers' UNet2DModel for the weights of our UNet, written independently of the
code under test."""

from __future__ import annotations

from torch import Tensor

RES_BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time_proj": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "shortcut": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "out": "to_out.0"}
TOP = {
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
    "time_mlp.0": "time_embedding.linear_1",
    "time_mlp.2": "time_embedding.linear_2",
}


def to_diffusers(tensors: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Our tensors by name (weights or gradients) under diffusers' names; qkv is cut into its three
    square parts."""
    renamed = {}
    for name, tensor in tensors.items():
        module, leaf = name.rsplit(".", 1)
        if module in TOP:
            renamed[f"{TOP[module]}.{leaf}"] = tensor
            continue
        side, *rest = module.split(".")
        if side == "mid":
            prefix = "mid_block"
        else:
            level = int(rest.pop(0))
            # up_blocks run in order
            prefix = f"down_blocks.{level}" if side == "down" else f"up_blocks.{levels - 1 - level}"
        renamed.update({f"{prefix}.{inner}.{leaf}": part for inner, part in _inner(rest, tensor)})
    return renamed


def _inner(path: list[str], tensor: Tensor) -> list[tuple[str, Tensor]]:
    """The name below a level: its blocks, attentions and resampling."""
    kind, rest = path[0], path[1:]
    if kind in ("downsample", "upsample"):
        return [(f"{kind}rs.0.conv", tensor)]
    if kind == "block":
        return [(f"resnets.{rest[0]}.{RES_BLOCK[rest[1]]}", tensor)]
    prefix = f"attentions.{rest[0]}"
    if rest[1] == "qkv":
        return [
            (f"{prefix}.to_{letter}", part)
            for letter, part in zip("qkv", tensor.chunk(3), strict=True)
        ]
    return [(f"{prefix}.{ATTENTION[rest[1]]}", tensor)]
