"""Images from a checkpoint: python sample.py --help"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from tqdm import tqdm

from data.batches import to_uint8
from diffusion.denoiser import Condition, Denoise, Denoiser, guide
from diffusion.generate import SamplerSettings, generate, steps_of
from diffusion.schedule import NoiseSchedule
from kernels import dispatch
from models.network import frozen_denoiser, image_shape
from models.pretrained import SECTIONS, Trained
from models.sampling import cast_ahead, prepared
from runtime import checkpoint
from runtime.build import build, check_arguments
from runtime.config import check_overrides, differences, resolved
from runtime.device import arithmetic, pick_device, pick_precision
from runtime.directory import write_json
from runtime.errors import UserError, near, one_message
from runtime.files import write_atomically
from runtime.log import grid, log_to_terminal, png
from runtime.randomness import derive
from training.settings import Precision
from transfer.trained import Laid, open_named, origin_of, source_of, start_of

log = logging.getLogger("sample")
SETTINGS = "sampling.json"


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
    node = {"_target_": "diffusion.generate.SamplerSettings", **config["sampler"]}
    check_arguments(SampleSettings, config | {"sampler": node}, ["diffusion"], "sample")
    sampler = build(node, ["diffusion"], "sampler")
    try:
        settings = SampleSettings(**config | {"sampler": sampler})
    except ValueError as error:
        raise UserError(str(error)) from error
    sample(settings, config["sampler"])


def sample(settings: SampleSettings, sampler_config: dict[str, Any]) -> Path:
    """Writes the images that are missing, then the grid and the strip. Returns their folder."""
    found = open_named(settings.checkpoint, settings.trained_as, settings.overrides, settings.source)
    file = checkpoint.FILES[settings.weights]
    weights = found.weights(file)
    out = Path(settings.out) if settings.out else default_out(found, settings)
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
    new = write_missing(out, settings, denoiser, reference, classes, image_shape(found.state["config"]["data"]))
    log.info("%d images in %s (%d of them new), with grid.png and strip.png", settings.n, out, new)
    return out


def write_missing(out: Path, settings: SampleSettings, denoiser: Denoiser, reference: Denoiser, classes: Sequence[str],
                  shape: Sequence[int]) -> int:
    """Makes those of the images 0 .. n - 1 that are not in out yet, the grid and the strip. reference: what guidance leads away from.
    Returns how many were made."""
    device = denoiser.schedule.alpha_bar.device
    missing = [k for k in range(settings.n) if not (out / name_of(k)).exists()]
    precision = pick_precision(settings.precision, device)
    dispatch.select(settings.kernels, device)
    steps = steps_of(denoiser.schedule, settings.sampler)[:-1]
    if precision == "bf16":
        for each in {denoiser, reference}:
            cast_ahead(each.network, torch.bfloat16)
    with arithmetic(precision, device)(), tqdm(total=len(missing) * len(steps), unit="step", disable=not missing) as bar:
        ready = {each: readied(each, steps) for each in {denoiser, reference}}
        for start in range(0, len(missing), settings.batch_size):
            images = missing[start : start + settings.batch_size]
            denoise = ready[denoiser](condition_of(labels(settings.label, classes, images), device))
            if settings.guidance != 1:
                denoise = guide(denoise, ready[reference](None), settings.guidance)  # it is given no label: the null class
            make(images, denoise, denoiser.schedule, steps, shape, settings, out, bar)
    shown = [read(out / name_of(k)) for k in range(min(settings.n, 256))]
    write_atomically(out / "grid.png", png(grid(np.stack(shown), columns=math.ceil(len(shown) ** 0.5))))
    return len(missing)


def default_out(found: Trained, settings: SampleSettings) -> Path:
    """Inside the run; of what is no run of ours, which may be a cache that others read, beside the others' images here."""
    if found.step is None:
        return Path("generated") / f"{Path(settings.checkpoint).resolve().name}_seed{settings.seed}"
    return found.path.parent.parent / "generated" / f"step_{found.step}_seed{settings.seed}"


def make(images: list[int], denoise: Denoise, schedule: NoiseSchedule, steps: Sequence[int], shape: Sequence[int],
         settings: SampleSettings, out: Path, bar: tqdm) -> None:
    """One batch: the images with these numbers, and the strip where the first of all is among them."""
    picked = {steps[i] for i in np.linspace(0, len(steps) - 1, min(settings.strip, len(steps))).round().astype(int)}
    frames: list[torch.Tensor] = []

    def on_step(x0, t):
        bar.update(len(images))
        if t in picked and 0 in images:
            frames.append(to_uint8(x0[:8]).cpu())

    x0 = generate(denoise, schedule, settings.sampler, shape, [derive(settings.seed, "image", k) for k in images], on_step)
    pixels = to_uint8(x0).cpu()
    for k, image in zip(images, pixels.numpy(), strict=True):
        write_atomically(out / name_of(k), png(image))
    if frames:  # a row for each image, from noise at the left to the image
        rows = torch.stack([*frames, pixels[:8]], dim=1)  # [8, frames, H, W, C]
        write_atomically(out / "strip.png", png(grid(rows.flatten(0, 1).numpy(), columns=rows.shape[1])))


def name_of(k: int) -> str:
    return f"{k:06d}.png"


def read(path: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(path))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def claim(out: Path, what: dict[str, Any]) -> None:
    """A folder holds the images of one set of settings."""
    path = out / SETTINGS
    out.mkdir(parents=True, exist_ok=True)
    made = any(out.glob("[0-9]*.png"))  # not by a command that failed before its first image
    if made and path.exists() and (lines := differences(what, json.loads(path.read_text()))):
        raise UserError(f"{out} holds images made otherwise (there -> here):\n  " + "\n  ".join(lines) + "\nGive these their own out=DIR.")
    if made and not path.exists():
        raise UserError(f"{out} holds images of unknown origin: give these their own out=DIR.")
    write_json(path, what)


def labels(label: int | str | None, classes: Sequence[str], images: Sequence[int]) -> torch.Tensor | None:
    """[B] the class of each image, or None for the null class."""
    if label is None:
        return None
    if not classes:
        raise UserError(f"label={label}: this model has no classes.")
    if label == "all":
        return torch.tensor([k % len(classes) for k in images])
    if str(label) not in classes and not (isinstance(label, int) and 0 <= label < len(classes)):
        raise UserError(f"label={label}: no such class; {near(str(label), [*classes, 'all'])}")
    number = list(classes).index(str(label)) if str(label) in classes else label
    return torch.full((len(images),), number)


def readied(denoiser: Denoiser, steps: Sequence[int]) -> Callable[[Condition | None], Denoise]:
    """condition -> Denoise. On a CPU the denoiser itself: there is little to spare, and the images keep their bits."""
    if denoiser.schedule.alpha_bar.is_cuda:
        return prepared(denoiser, steps)
    return lambda condition: lambda x_t, t: denoiser(x_t, t, condition)


def condition_of(label: torch.Tensor | None, device: torch.device) -> Condition | None:
    return None if label is None else {"label": label.to(device)}


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
