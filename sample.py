"""Images from a checkpoint: python sample.py --help"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import hydra
import torch
from omegaconf import DictConfig

from diffusion.generate import SamplerSettings, as_made
from kernels import dispatch
from models.network import frozen_denoiser, image_shape
from models.pretrained import SECTIONS, Trained
from models.samples import Making, claim, write_missing
from runtime import checkpoint
from runtime.build import build, settings_from
from runtime.config import check_overrides, resolved
from runtime.device import pick_device
from runtime.errors import UserError, one_message
from runtime.log import log_to_terminal
from training.settings import Precision
from transfer.trained import Laid, open_named, origin_of, source_of, start_of

log = logging.getLogger("sample")


@dataclass(frozen=True)
class SampleSettings:
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
    reference: Literal["null_class", "source"] = "null_class"
    source: str | None = None
    weights: checkpoint.Which = "ema"
    strip: int = 8
    device: str = "auto"
    precision: Precision = "fp32"
    kernels: dispatch.Kernels = "auto"

    def __post_init__(self):
        if self.n < 1 or self.batch_size < 1 or self.strip < 1:
            raise ValueError("n, batch_size and strip must be at least 1.")
        if self.guidance != 1 and self.label is None and self.reference == "null_class":
            raise ValueError("guidance leads from the null class to a label, of a model with classes: give label=NAME or label=all; or "
                             "from the source to what was made of it: reference=source; or leave guidance at 1.")
        if self.guidance == 1 and self.reference == "source":
            raise ValueError("reference=source needs a guidance other than 1, such as guidance=1.5 (domain guidance).")


@hydra.main(version_base="1.3", config_path="conf", config_name="sample")
@one_message
def main(cfg: DictConfig) -> None:
    log_to_terminal()
    config = resolved(cfg)
    config.pop("spacing")
    sampler = {"_target_": "diffusion.generate.SamplerSettings", **config["sampler"]}
    settings = settings_from(SampleSettings, config | {"sampler": sampler}, "sample", {"sampler": ["diffusion"]})
    sample(settings, config["sampler"])


def sample(settings: SampleSettings, sampler_config: dict[str, Any]) -> Path:
    """Writes the images that are missing, then the grid and the strip. Returns their folder."""
    found = open_named(settings.checkpoint, settings.trained_as, settings.overrides, settings.source)
    file = checkpoint.FILES[settings.weights]
    weights = found.weights(file)
    out = Path(settings.out) if settings.out else default_out(found, settings)
    sampler_config = as_made(sampler_config, settings.sampler, build(found.state["config"]["schedule"], ["diffusion"], "schedule"))
    what = {"weights": found.state["sha256"][file], "seed": settings.seed, "sampler": sampler_config, "label": settings.label,
            "guidance": settings.guidance} | ({"reference": "source"} if settings.reference == "source" else {})
    if found.step is None:  # no run of ours, whose weights go with one config
        config = found.state["config"]
        shown = {key: config["data"][key] for key in ("size", "channels")}
        what["network"] = {section: config[section] for section in SECTIONS} | {"data": shown}
    claim(out, what)
    device = pick_device(settings.device)
    denoiser = frozen_denoiser(found.state["config"], weights, device)
    reference = denoiser
    if settings.reference == "source":
        reference = frozen_denoiser(found.state["config"], start_weights(found, settings.source), device)
    classes = found.state["classes"] if denoiser.network.classes else []
    if classes and settings.label is None:
        log.info("no label is given, so these are of the null class; label=NAME is one of %s", ", ".join(map(str, classes[:12])))
    log.info("%s, %s -> %s", found.path, f"step {found.step}, {settings.weights} weights" if found.step is not None else "its weights", out)
    making = Making(settings.sampler, settings.n, settings.seed, settings.batch_size, settings.label, settings.guidance, settings.strip,
                    settings.precision, settings.kernels)
    new = write_missing(out, making, denoiser, reference, classes, image_shape(found.state["config"]["data"]))
    log.info("%d images in %s (%d of them new), with grid.png and strip.png", settings.n, out, new)
    return out


def default_out(found: Trained, settings: SampleSettings) -> Path:
    """Inside the run; of what is no run of ours, which may be a cache that others read, beside the others' images here."""
    if found.step is None:
        return Path("generated") / f"{Path(settings.checkpoint).resolve().name}_seed{settings.seed}"
    return found.path.parent.parent / "generated" / f"step_{found.step}_seed{settings.seed}"


def start_weights(found: Trained, elsewhere: str | None) -> dict[str, torch.Tensor]:
    """Of the network that the run started from, for domain guidance (Zhong et al. 2025)."""
    if isinstance(found, Laid):
        return found.start()
    if found.step is None:
        raise UserError(f"reference=source: {found.path} is no run of this project, so what it was made from is unknown.")
    config = found.state["config"]
    return start_of(config, source_of(origin_of(found.path.parent.parent), config, elsewhere))


if __name__ == "__main__":
    one_message(check_overrides)("sample", sys.argv[1:])
    main()
