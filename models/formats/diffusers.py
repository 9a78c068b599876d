"""diffusers' format of an unconditional pipeline: the configs of UNet2DModel and of its schedulers
as ours, and the weights under the names of our networks, both ways. diffusers itself is not needed.

A folder is a pipeline (model_index.json, unet/, scheduler/), the older flat layout of
google/ddpm-*, or a UNet alone. Its JSON is foreign input: every key of the UNet's config either
means exactly one of our networks or is refused by name.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from models.formats.diffusers_scheduler import HO, Node, read_scheduler
from models.unet import UNet
from runtime.build import check_arguments
from runtime.errors import UserError

INDEX, UNET, SCHEDULER, WEIGHTS = (
    "model_index.json",
    "config.json",
    "scheduler_config.json",
    "diffusion_pytorch_model",
)
log = logging.getLogger(__name__)


# --- the folder -----------------------------------------------------------------------------------


def is_folder(path: Path) -> bool:
    return any((path / name).is_file() for name in (INDEX, f"unet/{UNET}", UNET))


def read_folder(path: Path) -> tuple[dict[str, Any], Path]:
    """The sections of our config that the folder says (model, schedule, parameterization, variance,
    data.size and data.channels), and its file of weights. Raises UserError where it is not exactly
    a network and a schedule of ours."""
    if (path / INDEX).is_file():
        _check_components(path / INDEX)
    unet_folder = path / "unet" if (path / "unet" / UNET).is_file() else path
    unet, where = _unet_config(unet_folder / UNET), str(unet_folder / UNET)
    places = [
        p
        for p in (
            path / SCHEDULER,
            path / "scheduler" / SCHEDULER,
            unet_folder.parent / "scheduler" / SCHEDULER,
        )
        if p.is_file()
    ]
    if places:
        sections = read_scheduler(_json(places[0]), str(places[0]))
    else:
        sections = HO
        log.warning(
            "%s: no %s, so the schedule is taken to be that of Ho et al. 2020: linear betas from "
            "0.0001 to 0.02, T = 1000, predicting the noise, variance fixed_small.",
            path,
            SCHEDULER,
        )
    outputs = 2 if sections["variance"]["_target_"].endswith("LearnedRange") else 1
    if unet.out_channels != outputs * unet.in_channels:
        _refuse(
            where,
            "out_channels",
            unet.out_channels,
            f"the image has in_channels={unet.in_channels}, and with this scheduler's "
            f"variance_type the network would give {outputs * unet.in_channels} (twice the "
            "image's only with learned_range)",
        )
    data = {"size": _size(unet.sample_size, where), "channels": unet.in_channels}
    return {"model": model_node(unet, where), **sections, "data": data}, _weights_file(unet_folder)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as JSON: {error}. Copy or download the folder again."
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object, and holds a {type(found).__name__}.")
    return found


def _check_components(path: Path) -> None:
    """Parts beside the network and its scheduler mean something else than a network on pixels."""
    parts = {
        key
        for key, value in _json(path).items()
        if isinstance(value, list) and value[:1] not in ([], [None])
    }
    if other := sorted(parts - {"unet", "scheduler"}):
        raise UserError(
            f"{path}: the pipeline also has {', '.join(other)}. It does not turn noise into "
            "pixels with a UNet alone (it may work on latents or from text), which is all that "
            "can be read here."
        )


def _unet_config(path: Path) -> UNet2DConfig:
    if not path.is_file():
        raise UserError(
            f"{path.parent}: no {UNET} of a UNet there, nor in {path.parent / 'unet'}. Give the "
            "folder that pipeline.save_pretrained wrote."
        )
    config = _json(path)
    if (name := config.get("_class_name", "UNet2DModel")) not in (
        "UNet2DModel",
        "UNetUnconditionalModel",
    ):
        raise UserError(
            f"{path}: _class_name={name}: only UNet2DModel, the unconditional UNet, can be read "
            "here."
        )
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    check_arguments(UNet2DConfig, config, [], str(path))
    return UNet2DConfig(**config)


def _weights_file(folder: Path) -> Path:
    for suffix in ("safetensors", "bin"):
        if (file := folder / f"{WEIGHTS}.{suffix}").is_file():
            return file
    others = sorted(
        p.name
        for p in folder.glob("*")
        if p.suffix in (".safetensors", ".bin", ".msgpack") or p.name.endswith(".index.json")
    )
    raise UserError(
        f"{folder}: no {WEIGHTS}.safetensors and no {WEIGHTS}.bin"
        + (
            f", only {', '.join(others)}: save the UNet again with save_pretrained, in one file."
            if others
            else "."
        )
    )


def _size(size: int | Sequence[int] | None, where: str) -> int | Sequence[int] | None:
    pair = size if isinstance(size, list) else [size or 1, 1]
    if len(pair) != 2 or min(pair) < 1 or size == 0:
        _refuse(where, "sample_size", size, "it is one number, or height and width")
    return size


def _refuse(where: str, key: str, value: Any, needed: str) -> NoReturn:
    raise UserError(
        f"{where}: {key}={json.dumps(value)} is not what our networks can be: {needed}."
    )


# --- the UNet's config ----------------------------------------------------------------------------


@dataclass(frozen=True)
class UNet2DConfig:
    """The arguments of diffusers' UNet2DModel with its defaults (0.42.1), which stand for the keys
    that a config leaves out."""

    sample_size: int | Sequence[int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    down_block_types: Sequence[str] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: Sequence[str] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: Sequence[int] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str | None = "conv"
    upsample_type: str | None = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None


ALWAYS = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "class_embed_type": (None,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
}
# What tells our two networks apart in diffusers' terms.
FAMILIES = {
    "models.unet.UNet": {
        "norm_eps": 1e-6,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
    },
    "models.adm.ADMUNet": {
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
    },
}
# block type: (attention, how it changes the size; None: by downsample_type or upsample_type)
DOWN = {
    "DownBlock2D": (False, "conv"),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, "resnet"),
}
UP = {
    "UpBlock2D": (False, "conv"),
    "AttnUpBlock2D": (True, None),
    "ResnetUpsampleBlock2D": (False, "resnet"),
}


def model_node(unet: UNet2DConfig, where: str) -> Node:
    """The node of our network that computes exactly what UNet2DModel with this config does."""
    for key, allowed in ALWAYS.items():
        if getattr(unet, key) not in allowed:
            _refuse(
                where,
                key,
                getattr(unet, key),
                f"only {' or '.join(json.dumps(v) for v in allowed)} can be read",
            )
    widths, groups = list(unet.block_out_channels), unet.norm_num_groups
    if not widths or min(widths) < 1 or unet.layers_per_block < 1 or groups is None or groups < 1:
        _refuse(
            where,
            "block_out_channels",
            widths,
            "with layers_per_block and norm_num_groups it must hold numbers of at least 1",
        )
    if unet.time_embedding_dim not in (None, 4 * widths[0]):
        _refuse(
            where,
            "time_embedding_dim",
            unet.time_embedding_dim,
            f"it must be 4 times the first width, {4 * widths[0]}, or null",
        )
    levels, resample = _levels(unet, where)
    scale_shift = unet.resnet_time_scale_shift == "scale_shift"
    # With scale_shift diffusers' middle attention has a norm only where attn_norm_num_groups says
    # so.
    if unet.attn_norm_num_groups != groups and (
        scale_shift or unet.attn_norm_num_groups is not None
    ):
        _refuse(
            where,
            "attn_norm_num_groups",
            unet.attn_norm_num_groups,
            "the middle attention has a norm of as many groups as the others, "
            f"norm_num_groups={groups}",
        )
    target = _family(unet, resample, where)
    adm = target == "models.adm.ADMUNet"
    if (scale_shift or resample) and not adm:
        _refuse(
            where,
            "resnet_time_scale_shift" if scale_shift else "downsample_type",
            "scale_shift" if scale_shift else "resnet",
            f"models.adm.ADMUNet has that, with {_spelled(FAMILIES['models.adm.ADMUNet'])}",
        )
    node = {
        "_target_": target,
        "channels": widths[0],
        "multipliers": _multipliers(widths, whole=not adm, where=where),
        "blocks": unet.layers_per_block,
        "attention_levels": levels,
        "in_channels": unet.in_channels,
        "dropout": unet.dropout,
    }
    heads = _heads(unet, [*(widths[k] for k in levels), widths[-1]], adm, where)
    return (
        node
        | heads
        | {"groups": groups, "classes": unet.num_class_embeds or 0}
        | (
            {"scale_shift": scale_shift, "resample_blocks": resample, "timestep_scale": 1.0}
            if adm
            else {}
        )
        | {"gradient_checkpointing": False}
    )


def _family(unet: UNet2DConfig, resample: bool, where: str) -> str:
    """The network that agrees in most; where it does not agree in all, the first key that does not
    is refused."""
    kept = {
        name: {k: v for k, v in family.items() if not (resample and k == "downsample_padding")}
        for name, family in FAMILIES.items()
    }
    wrong = {
        name: [k for k, v in family.items() if getattr(unet, k) != v]
        for name, family in kept.items()
    }
    target = min(reversed(wrong), key=lambda name: len(wrong[name]))
    if wrong[target]:
        key = wrong[target][0]
        _refuse(
            where,
            key,
            getattr(unet, key),
            "; ".join(f"{name} has {_spelled(family)}" for name, family in FAMILIES.items()),
        )
    return target


def _spelled(settings: dict[str, Any]) -> str:
    return ", ".join(f"{k}={json.dumps(v)}" for k, v in settings.items())


def _levels(unet: UNet2DConfig, where: str) -> tuple[list[int], bool]:
    """The levels with attention, and whether residual blocks change the size: both the same on the
    way down and up."""
    count = len(unet.block_out_channels)
    found = []
    for key, known, by in (
        ("down_block_types", DOWN, "downsample_type"),
        ("up_block_types", UP, "upsample_type"),
    ):
        # diffusers drops that prefix too
        kinds = [kind.removeprefix("UNetRes") for kind in getattr(unet, key)]
        if len(kinds) != count:
            _refuse(where, key, kinds, f"it needs {count} entries, as block_out_channels has")
        if bad := [kind for kind in kinds if kind not in known]:
            _refuse(where, key, bad[0], f"known: {', '.join(known)}")
        if known is UP:
            kinds = kinds[::-1]  # level 0, the full resolution, comes last there
        attention = [level for level, kind in enumerate(kinds) if known[kind][0]]
        changing = kinds[:-1] if known is DOWN else kinds[1:]
        found.append((attention, {known[kind][1] or getattr(unet, by) for kind in changing}))
    (down, shrink), (up, grow) = found
    if down != up:
        _refuse(
            where,
            "up_block_types",
            list(unet.up_block_types),
            "attention must be at the same levels as on the way down",
        )
    if len(shrink | grow) > 1 or not (shrink | grow) <= {"conv", "resnet"}:
        _refuse(
            where,
            "downsample_type",
            unet.downsample_type,
            "every level must change the size in the same way, all by conv or all by resnet, "
            "which ResnetDownsampleBlock2D and ResnetUpsampleBlock2D do and DownBlock2D and "
            "UpBlock2D never",
        )
    return down, shrink == {"resnet"}


def _multipliers(widths: Sequence[int], whole: bool, where: str) -> list[int] | list[float]:
    channels = widths[0]
    if whole and (bad := [w for w in widths if w % channels]):
        _refuse(
            where,
            "block_out_channels",
            list(widths),
            f"each must be a multiple of the first, and {bad[0]} is not",
        )
    # The network takes int(channels * m): a quotient that falls just short is raised to the next
    # number.
    return [
        w // channels
        if w % channels == 0
        else m
        if int(channels * (m := w / channels)) == w
        else float(np.nextafter(m, np.inf))
        for w in widths
    ]


def _heads(unet: UNet2DConfig, widths: Sequence[int], adm: bool, where: str) -> dict[str, Any]:
    """attention_head_dim is the width of a head; null is one head. widths: of the attentions."""
    width = unet.attention_head_dim
    if width is None:
        return {"heads": 1, "head_channels": None} if adm else {"heads": 1}
    if width < 1 or any(w % width for w in widths):
        _refuse(
            where,
            "attention_head_dim",
            width,
            f"it must divide the widths that have attention, {sorted(set(widths))}",
        )
    if adm:
        return {"heads": None, "head_channels": width}
    if len(counts := {w // width for w in widths}) > 1:
        _refuse(
            where,
            "attention_head_dim",
            width,
            f"models.unet.UNet has one number of heads, and at the widths {sorted(set(widths))} "
            f"this gives {sorted(counts)}",
        )
    return {"heads": counts.pop()}


# --- the weights ----------------------------------------------------------------------------------

TOKENS = {
    "down": "down_blocks",
    "up": "up_blocks",
    "mid": "mid_block",
    "block": "resnets",
    "attention": "attentions",
    "downsample": "downsamplers.0",
    "upsample": "upsamplers.0",
    "time_proj": "time_emb_proj",
    "shortcut": "conv_shortcut",
    "norm": "group_norm",
    "out": "to_out.0",
    "norm_out": "conv_norm_out",
}
# of 2022
OLD = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


def is_diffusers(state: Any) -> bool:
    """Whether the names are those of UNet2DModel."""
    return (
        isinstance(state, Mapping)
        and "time_embedding.linear_1.weight" in state
        and "conv_norm_out.weight" in state
    )


def names(network: UNet) -> dict[str, list[str]]:
    """Our parameters' names -> theirs: one, or three for a qkv."""
    return {
        name: _theirs(name.split("."), len(network.down)) for name, _ in network.named_parameters()
    }


