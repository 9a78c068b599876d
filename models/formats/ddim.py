"""The checkpoints of DDIM's PyTorch code (Song et al. 2021), and of the conversions of Ho's weights
to it, under the names of our UNet.

A training checkpoint is a list [weights, optimizer, epoch, step, average]; the names may begin with
"module.". A converted one is the bare state dict. Theirs is Ho's network with one attention head,
whose q, k, v and output are convolutions of kernel 1.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.adm import ADMUNet
from models.formats.misfit import State, Tensors, check_fit, whole
from models.unet import UNet
from runtime.errors import UserError

RENAMED = {
    "time_mlp.0.": "temb.dense.0.",
    "time_mlp.2.": "temb.dense.1.",
    "mid.block.0.": "mid.block_1.",
    "mid.block.1.": "mid.block_2.",
    "mid.attention.0.": "mid.attn_1.",
    ".attention.": ".attn.",
    ".time_proj.": ".temb_proj.",
    ".shortcut.": ".nin_shortcut.",
    ".out.": ".proj_out.",
}


def is_ddim(checkpoint: Any) -> bool:
    """Whether a loaded file, a list or a state dict, has the names of DDIM's code."""
    return "temb.dense.0.weight" in weights_of(checkpoint, ema=False)


def weights_of(checkpoint: Any, ema: bool = True) -> Tensors:
    """The state dict in a loaded file, without "module."; empty if none.

    Args:
        ema: of a list the average, if it was kept.
    """
    if isinstance(checkpoint, list | tuple) and checkpoint:
        checkpoint = checkpoint[-1 if ema and len(checkpoint) > 4 else 0]
    if not isinstance(checkpoint, Mapping):
        return {}
    return {
        name.removeprefix("module."): tensor
        for name, tensor in checkpoint.items()
        if isinstance(tensor, Tensor)
    }


def from_ddim(checkpoint: Any, network: UNet, ema: bool = True) -> Tensors:
    """A loaded file as a state dict of network, complete and of its shapes.

    Args:
        network: a UNet with the checkpoint's settings.
    Raises:
        UserError: with the settings that differ.
    """
    state = weights_of(checkpoint, ema)
    if isinstance(network, ADMUNet) or network.heads != 1:
        raise UserError(
            "a checkpoint of DDIM's code needs models.unet.UNet with model.heads=1: set model to "
            "ddpm_cifar10, ddpm_celeba64 or ddpm_256."
        )
    if not state:
        raise UserError(
            "not a checkpoint of DDIM's code: neither a state dict nor a list that begins with one."
        )
    check_fit(state, network, to_ddim, settings, "model.dropout")
    return {
        ours: torch.cat([state[name] for name in names(ours)]).reshape(tensor.shape)
        for ours, tensor in network.state_dict().items()
    }


def to_ddim(state: State) -> Tensors:
    """The inverse: a UNet's state dict (or gradients by name) as their bare one."""
    renamed: Tensors = {}
    for ours, tensor in state.items():
        theirs = names(ours)
        if ".attention." in ours and tensor.ndim == 2:  # linear here
            tensor = tensor[:, :, None, None]
        renamed |= zip(theirs, tensor.chunk(len(theirs)), strict=True)
    return renamed


def names(ours: str) -> list[str]:
    """Their names of one tensor of ours: q, k and v of a qkv."""
    for part, theirs in RENAMED.items():
        ours = ours.replace(part, theirs)
    if ".qkv." not in ours:
        return [ours]
    return [ours.replace(".qkv.", f".{letter}.") for letter in "qkv"]


def settings(state: State) -> dict[str, Any]:
    """The arguments of UNet that a state dict of theirs shows, by name."""
    levels = range(len({name.split(".")[1] for name in state if name.startswith("down.")}))
    channels, in_channels = state["conv_in.weight"].shape[:2]
    widths = [len(state[f"down.{level}.block.0.conv1.weight"]) for level in levels]
    return {
        "channels": channels,
        "multipliers": [whole(width / channels) for width in widths],
        "blocks": len({name.split(".")[3] for name in state if name.startswith("down.0.block.")}),
        "attention_levels": [k for k in levels if f"down.{k}.attn.0.norm.weight" in state],
        "classes": max(len(state.get("class_embedding.weight", ())) - 1, 0),
        "in_channels": in_channels,
        "out_channels": len(state["conv_out.weight"]),
    }
