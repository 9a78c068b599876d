"""A checkpoint as a pipeline of diffusers, or as a small file on top of its source: python
export.py --help"""

from __future__ import annotations

import inspect
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
import numpy as np
import safetensors.torch
from omegaconf import DictConfig

from config.overrides import check_overrides, resolved
from config.run_config import RunConfig
from diffusion.schedule import NoiseSchedule
from models.adm import ADMUNet, ScaleShiftResBlock
from models.formats.diffusers import (
    FAMILIES,
    INDEX,
    SCHEDULER,
    UNET,
    WEIGHTS,
    UNet2DConfig,
    to_diffusers,
)
from models.formats.diffusers_scheduler import PARAMETERIZATIONS, VARIANCES
from models.layers import Attention
from models.unet import UNet
from runtime.build import Settings, parse, resolve
from runtime.checkpoint import Which, find
from runtime.errors import UserError, one_message
from runtime.files import sync_directory, write_atomically, write_directory
from runtime.log import log_to_terminal
from training.checks import check_network
from training.start_from_source import to_store
from transfer.trained_weights import (
    TrainedWeights,
    difference,
    fit_table,
    load_weights,
    origin_of,
    stated_config,
)

log = logging.getLogger("export")
VERSION = "0.35.0"  # of diffusers, whose keys are written


@dataclass(frozen=True)
class ExportSettings(Settings):
    """See conf/export.yaml."""

    checkpoint: str
    out: str
    weights: Which = "ema"
    trained_as: str | None = None
    overrides: Sequence[str] = ()
    source: str | None = None


@hydra.main(version_base="1.3", config_path="conf", config_name="export")
@one_message
def main(cfg: DictConfig) -> None:
    log_to_terminal()
    settings = parse(ExportSettings, resolved(cfg), [], "")
    out = Path(settings.out).expanduser()
    if out.suffix == ".safetensors":
        if settings.weights != "ema":
            raise UserError(
                f"weights={settings.weights}: a small file has the average of a run: leave "
                "weights=ema, or give out= a folder."
            )
        export_difference(settings.checkpoint, out)
        return
    stated = stated_config(settings.checkpoint, settings.trained_as, settings.overrides)
    export(
        load_weights(settings.checkpoint, stated=stated, source=settings.source),
        out,
        settings.weights,
    )


def export_difference(name: str, out: Path) -> None:
    """Writes what a run's average adds to its source, a small file where little trained."""
    found = find(name)
    run = found.path.parent.parent
    origin, names = (
        origin_of(run),
        to_store(check_network(RunConfig.of_saved(found.config)), fit_table(run)),
    )
    content = difference(found, origin, names)
    if out.exists() and not (out.is_file() and out.read_bytes() == content):
        raise UserError(
            f"{out} holds something else, which is not overwritten: give another "
            "out=FILE.safetensors, or remove it."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, content)
    log.info(
        "%s -> %s: %d tensors, %d bytes, on top of %s. To sample from it:\n  python sample.py "
        "checkpoint=%s",
        found.path,
        out,
        len(names),
        out.stat().st_size,
        origin["path"],
        out,
    )


def export(found: TrainedWeights, out: Path, weights: Which = "ema") -> None:
    """Writes the folder out, and says how to sample from it."""
    config = found.config
    # refused before anything is read or written
    unet, scheduler = (
        unet_config(config),
        scheduler_config(config),
    )
    state = to_diffusers(found.load(weights), config.shape_network())
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    write_pipeline(
        out,
        {
            INDEX: as_json(index),
            f"unet/{UNET}": as_json({"_class_name": "UNet2DModel", **unet}),
            f"unet/{WEIGHTS}.safetensors": safetensors.torch.save(
                {k: v.float().contiguous() for k, v in state.items()}, {"format": "pt"}
            ),
            f"scheduler/{SCHEDULER}": as_json({"_class_name": "DDPMScheduler", **scheduler}),
        },
    )
    log.info(
        "%s -> %s. To sample from it:\n  from diffusers import DDPMPipeline\n  pipeline = "
        'DDPMPipeline.from_pretrained("%s")\n'
        '  pipeline(num_inference_steps=%d).images[0].save("image.png")',
        found.path,
        out,
        out,
        scheduler["num_train_timesteps"],
    )


def as_json(config: dict[str, Any]) -> bytes:
    return (
        json.dumps({"_diffusers_version": VERSION, **config}, indent=2, sort_keys=True) + "\n"
    ).encode()


