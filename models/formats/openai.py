"""The published checkpoints of improved-diffusion and guided-diffusion (ADM): bare state dicts,
under the names of our ADMUNet.

Their network is three lists of sequences, input_blocks, middle_block and output_blocks, numbered in
the order in which they run; the table of names follows from walking our network in that order. Two
things differ beside the names: an attention's qkv has its rows ordered (heads, 3, d) unless it is
of the new attention order, which is ours, (3, heads, d); and our table of classes ends with a null
class.
"""

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.adm import ADMUNet
from models.formats.misfit import State, Tensors, check_fit, whole
from models.layers import Attention
from models.unet import UNet
from runtime.errors import UserError

ENDS = {
    "time_mlp.0": "time_embed.0",
    "time_mlp.2": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "norm_out": "out.0",
    "conv_out": "out.2",
}
INSIDE = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
    "norm": "norm",
    "qkv": "qkv",
    "out": "proj_out",
    "conv": "conv",
}
UNSEEN = "model.heads or model.head_channels, model.timestep_scale and the attention order"


def is_openai(state: State) -> bool:
    """Whether the names are those of improved-diffusion and guided-diffusion."""
    return {"time_embed.0.weight", "input_blocks.0.0.weight"} <= state.keys()


def from_openai(state: State, network: UNet, new_attention_order: bool = False) -> Tensors:
    """Their state dict as one of network, complete and of its shapes. The null class, which theirs
    do not have, becomes the mean of the others.

    What no shape shows is not checked: heads or head_channels, timestep_scale, new_attention_order.

    Args:
        network: an ADMUNet with the checkpoint's settings.
        new_attention_order: the flag use_new_attention_order of guided-diffusion; of what is
            published, 64x64_diffusion.pt has it.
    Raises:
        UserError: with the settings that differ.
    """
    if not isinstance(network, ADMUNet):
        raise UserError(
            "a checkpoint of improved-diffusion or guided-diffusion needs models.adm.ADMUNet, "
            "whose layers differ from Ho's also where the shapes agree: set model to one of "
            "conf/model/improved_*.yaml and adm_*.yaml."
        )
    if not any(name.startswith("output_blocks.") for name in state):
        raise UserError(
            "the checkpoint has no output_blocks: it is a classifier (as 64x64_classifier.pt "
            "is) and not a diffusion model."
        )
    check_fit(state, network, partial(to_openai, network=network), settings, UNSEEN)
    converted = {}
    for ours, theirs in names(network).items():
        tensor = state[theirs]
        if ours == "class_embedding.weight":
            tensor = torch.cat([tensor, tensor.mean(0, keepdim=True)])
        if ".qkv." in ours and not new_attention_order:
            tensor = _swap(tensor, _heads(ours, network), 3)
        # their attention is of Conv1d with kernel 1, ours of Linear
        converted[ours] = tensor.squeeze(-1) if tensor.ndim == 3 else tensor
    return converted


def to_openai(state: State, network: UNet, new_attention_order: bool = False) -> Tensors:
    """The inverse: network's state dict (or gradients by name) under their names, in their shapes,
    without the null class."""
    converted = {}
    for ours, theirs in names(network).items():
        tensor = state[ours][:-1] if ours == "class_embedding.weight" else state[ours]
        if ".qkv." in ours and not new_attention_order:
            tensor = _swap(tensor, 3, _heads(ours, network))
        linear = ".attention." in ours and tensor.ndim == 2
        converted[theirs] = tensor.unsqueeze(-1) if linear else tensor
    return converted


def names(network: UNet) -> dict[str, str]:
    """Our parameters' names -> theirs."""
    places = {
        module: f"{sequence}.{position}"
        for sequence, modules in _sequences(network).items()
        for position, module in enumerate(modules)
    }
    table = {}
    for name, _ in network.named_parameters():
        layer, _, leaf = name.rpartition(".")
        module, _, inner = layer.rpartition(".")
        if layer in ENDS:
            theirs = ENDS[layer]
        elif layer.endswith("downsample.conv"):
            theirs = f"{places[module]}.op"
        else:
            theirs = f"{places[module]}.{INSIDE[inner]}"
        table[name] = f"{theirs}.{leaf}"
    return table


def _sequences(network: UNet) -> dict[str, list[str]]:
    """Their sequence -> our modules in it, in the order in which they run."""
    down, up = [], []
    for index, level in enumerate(network.down):
        down += _units(f"down.{index}", level)
        if hasattr(level, "downsample"):
            down.append([f"down.{index}.downsample"])
    first, last = _units("mid", network.mid)
    for index, level in reversed(list(enumerate(network.up))):
        up += _units(f"up.{index}", level)
        if hasattr(level, "upsample"):
            up[-1].append(f"up.{index}.upsample")
    inputs = {f"input_blocks.{n}": unit for n, unit in enumerate(down, 1)}  # 0 is conv_in
    outputs = {f"output_blocks.{n}": unit for n, unit in enumerate(up)}
    return inputs | {"middle_block": first + last} | outputs


def _units(prefix: str, level: Any) -> list[list[str]]:
    """The name of each block of a level, with that of its attention where it has one."""
    units = [[f"{prefix}.block.{k}"] for k in range(len(level.block))]
    for k, attention in enumerate(level.attention):
        if isinstance(attention, Attention):
            units[k].append(f"{prefix}.attention.{k}")
    return units


def _swap(tensor: Tensor, a: int, b: int) -> Tensor:
    """Rows ordered (a, b, d) -> rows ordered (b, a, d)."""
    return tensor.unflatten(0, (a, b, -1)).transpose(0, 1).flatten(0, 2)


def _heads(name: str, network: UNet) -> Any:
    return network.get_submodule(name.partition(".qkv.")[0]).heads


# --- what does not fit ----------------------------------------------------------------------------


def settings(state: State) -> dict[str, Any]:
    """The arguments of ADMUNet that an OpenAI state dict shows, by name."""
    total = len({name.split(".")[1] for name in state if name.startswith("output_blocks.")})
    # what doubles the size after an output block: a convolution, or a residual block that is not
    # the first
    doubles = re.compile(r"output_blocks\.(\d+)\.[12]\.(conv|in_layers\.0)\.weight")
    upsamples = {int(found[1]): found[2] for found in map(doubles.fullmatch, state) if found}
    a_level = min(upsamples, default=total - 1) + 1  # residual blocks of a level on the way up
    first = range(0, total, a_level)[::-1]  # those of level 0, 1, ...
    channels = state["time_embed.0.weight"].shape[1]
    widths = [len(state[f"output_blocks.{n}.0.out_layers.3.weight"]) for n in first]
    attention = [f"output_blocks.{n}.1.qkv.weight" in state for n in first]
    return {
        "channels": channels,
        "multipliers": [whole(width / channels) for width in widths],
        "blocks": a_level - 1,
        "attention_levels": [level for level, has in enumerate(attention) if has],
        "scale_shift": len(state["output_blocks.0.0.emb_layers.1.weight"]) == 2 * widths[-1],
        "resample_blocks": "in_layers.0" in upsamples.values(),
        "classes": len(state.get("label_emb.weight", ())),
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "out_channels": len(state["out.2.weight"]),
    }
