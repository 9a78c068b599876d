"""Trained weights for other programs and other machines: as a pipeline of diffusers, or as a small
file on top of the source that a run started from."""

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors.torch
import torch

from config.run_config import RunConfig
from diffusion.schedule import NoiseSchedule
from models.adm import ScaleShiftResBlock
from models.formats.diffusers import (
    FAMILIES,
    INDEX,
    SCHEDULER,
    UNET,
    WEIGHTS,
    UNet2DConfig,
    to_diffusers,
)
from models.formats.diffusers_scheduler import (
    PARAMETERIZATIONS,
    SCHEDULES,
    VARIANCES,
    SchedulerConfig,
)
from models.layers import Attention
from models.unet import UNet
from runtime.checkpoint import Which, find
from runtime.config_schema import build
from runtime.errors import UserError
from runtime.files import make_directory, write_atomically, write_directory
from sampling.pipeline import NULL_CLASS, class_number
from training.config_checks import check_network
from training.prune_checkpoints import keep_for
from training.start_from_source import to_store
from transfer.adapt_weights import without_classes
from transfer.trained_weights import TrainedWeights, difference, origin_of

log = logging.getLogger("export")
VERSION = "0.35.0"  # of diffusers, whose keys are written


def export_difference(name: str, out: Path) -> None:
    """Writes what a run's average adds to its source, a small file where little trained.

    Raises:
        UserError: where the run had no source, or out holds something else.
    """
    found = find(name)
    run = found.path.parent.parent
    origin = origin_of(run)
    names = to_store(check_network(RunConfig.of_saved(found.config)), run)
    content = difference(found, origin, names)
    if out.exists() and not (out.is_file() and out.read_bytes() == content):
        refuse_to_overwrite(out)
    keep_for(Path(origin.get("found") or origin["path"]), out)
    make_directory(out.parent)
    write_atomically(out, content)
    log.info(
        f"{found.path} -> {out}: {len(names)} tensors, {len(content)} bytes, on top of "
        f"{origin['path']}. To sample from it:\n  python sample.py checkpoint={out}"
    )