def _theirs(parts: list[str], levels: int) -> list[str]:
    if parts[0] == "up":
        parts[1] = str(levels - 1 - int(parts[1]))  # theirs are in the order in which they run
    if parts[0] == "time_mlp":
        parts[:2] = ["time_embedding", {"0": "linear_1", "2": "linear_2"}[parts[1]]]
    renamed = ".".join(TOKENS.get(part, part) for part in parts)
    return (
        [renamed.replace("qkv", f"to_{letter}") for letter in "qkv"]
        if "qkv" in parts
        else [renamed]
    )


def to_diffusers(state: Mapping[str, Tensor], network: UNet) -> dict[str, Tensor]:
    """A state dict of network under diffusers' names, without the null class."""
    renamed: dict[str, Tensor] = {}
    for ours, theirs in names(network).items():
        tensor = state[ours][:-1] if ours == "class_embedding.weight" else state[ours]
        renamed |= zip(theirs, tensor.chunk(len(theirs)), strict=True)
    return renamed


def from_diffusers(state: Mapping[str, Tensor], network: UNet) -> dict[str, Tensor]:
    """Their state dict as one of network. The null class, which theirs has not, becomes the mean of
    the others. Raises UserError where names or shapes are others."""
    found = {_renewed(name): tensor for name, tensor in state.items()}
    check_same(found, to_diffusers(network.state_dict(), network))
    converted = {
        ours: torch.cat([found[name] for name in theirs]) if len(theirs) > 1 else found[theirs[0]]
        for ours, theirs in names(network).items()
    }
    if (table := converted.get("class_embedding.weight")) is not None:
        converted["class_embedding.weight"] = torch.cat([table, table.mean(0, keepdim=True)])
    return converted


def _renewed(name: str) -> str:
    for old, new in OLD.items():
        name = name.replace(old, new)
    return name


def check_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises UserError unless names and shapes agree."""
    shapes = {
        name: (list(found[name].shape), list(t.shape))
        for name, t in expected.items()
        if name in found
    }
    wrong = [
        *(f"{name} is missing" for name in expected if name not in found),
        *(f"{name} has no place in the network" for name in found if name not in expected),
        *(
            f"{name} is {theirs} and should be {ours}"
            for name, (theirs, ours) in shapes.items()
            if theirs != ours
        ),
    ]
    if wrong:
        raise UserError(
            (
                "the weights are not those of the network that their settings say: "
                f"{'; '.join(wrong[:4])}"
            )
            + (f"; and {len(wrong) - 4} more." if len(wrong) > 4 else ".")
        )
