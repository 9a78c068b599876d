"""The images of trained weights in a folder: what sample.py is asked for, and does."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from config.old_spelling import as_then
from config.overrides import composed
from config.sections import Precision
from data.pixels import check_shown
from diffusion.generate import as_made, steps_of
from models.formats.published import SECTIONS
from runtime.checkpoint import Which
from runtime.config_schema import Settings
from runtime.errors import UserError
from sampling.pipeline import NULL_CLASS, SOURCE, SampleRequest, class_labels, load
from sampling.write_images import as_name, claim_folder, write_missing
from transfer.trained_weights import TrainedWeights

log = logging.getLogger("sample")


@dataclass(frozen=True, kw_only=True)
class SampleSettings(SampleRequest, Settings):
    """See conf/sample.yaml."""

    checkpoint: str
    trained_as: str | None
    overrides: Sequence[str]
    out: str | None
    label: int | str | None
    source: str | None
    weights: Which
    strip: int
    device: str | int
    precision: Precision
    shown: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.n < 1 or self.batch_size < 1 or self.strip < 1:
            raise ValueError("n, batch_size and strip must be at least 1.")
        if self.guidance != 1 and self.label is None and self.reference == NULL_CLASS:
            raise ValueError(
                "guidance leads from the null class to a label, of a model with classes: give "
                "label=NAME or label=all; or from the source to what was made of it: "
                "reference=source; or from a lesser model: reference=PATH; or leave guidance at 1."
            )
        if self.guidance == 1 and self.reference != NULL_CLASS:
            raise ValueError(
                f"reference={self.reference} needs a guidance other than 1, such as guidance=1.5."
            )


def sample_to_folder(settings: SampleSettings, sampler_config: dict[str, Any]) -> Path:
    """Writes the images that are missing, then the grid and the strip.

    Returns:
        Their folder.
    Raises:
        UserError: where the weights cannot be read, or the folder holds other images.
    """
    model = load(
        settings.checkpoint,
        settings.device,
        settings.weights,
        settings.source,
        settings.trained_as,
        settings.overrides,
    )
    found, config = model.weights, model.weights.config
    try:
        check_shown(settings.shown, config.image_shape[0])
    except ValueError as error:
        raise UserError(str(error)) from error
    model = replace(model, shown=settings.shown)
    # refused before there is a folder
    class_labels(settings.label, model.classes, [0], found.classes)
    steps_of(config.schedule, settings.sampler)
    other = model.open_reference(settings.reference)
    reference = other.weights if other else None
    out = Path(settings.out or default_out(found, settings, sampler_config, reference))
    what = {
        **_which_weights(found, settings.weights),
        "seed": settings.seed,
        "sampler": as_then(as_made(sampler_config, settings.sampler, config.schedule)),
        "label": settings.label,
        "guidance": settings.guidance,
    }
    if settings.reference == SOURCE:
        what["reference"] = SOURCE
    elif reference:
        what["reference"] = _which_weights(reference, settings.weights)
    claim_folder(out, what)
    if model.classes and settings.label is None:
        some = ", ".join(model.classes[:12])
        log.info(f"no label is given, so these are of the null class; label=NAME is one of {some}")
    step = "its" if found.step is None else f"step {found.step}, {settings.weights}"
    log.info(f"{found.path}, {step} weights -> {out}")
    new = write_missing(out, settings, model, settings.strip)
    log.info(f"{settings.n} images in {out} ({new} of them new), with grid.png and strip.png")
    return out


def _which_weights(found: TrainedWeights, which: Which) -> dict[str, Any]:
    """By what images of these weights are told apart."""
    config, weights = found.config, {"weights": found.digests[which]}
    if found.step is not None:
        return weights
    # no run of ours, whose weights go with one config
    shown = {key: config.raw["data"][key] for key in ("size", "channels")}
    network = {section: config.raw[section] for section in SECTIONS} | {"data": shown}
    return weights | {"network": network}


def default_out(
    found: TrainedWeights,
    settings: SampleSettings,
    sampler_config: dict[str, Any],
    reference: TrainedWeights | None = None,
) -> Path:
    """Inside the run; of what is no run of ours, which may be a cache that others read, beside the
    others' images here. What a reader of docs tries one after the other is in its name:
    step_300_seed0_label-all_guidance-2, step_300_seed0_ancestral-1000."""
    parts = [f"seed{settings.seed}"]
    if settings.weights != "ema":
        parts.append(settings.weights)
    if settings.label is not None:
        parts.append(f"label-{as_name(settings.label)}")
    if settings.guidance != 1:
        parts.append(f"guidance-{settings.guidance:g}")
    if settings.reference == SOURCE:
        parts.append(SOURCE)
    elif reference:
        name, digest = Path(settings.reference).name, reference.digests[settings.weights]
        parts.append(f"away-from-{as_name(name)}-{digest[:8]}")
    if sampler_config != composed("sample", ["checkpoint=any"])["sampler"]:
        function = sampler_config["function"]["_target_"].rpartition(".")[2]
        parts.append(f"{function}-{sampler_config['steps']}")
    if found.step is None:
        parts.insert(0, Path(settings.checkpoint).resolve().name)
        return Path("generated", "_".join(parts))
    parts.insert(0, f"step_{found.step}")
    return found.path.parent.parent / "generated" / "_".join(parts)
