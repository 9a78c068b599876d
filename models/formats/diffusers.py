"""diffusers' format of an unconditional pipeline: the configs of UNet2DModel and of its schedulers
as ours, and the weights under the names of our networks, both ways. diffusers itself is not needed.

A folder is a pipeline (model_index.json, unet/, scheduler/), the older flat layout of
google/ddpm-*, a UNet alone, or a checkpoint-N of their training scripts (unet/, and its average in
unet_ema/), whose scheduler is in the pipeline around it. Its JSON is foreign input: every key of
the UNet's config either means exactly one of our networks or is refused by name.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from models.formats.diffusers_scheduler import HO, Node, read_scheduler
from models.formats.misfit import State, Tensors, check_same, whole
from models.unet import UNet
from runtime.checkpoint import Which
from runtime.config_schema import make, parse
from runtime.errors import UserError
from runtime.files import read_json

INDEX, UNET, SCHEDULER, WEIGHTS = (
    "model_index.json",
    "config.json",
    "scheduler_config.json",
    "diffusion_pytorch_model",
)
AVERAGE = "unet_ema"
# what EMAModel.save_pretrained writes of itself among the network's arguments
OF_AVERAGE = {
    "decay",
    "min_decay",
    "optimization_step",
    "update_after_step",
    "use_ema_warmup",
    "inv_gamma",
    "power",
}
NO_NULL_CLASS = (
    "%s: the network never saw a null class, which is the mean of its classes here: sample it "
    "with label=..."
)
log = logging.getLogger(__name__)


# --- the folder -----------------------------------------------------------------------------------


def is_folder(path: Path) -> bool:
    names = (INDEX, f"unet/{UNET}", f"{AVERAGE}/{UNET}", UNET)
    return any((path / name).is_file() for name in names)


def read_folder(path: Path) -> tuple[dict[str, Any], dict[Which, Path]]:
    """The sections of our config that a folder says, and its files of weights.

    Returns:
        model, schedule, parameterization, variance, and of data the size and channels; the average
        and the last iterate, which are the same file where it has one.
    Raises:
        UserError: where it is not exactly a network and a schedule of ours.
    """
    pipeline = _pipeline_around(path)
    if (pipeline / INDEX).is_file():
        _check_components(pipeline / INDEX)
    folders = _unet_folders(path)
    folder = folders["ema"]
    unet = _unet_config(folder)
    sections = _scheduler_sections(path, pipeline)
    sections = make(_network_sections, str(folder / UNET), unet, sections["variance"]) | sections
    if sections["model"]["classes"]:
        log.warning(NO_NULL_CLASS, path)
    return sections, {which: _weights_file(folder) for which, folder in folders.items()}


def _pipeline_around(path: Path) -> Path:
    """The pipeline that a folder is, or is a part of: PIPELINE/unet, PIPELINE/checkpoint-N,
    PIPELINE/checkpoint-N/unet_ema."""
    places = [path, *path.absolute().parents[:2]]
    return next((place for place in places if (place / INDEX).is_file()), path)


def _unet_folders(path: Path) -> dict[Which, Path]:
    """The UNet's folder, and where a training script kept both, that of the average for
    weights=ema."""
    average, unet = (
        folder if (folder / UNET).is_file() else None for folder in (path / AVERAGE, path / "unet")
    )
    if average and unet:
        log.info("%s: weights=ema is its %s, weights=model its unet", path, AVERAGE)
    elif path.name.startswith("checkpoint-") and (average or unet):
        log.warning(
            "%s: no %s there, so that weights=%s is its %s too",
            path,
            *(("unet", "model", AVERAGE) if average else (AVERAGE, "ema", "unet")),
        )
    return {"ema": average or unet or path, "model": unet or average or path}


def _network_sections(unet: UNet2DConfig, variance: Node) -> dict[str, Any]:
    outputs = 2 if variance["_target_"].endswith("LearnedRange") else 1
    if unet.out_channels != outputs * unet.in_channels:
        _refuse(
            "out_channels",
            unet.out_channels,
            f"the image has in_channels={unet.in_channels}, and with this scheduler's "
            f"variance_type the network would give {outputs * unet.in_channels} (twice the "
            "image's only with learned_range)",
        )
    size = unet.sample_size
    pair = size if isinstance(size, list) else [1 if size is None else size] * 2
    if len(pair) != 2 or min(pair) < 1:
        _refuse("sample_size", size, "it is one number, or height and width")
    return {"model": model_node(unet), "data": {"size": size, "channels": unet.in_channels}}


def _scheduler_sections(path: Path, pipeline: Path) -> dict[str, Node]:
    """Of the scheduler of the pipeline, or of what is beside a UNet alone; Ho's where there is
    none."""
    for folder in (path, pipeline / "scheduler", path.parent / "scheduler"):
        if (file := folder / SCHEDULER).is_file():
            return read_scheduler(_json(file), str(file))
    log.warning(
        "%s: no %s, so the schedule is taken to be that of Ho et al. 2020: linear betas from "
        "0.0001 to 0.02, T = 1000, predicting the noise, variance fixed_small.",
        path,
        SCHEDULER,
    )
    return HO


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, "copy or download the folder again")


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


def _unet_config(folder: Path) -> UNet2DConfig:
    path = folder / UNET
    if not path.is_file():
        raise UserError(
            f"{folder}: no {UNET} of a UNet there, nor in {folder / 'unet'}. Give the "
            "folder that pipeline.save_pretrained wrote."
        )
    config = _json(path)
    name = config.get("_class_name", "UNet2DModel")
    if name not in ("UNet2DModel", "UNetUnconditionalModel"):
        raise UserError(
            f"{path}: _class_name={name}: only UNet2DModel, the unconditional UNet, can be read "
            "here."
        )
    config = {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and key not in OF_AVERAGE
    }
    return parse(UNet2DConfig, config, [], str(path))


def _weights_file(folder: Path) -> Path:
    for suffix in ("safetensors", "bin"):
        if (file := folder / f"{WEIGHTS}.{suffix}").is_file():
            return file
    kinds = (".safetensors", ".bin", ".msgpack", ".index.json")
    others = ", ".join(sorted(p.name for p in folder.glob("*") if p.name.endswith(kinds)))
    raise UserError(
        f"{folder}: no {WEIGHTS}.safetensors and no {WEIGHTS}.bin"
        + (others and f", only {others}: save the UNet again with save_pretrained, in one file")
        + "."
    )


def _refuse(key: str, value: Any, needed: str) -> NoReturn:
    raise ValueError(f"{key}={json.dumps(value)} is not what our networks can be: {needed}.")


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


def model_node(unet: UNet2DConfig) -> Node:
    """The node of our network that computes exactly what UNet2DModel with this config does.

    Raises:
        ValueError: where none does.
    """
    _check_values(unet)
    levels, resample = _levels(unet)
    scale_shift = unet.resnet_time_scale_shift == "scale_shift"
    target = _family(unet, resample)
    adm = target == "models.adm.ADMUNet"
    if (scale_shift or resample) and not adm:
        _refuse(
            "resnet_time_scale_shift" if scale_shift else "downsample_type",
            "scale_shift" if scale_shift else "resnet",
            f"models.adm.ADMUNet has that, with {_spelled(FAMILIES['models.adm.ADMUNet'])}",
        )
    widths = unet.block_out_channels
    channels = widths[0]
    if not adm and (bad := [w for w in widths if w % channels]):
        _refuse(
            "block_out_channels",
            widths,
            f"each must be a multiple of the first, and {bad[0]} is not",
        )
    only_adm = {"scale_shift": scale_shift, "resample_blocks": resample, "timestep_scale": 1.0}
    return {
        "_target_": target,
        "channels": channels,
        "multipliers": [_multiplier(w, channels) for w in widths],
        "blocks": unet.layers_per_block,
        "attention_levels": levels,
        "in_channels": unet.in_channels,
        "dropout": unet.dropout,
        **_heads(unet, {*(widths[k] for k in levels), widths[-1]}, adm),
        "groups": unet.norm_num_groups,
        "classes": unet.num_class_embeds or 0,
        **(only_adm if adm else {}),
        "gradient_checkpointing": False,
    }


def _check_values(unet: UNet2DConfig) -> None:
    for key, allowed in ALWAYS.items():
        if (value := getattr(unet, key)) not in allowed:
            _refuse(key, value, f"only {' or '.join(map(json.dumps, allowed))} can be read")
    widths = unet.block_out_channels
    if min([*widths, unet.layers_per_block, unet.norm_num_groups or 0]) < 1 or not widths:
        _refuse(
            "block_out_channels",
            widths,
            "with layers_per_block and norm_num_groups it must hold numbers of at least 1",
        )
    if unet.time_embedding_dim not in (None, 4 * widths[0]):
        _refuse(
            "time_embedding_dim",
            unet.time_embedding_dim,
            f"it must be 4 times the first width, {4 * widths[0]}, or null",
        )
    groups, middle = unet.norm_num_groups, unet.attn_norm_num_groups
    # with scale_shift diffusers' middle attention has a norm only where this says so
    if middle != groups and (middle is not None or unet.resnet_time_scale_shift == "scale_shift"):
        _refuse(
            "attn_norm_num_groups",
            middle,
            "the middle attention has a norm of as many groups as the others, "
            f"norm_num_groups={groups}",
        )


def _family(unet: UNet2DConfig, resample: bool) -> str:
    """The network that agrees in most; where it does not agree in all, the first key that does not
    is refused. Residual blocks that change the size have no downsample_padding."""

    def wrong(name: str) -> list[str]:
        return [
            key
            for key, value in FAMILIES[name].items()
            if getattr(unet, key) != value and not (resample and key == "downsample_padding")
        ]

    target = min(reversed(FAMILIES), key=lambda name: len(wrong(name)))
    for key in wrong(target):
        _refuse(
            key,
            getattr(unet, key),
            "; ".join(f"{name} has {_spelled(family)}" for name, family in FAMILIES.items()),
        )
    return target


def _spelled(settings: dict[str, Any]) -> str:
    return ", ".join(f"{k}={json.dumps(v)}" for k, v in settings.items())


def _levels(unet: UNet2DConfig) -> tuple[list[int], bool]:
    """The levels with attention, and whether residual blocks change the size: both the same on the
    way down and up."""
    down, up = _blocks(unet, "down"), _blocks(unet, "up")[::-1]
    attention = [level for level, (has, _) in enumerate(down) if has]
    if [has for has, _ in down] != [has for has, _ in up]:
        _refuse(
            "up_block_types",
            unet.up_block_types,
            "attention must be at the same levels as on the way down",
        )
    ways = {way for _, way in [*down[:-1], *up[1:]]}
    if len(ways) > 1 or not ways <= {"conv", "resnet"}:
        _refuse(
            "downsample_type",
            unet.downsample_type,
            "every level must change the size in the same way, all by conv or all by resnet, "
            "which ResnetDownsampleBlock2D and ResnetUpsampleBlock2D do and DownBlock2D and "
            "UpBlock2D never",
        )
    return attention, ways == {"resnet"}


def _blocks(unet: UNet2DConfig, way: str) -> list[tuple[bool, str | None]]:
    """Of the blocks of the way, down or up, as they run: (attention, how it changes the size)."""
    known = {
        f"{way.title()}Block2D": (False, "conv"),
        f"Attn{way.title()}Block2D": (True, getattr(unet, f"{way}sample_type")),
        f"Resnet{way.title()}sampleBlock2D": (False, "resnet"),
    }
    key, count = f"{way}_block_types", len(unet.block_out_channels)
    # diffusers drops that prefix too
    kinds = [kind.removeprefix("UNetRes") for kind in getattr(unet, key)]
    if len(kinds) != count:
        _refuse(key, kinds, f"it needs {count} entries, as block_out_channels has")
    if bad := [kind for kind in kinds if kind not in known]:
        _refuse(key, bad[0], f"known: {', '.join(known)}")
    return [known[kind] for kind in kinds]


def _multiplier(width: int, channels: int) -> int | float:
    """The m of which int(channels * m), as the network takes it, is the width: a quotient that
    falls just short is raised to the next number."""
    m = width / channels
    return whole(m if int(channels * m) == width else math.nextafter(m, math.inf))


def _heads(unet: UNet2DConfig, widths: set[int], adm: bool) -> dict[str, Any]:
    """attention_head_dim is the width of a head; null is one head. widths: of the attentions."""
    width = unet.attention_head_dim
    if width is not None and (width < 1 or any(w % width for w in widths)):
        _refuse(
            "attention_head_dim",
            width,
            f"it must divide the widths that have attention, {sorted(widths)}",
        )
    if adm:
        return {"heads": None if width else 1, "head_channels": width}
    counts = {w // width for w in widths} if width else {1}
    if len(counts) > 1:
        _refuse(
            "attention_head_dim",
            width,
            f"models.unet.UNet has one number of heads, and at the widths {sorted(widths)} "
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


def is_diffusers(state: State) -> bool:
    """Whether the names are those of UNet2DModel."""
    return {"time_embedding.linear_1.weight", "conv_norm_out.weight"} <= state.keys()


def names(network: UNet) -> dict[str, list[str]]:
    """Our parameters' names -> theirs: one, or three for a qkv."""
    table = {}
    for name, _ in network.named_parameters():
        parts = name.split(".")
        if parts[0] == "up":  # theirs are in the order in which they run
            parts[1] = str(len(network.up) - 1 - int(parts[1]))
        if parts[0] == "time_mlp":
            parts[:2] = ["time_embedding", {"0": "linear_1", "2": "linear_2"}[parts[1]]]
        theirs = ".".join(TOKENS.get(part, part) for part in parts)
        three = [theirs.replace("qkv", f"to_{letter}") for letter in "qkv"]
        table[name] = three if "qkv" in parts else [theirs]
    return table


def to_diffusers(state: State, network: UNet) -> Tensors:
    """A state dict of network under diffusers' names, without the null class."""
    renamed: Tensors = {}
    for ours, theirs in names(network).items():
        tensor = state[ours][:-1] if ours == "class_embedding.weight" else state[ours]
        renamed |= zip(theirs, tensor.chunk(len(theirs)), strict=True)
    return renamed


def from_diffusers(state: State, network: UNet) -> Tensors:
    """Their state dict as one of network. The null class, which theirs has not, becomes the mean of
    the others.

    Raises:
        UserError: where names or shapes are others.
    """
    found = {}
    for name, tensor in state.items():
        for old, new in OLD.items():
            name = name.replace(old, new)
        found[name] = tensor
    check_same(found, to_diffusers(network.state_dict(), network))
    converted = {}
    for ours, theirs in names(network).items():
        parts = [found[name] for name in theirs]
        if ours == "class_embedding.weight":
            parts.append(parts[0].mean(0, keepdim=True))
        converted[ours] = torch.cat(parts)
    return converted
