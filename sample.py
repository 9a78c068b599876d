"""Images from a checkpoint: python sample.py --help"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from config.overrides import check_overrides, resolved
from config.sections import Precision
from diffusion.generate import SamplerSettings, as_made
from kernels import dispatch
from models.formats.published import SECTIONS
from runtime.build import Settings, parse
from runtime.checkpoint import Which
from runtime.errors import one_message
from runtime.log import log_to_terminal
from sampling.image_folder import claim_folder, write_missing
from sampling.pipeline import Reference, SampleRequest, load
from transfer.trained_weights import TrainedWeights

log = logging.getLogger("sample")


@dataclass(frozen=True)
class SampleSettings(Settings):
    """See conf/sample.yaml."""

    checkpoint: str
    sampler: SamplerSettings
    trained_as: str | None = None
    overrides: Sequence[str] = ()
    n: int = 16
    seed: int = 0
    out: str | None = None
    batch_size: int = 64
    label: int | str | None = None
    guidance: float = 1.0
    reference: Reference = "null_class"
    source: str | None = None
    weights: Which = "ema"
    strip: int = 8
    device: str = "auto"
    precision: Precision = "fp32"
    kernels: dispatch.Kernels = "auto"

    def __post_init__(self):
        if self.n < 1 or self.batch_size < 1 or self.strip < 1:
            raise ValueError("n, batch_size and strip must be at least 1.")
        if self.guidance != 1 and self.label is None and self.reference == "null_class":
            raise ValueError(
                "guidance leads from the null class to a label, of a model with classes: give "
                "label=NAME or label=all; or from the source to what was made of it: "
                "reference=source; or leave guidance at 1."
            )
        if self.guidance == 1 and self.reference == "source":
            raise ValueError(
                "reference=source needs a guidance other than 1, such as guidance=1.5 (domain "
                "guidance)."
            )


@hydra.main(version_base="1.3", config_path="conf", config_name="sample")
@one_message
def main(cfg: DictConfig) -> None:
    log_to_terminal()
    config = resolved(cfg)
    config.pop("spacing")
    sample(parse(SampleSettings, config, ["diffusion"], ""), config["sampler"])


def sample(settings: SampleSettings, sampler_config: dict[str, Any]) -> Path:
    """Writes the images that are missing, then the grid and the strip. Returns their folder."""
    model = load(
        settings.checkpoint,
        settings.device,
        settings.weights,
        settings.source,
        settings.trained_as,
        settings.overrides,
    )
    found, config, denoiser = model.weights, model.weights.config, model.denoiser
    out = Path(settings.out) if settings.out else default_out(found, settings)
    sampler_config = as_made(sampler_config, settings.sampler, config.schedule)
    what = {
        "weights": found.digests[settings.weights],
        "seed": settings.seed,
        "sampler": sampler_config,
        "label": settings.label,
        "guidance": settings.guidance,
    } | ({"reference": "source"} if settings.reference == "source" else {})
    if found.step is None:  # no run of ours, whose weights go with one config
        shown = {key: config.raw["data"][key] for key in ("size", "channels")}
        what["network"] = {section: config.raw[section] for section in SECTIONS} | {"data": shown}
    claim_folder(out, what)
    reference = model.reference(settings.reference)
    if model.classes and settings.label is None:
        log.info(
            "no label is given, so these are of the null class; label=NAME is one of %s",
            ", ".join(map(str, model.classes[:12])),
        )
    log.info(
        "%s, %s -> %s",
        found.path,
        f"step {found.step}, {settings.weights} weights"
        if found.step is not None
        else "its weights",
        out,
    )
    request = SampleRequest(
        settings.sampler,
        settings.n,
        settings.seed,
        settings.batch_size,
        settings.label,
        settings.guidance,
        settings.precision,
        settings.kernels,
    )
    new = write_missing(
        out, request, denoiser, reference, model.classes, config.image_shape, settings.strip
    )
    log.info("%d images in %s (%d of them new), with grid.png and strip.png", settings.n, out, new)
    return out


def default_out(found: TrainedWeights, settings: SampleSettings) -> Path:
    """Inside the run; of what is no run of ours, which may be a cache that others read, beside the
    others' images here."""
    if found.step is None:
        return Path("generated") / f"{Path(settings.checkpoint).resolve().name}_seed{settings.seed}"
    return found.path.parent.parent / "generated" / f"step_{found.step}_seed{settings.seed}"


if __name__ == "__main__":
    one_message(check_overrides)("sample", sys.argv[1:])
    main()