def export_pipeline(found: TrainedWeights, out: Path, weights: Which = "ema") -> None:
    """Writes the folder out, which diffusers opens, and says how to sample from it. One that holds
    just this is left.

    Raises:
        UserError: where diffusers has no such network or scheduler, or out holds something else.
    """
    config = found.config.untold
    # refused before anything is read or written
    unet, scheduler = unet_config(config), scheduler_config(config)
    state = to_diffusers(found.load(weights), config.shape_network())
    tensors = {name: tensor.float().contiguous() for name, tensor in state.items()}
    parts = {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    contents = {
        INDEX: as_json("DDPMPipeline", parts),
        f"unet/{UNET}": as_json("UNet2DModel", unet),
        f"unet/{WEIGHTS}.safetensors": safetensors.torch.save(tensors, {"format": "pt"}),
        f"scheduler/{SCHEDULER}": as_json("DDPMScheduler", scheduler),
    }
    if not holds(out, contents):
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            refuse_to_overwrite(out)
        write_directory(out, contents)
    how = how_to(config, out)
    log.info(f"{found.path} -> {out}. To sample from it, in all steps or in few:\n{how}")


# In few steps DDPMScheduler leaves speckles; DDIMScheduler takes no learned variance.
HOW_TO = """\
  from diffusers import DDPMPipeline, {scheduler}
  pipeline = DDPMPipeline.from_pretrained("{out}")
  pipeline(num_inference_steps={steps}{image}
  settings = dict(pipeline.scheduler.config, timestep_spacing="trailing")
  pipeline.scheduler = {scheduler}.from_config(settings)
  pipeline(num_inference_steps={few}{image}"""
# Pillow has no images of other channels: [1, H, W, C], in 0..1
IMAGE = {True: ').images[0].save("image.png")', False: ', output_type="np").images'}


def how_to(config: RunConfig, out: Path) -> str:
    learned = config.variance.outputs == 2
    return HOW_TO.format(
        scheduler="DPMSolverMultistepScheduler" if learned else "DDIMScheduler",
        out=out,
        steps=config.schedule.steps,
        few=min(50, config.schedule.steps),
        image=IMAGE[config.image_shape[0] in (1, 3)],
    )


def for_label(found: TrainedWeights, label: int | str | None) -> TrainedWeights:
    """The network without classes, as diffusers' pipelines have them, that answers as this one does
    to one label.

    Raises:
        UserError: where there is no such class, or none is chosen of those that there are.
    """
    config, classes = found.config, found.classes
    if not config.classes and label is None:
        return found
    if not config.classes:
        raise UserError(f"label={label}: this model has no classes: leave label= out.")
    if label is None:
        some = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
        refuse(
            f"model.classes={config.classes}",
            "DDPMPipeline passes no labels to the network. For one class give label=NAME, one of "
            f"{some}; for none label={NULL_CLASS}.",
        )
    row = -1 if label == NULL_CLASS else class_number(label, classes, NULL_CLASS)
    return replace(
        found,
        config=config.with_sections(model=config.raw["model"] | {"classes": 0}),
        load=lambda which: without_classes(found.load(which), row),
    )


def refuse_to_overwrite(out: Path) -> NoReturn:
    raise UserError(
        f"{out} holds something else, which is not overwritten: give another out=, or remove it."
    )


def as_json(kind: str, settings: dict[str, Any]) -> bytes:
    content = {"_class_name": kind, "_diffusers_version": VERSION, **settings}
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def holds(out: Path, contents: dict[str, bytes]) -> bool:
    """Whether the folder has these files and no others."""
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    return names == contents.keys() and all(
        (out / name).read_bytes() == data for name, data in contents.items()
    )


def refuse(what: str, reason: str) -> NoReturn:
    raise UserError(f"diffusers has nothing for {what}: {reason}")


# the network


def unet_config(config: RunConfig) -> dict[str, Any]:
    """The arguments of UNet2DModel for the network of config.

    Raises:
        UserError: where it cannot be one.
    """
    target, size = config.raw["model"]["_target_"], config.raw["data"]["size"]
    if target not in FAMILIES:
        refuse(
            target,
            "only models.unet.UNet and models.adm.ADMUNet can be exported. Sample with sample.py.",
        )
    family: dict[str, Any] = FAMILIES[target]
    network = config.shape_network()
    widths = [level.block[0].conv2.out_channels for level in network.down]
    check_network_fits(network, widths[0])
    if size is None:
        refuse(
            "images of unknown size",
            "DDPMPipeline starts from noise of sample_size. Write that into the config of the "
            "network.",
        )
    scale_shift = getattr(network, "block_type", None) is ScaleShiftResBlock
    resample = getattr(network, "resample_blocks", False)
    plain = "ResnetDownsampleBlock2D" if resample else "DownBlock2D"
    down = [
        "AttnDownBlock2D" if isinstance(level.attention[0], Attention) else plain
        for level in network.down
    ]
    changes_size = "resnet" if resample else "conv"
    return asdict(
        UNet2DConfig(
            sample_size=size,
            in_channels=network.conv_in.in_channels,
            out_channels=network.conv_out.out_channels,
            down_block_types=down,
            up_block_types=[kind.replace("Down", "Up") for kind in reversed(down)],
            block_out_channels=widths,
            layers_per_block=len(network.down[0].block),
            dropout=network.dropout,
            attention_head_dim=head_width(network),
            norm_num_groups=network.groups,
            attn_norm_num_groups=network.groups if scale_shift else None,
            downsample_type=changes_size,
            upsample_type=changes_size,
            resnet_time_scale_shift="scale_shift" if scale_shift else "default",
            **family,
        )
    )


def check_network_fits(network: UNet, first_width: int) -> None:
    """Refuses what only our networks can be."""
    assert not network.classes, "see for_label"
    if (scale := getattr(network, "timestep_scale", 1)) != 1:
        refuse(
            f"model.timestep_scale={scale}",
            "UNet2DModel reads timesteps as they are. Sample with sample.py.",
        )
    if first_width != network.channels:
        refuse(
            f"a first level of width {first_width} beside model.channels={network.channels}",
            "UNet2DModel has a time embedding of the first level's width. Sample with sample.py, "
            "or train with model.multipliers that begin with 1.",
        )


def head_width(network: UNet) -> int | None:
    """One width of a head for every attention, or null where each has a single head."""
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    widths = {module.out.in_features // module.heads for module in attentions}
    single = all(module.heads == 1 for module in attentions)
    if single and getattr(network, "head_channels", None) is None:
        return None
    if len(widths) > 1:
        refuse(
            f"model.heads={network.heads} at attentions of several widths",
            f"UNet2DModel has heads of one width everywhere, and here they are {sorted(widths)} "
            "wide. Sample with sample.py, or train with models.adm.ADMUNet and "
            "model.head_channels.",
        )
    return widths.pop()


# the scheduler


def scheduler_config(config: RunConfig) -> dict[str, Any]:
    """The arguments of DDPMScheduler for what config predicts, and how.

    Raises:
        UserError: where it has no such.
    """
    predicts, variance = type(config.parameterization).__name__, type(config.variance).__name__
    prediction_type = key_of(PARAMETERIZATIONS, predicts)
    variance_type = key_of(VARIANCES, variance)
    if prediction_type is None:
        refuse(
            f"parameterization {predicts}",
            "DDPMScheduler takes a prediction of the noise, of x0 or of the velocity. Sample with "
            "sample.py, or train with parameterization=noise.",
        )
    if variance_type is None:
        refuse(
            f"variance {variance}",
            "its variance_type=learned takes the output for the variance itself and not for its "
            "log. Sample with sample.py, or train with variance=learned_range.",
        )
    if config.network_schedule:
        refuse(
            "a network that knows the timesteps of another schedule than its own",
            "DDPMScheduler gives it its own. Sample with sample.py, or transfer with the source's "
            "schedule.",
        )
    schedule, node = config.schedule, config.raw["schedule"]
    start, end = node.get("beta_start", 1e-4), node.get("beta_end", 0.02)
    name = name_of(schedule, start, end)
    scheduler = SchedulerConfig(
        schedule.steps,
        start,
        end,
        name or "linear",
        None if name else betas_for_float32(schedule),
        variance_type,
        prediction_type,
        # A schedule without signal at T must be sampled from T, where leading steps do not begin.
        timestep_spacing="trailing" if schedule.zero_terminal_snr else "leading",
    )
    return asdict(scheduler) | {"steps_offset": 0}


def key_of(table: dict[str, str], value: str) -> str | None:
    return next((key for key, v in table.items() if v == value), None)


def name_of(schedule: NoiseSchedule, start: float, end: float) -> str | None:
    """What diffusers calls the schedule, where it has just that with betas from start to end."""
    for name, node_of in SCHEDULES.items():
        theirs = build(
            node_of(steps=schedule.steps, beta_start=start, beta_end=end), ["diffusion"], "schedule"
        )
        if torch.equal(theirs.alpha_bar, schedule.alpha_bar):
            return name
    return None


# betas are above 0; where float32 has the next alpha_bar already, its 1 - beta is 1
SMALLEST_BETA = np.float32(1e-12)


def betas_for_float32(schedule: NoiseSchedule) -> list[float]:
    """Betas of which diffusers makes our alpha_bar as nearly as its float32 can: 1 - beta is
    rounded there, and each beta here makes up for what the rounding of those before it has done to
    the product."""
    betas, product = [], 1.0
    for alpha_bar in schedule.alpha_bar[1:].tolist():
        beta = max(np.float32(1 - alpha_bar / product), SMALLEST_BETA)
        product *= float(np.float32(1) - beta)
        betas.append(float(beta))
    return betas