def write_pipeline(out: Path, contents: dict[str, bytes]) -> None:
    """The folder out with these files, or nothing. One that holds just these is left; one that
    holds anything else is refused."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if out.is_dir() and holds(out, contents):
            return
        raise UserError(
            f"{out} holds something else, which is not overwritten: give another out=DIR, or "
            "remove it."
        )
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        for folder in ("unet", "scheduler"):
            write_directory(
                aside / folder,
                {
                    name.split("/")[1]: data
                    for name, data in contents.items()
                    if name.startswith(f"{folder}/")
                },
            )
        write_atomically(aside / INDEX, contents[INDEX])
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_directory(out.parent)


def holds(out: Path, contents: dict[str, bytes]) -> bool:
    if {p.name for p in out.iterdir()} != {name.split("/")[0] for name in contents}:
        return False  # before anything is read: it may be any folder
    return {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} == set(
        contents
    ) and all((out / name).read_bytes() == data for name, data in contents.items())


# --- the network ----------------------------------------------------------------------------------


def refuse(what: str, reason: str) -> NoReturn:
    raise UserError(f"diffusers has nothing for {what}: {reason}")


def unet_config(config: RunConfig) -> dict[str, Any]:
    """The arguments of UNet2DModel for the network of config. Raises UserError where it cannot be
    one."""
    network = config.shape_network()
    family = FAMILIES.get(f"{type(network).__module__}.{type(network).__name__}")
    if family is None:
        refuse(
            config.raw["model"]["_target_"],
            "only models.unet.UNet and models.adm.ADMUNet can be exported. Sample with sample.py.",
        )
    if network.classes:
        refuse(
            f"model.classes={network.classes}",
            "DDPMPipeline passes no labels to the network. Sample with sample.py label=..., or "
            "fine-tune it without classes (source.from=RUN model.classes=0) and export that.",
        )
    adm = isinstance(network, ADMUNet)
    scale_shift, resample = (
        (adm and network.block_type is ScaleShiftResBlock),
        (adm and network.resample_blocks),
    )
    if adm and network.timestep_scale != 1:
        refuse(
            f"model.timestep_scale={network.timestep_scale}",
            "UNet2DModel reads timesteps as they are. Sample with sample.py.",
        )
    widths = [level.block[0].conv2.out_channels for level in network.down]
    if widths[0] != network.channels:
        refuse(
            f"a first level of width {widths[0]} beside model.channels={network.channels}",
            "UNet2DModel has a time embedding of the first level's width. Sample with sample.py, "
            "or train with model.multipliers that begin with 1.",
        )
    size = config.raw["data"]["size"]
    if size is None:
        refuse(
            "images of unknown size",
            (
                "DDPMPipeline starts from noise of sample_size. Write that into the config of the "
                "network."
            ),
        )
    plain, attention = ("ResnetDownsampleBlock2D" if resample else "DownBlock2D"), "AttnDownBlock2D"
    down = [
        attention if isinstance(level.attention[0], Attention) else plain for level in network.down
    ]
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
            downsample_type="resnet" if resample else "conv",
            upsample_type="resnet" if resample else "conv",
            resnet_time_scale_shift="scale_shift" if scale_shift else "default",
            **family,
        )
    )


def head_width(network: UNet) -> int | None:
    """One width of a head for every attention, or null where each has a single head."""
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    widths = {module.out.in_features // module.heads for module in attentions}
    if (
        all(module.heads == 1 for module in attentions)
        and getattr(network, "head_channels", None) is None
    ):
        return None
    if len(widths) > 1:
        refuse(
            f"model.heads={network.heads} at attentions of several widths",
            f"UNet2DModel has heads of one width everywhere, and here they are {sorted(widths)} "
            "wide. Sample with sample.py, or train with models.adm.ADMUNet and "
            "model.head_channels.",
        )
    return widths.pop()


# --- the scheduler --------------------------------------------------------------------------------


def scheduler_config(config: RunConfig) -> dict[str, Any]:
    """The arguments of DDPMScheduler for what config predicts, and how. Raises UserError where it
    has no such."""
    predicts, variance = type(config.parameterization).__name__, type(config.variance).__name__
    if predicts not in PARAMETERIZATIONS.values():
        refuse(
            f"parameterization {predicts}",
            "DDPMScheduler takes a prediction of the noise, of x0 or of the velocity. Sample with "
            "sample.py, or train with parameterization=noise.",
        )
    if variance not in VARIANCES.values():
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
    schedule = config.schedule
    return {
        "num_train_timesteps": schedule.steps,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "trained_betas": None,
        **(
            named(config.raw["schedule"])
            or {"beta_schedule": "linear", "trained_betas": betas_for_float32(schedule)}
        ),
        "variance_type": first(VARIANCES, variance),
        "prediction_type": first(PARAMETERIZATIONS, predicts),
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
        # A schedule without signal at T must be sampled from T, where leading steps do not begin.
        "timestep_spacing": "trailing" if schedule.zero_terminal_snr else "leading",
    }


def first(table: dict[str, str], value: str) -> str:
    return next(key for key, v in table.items() if v == value)


NAMED = {
    "diffusion.schedule.linear": "linear",
    "diffusion.schedule.scaled_linear": "scaled_linear",
    "diffusion.schedule.cosine": "squaredcos_cap_v2",
}
COSINE = {"offset": 0.008, "max_beta": 0.999}  # which diffusers' has built in


def named(node: dict[str, Any]) -> dict[str, Any] | None:
    """The schedule as diffusers' of that name, where it has exactly that."""
    if node["_target_"] not in NAMED:
        return None
    parameters = inspect.signature(resolve(node["_target_"], ["diffusion"], "schedule")).parameters
    settings = {name: node.get(name, parameter.default) for name, parameter in parameters.items()}
    if any(settings.get(key, value) != value for key, value in COSINE.items()):
        return None
    return {
        "beta_schedule": NAMED[node["_target_"]],
        **{k: settings[k] for k in ("beta_start", "beta_end") if k in settings},
    }


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


if __name__ == "__main__":
    one_message(check_overrides)("export", sys.argv[1:])
    main()
