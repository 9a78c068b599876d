"""A folder of images that a denoiser makes: image k is a function of (seed, k), so those that are missing can be made at any time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data.batches import to_uint8
from diffusion.denoiser import Condition, Denoise, Denoiser, guide
from diffusion.generate import SamplerSettings, generate, steps_of, warn_of_start
from diffusion.schedule import NoiseSchedule
from kernels import dispatch
from runtime.content import differences
from runtime.device import arithmetic, pick_precision
from runtime.directory import write_json
from runtime.errors import UserError, near
from runtime.files import read_json, write_atomically
from runtime.log import grid, png
from runtime.seeds import derive
from sampling.cuda_graph import cast_ahead, prepared

SETTINGS = "sampling.json"


@dataclass(frozen=True)
class Making:
    """How images are made. label: a class by name or number, "all" for each in turn, a list of numbers for these in turn, None for the null
    class. guidance: away from a
    reference, 1 for none. strip: frames of the strip of denoising steps."""

    sampler: SamplerSettings
    n: int
    seed: int
    batch_size: int
    label: int | str | Sequence[int] | None = None
    guidance: float = 1.0
    strip: int = 8
    precision: str = "fp32"
    kernels: dispatch.Kernels = "auto"


def write_missing(out: Path, making: Making, denoiser: Denoiser, reference: Denoiser, classes: Sequence[str],
                  shape: Sequence[int]) -> int:
    """Makes those of the images 0 .. n - 1 that are not in out yet, the grid and the strip. reference: what guidance leads away from.
    Returns how many were made."""
    device = denoiser.schedule.alpha_bar.device
    missing = [k for k in range(making.n) if not (out / name_of(k)).exists()]
    precision = pick_precision(making.precision, device)
    dispatch.select(making.kernels, device)
    steps = steps_of(denoiser.schedule, making.sampler)[:-1]
    if missing:
        warn_of_start(denoiser.schedule, making.sampler, shape)
    if precision == "bf16":
        for each in {denoiser, reference}:
            cast_ahead(each.network, torch.bfloat16)
    with arithmetic(precision, device)(), tqdm(total=len(missing) * len(steps), unit="step", disable=not missing) as bar:
        ready = {each: readied(each, steps) for each in {denoiser, reference}}
        for start in range(0, len(missing), making.batch_size):
            images = missing[start : start + making.batch_size]
            denoise = ready[denoiser](condition_of(labels(making.label, classes, images), device))
            if making.guidance != 1:
                denoise = guide(denoise, ready[reference](None), making.guidance)  # it is given no label: the null class
            make(images, denoise, denoiser.schedule, steps, shape, making, out, bar)
    shown = [read(out / name_of(k)) for k in range(min(making.n, 256))]
    write_atomically(out / "grid.png", png(grid(np.stack(shown), columns=math.ceil(len(shown) ** 0.5))))
    return len(missing)


def make(images: list[int], denoise: Denoise, schedule: NoiseSchedule, steps: Sequence[int], shape: Sequence[int],
         making: Making, out: Path, bar: tqdm) -> None:
    """One batch: the images with these numbers, and the strip where the first of all is among them."""
    picked = {steps[i] for i in np.linspace(0, len(steps) - 1, min(making.strip, len(steps))).round().astype(int)}
    frames: list[torch.Tensor] = []

    def on_step(x0, t):
        bar.update(len(images))
        if t in picked and 0 in images:
            frames.append(to_uint8(x0[:8]).cpu())

    x0 = generate(denoise, schedule, making.sampler, shape, [derive(making.seed, "image", k) for k in images], on_step)
    if bad := [k for k, fine in zip(images, x0.isfinite().flatten(1).all(1).tolist(), strict=True) if not fine]:
        raise UserError(f"{len(bad)} of {len(images)} images are not finite (NaN or infinite), image {bad[0]} first: the network has "
                        "diverged, or precision=bf16 is too coarse for it. precision=fp32 and an earlier checkpoints/step_N tell which.")
    pixels = to_uint8(x0).cpu()
    for k, image in zip(images, pixels.numpy(), strict=True):
        write_atomically(out / name_of(k), png(image))
    if frames:  # a row for each image, from noise at the left to the image
        rows = torch.stack([*frames, pixels[:8]], dim=1)  # [8, frames, H, W, C]
        write_atomically(out / "strip.png", png(grid(rows.flatten(0, 1).numpy(), columns=rows.shape[1])))


def name_of(k: int) -> str:
    return f"{k:06d}.png"


def read(path: Path) -> np.ndarray:
    try:
        pixels = np.asarray(Image.open(path))
    except (OSError, SyntaxError) as error:  # Pillow's, of what is no image and of half of one
        raise UserError(f"{path} is damaged ({error}): delete it, and the same command makes it again.") from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def claim(out: Path, what: dict[str, Any]) -> None:
    """A folder holds the images of one set of settings. Raises UserError where it holds others."""
    path = out / SETTINGS
    out.mkdir(parents=True, exist_ok=True)
    made = any(out.glob("[0-9]*.png"))  # not by a command that failed before its first image
    again = f"{out} holds images of unknown origin then: give these their own folder, or delete that one."
    if made and path.exists() and (lines := differences(what, read_json(path, again))):
        raise UserError(f"{out} holds images made otherwise (there -> here):\n  " + "\n  ".join(lines) + "\nGive these their own out=DIR.")
    if made and not path.exists():
        raise UserError(f"{out} holds images of unknown origin: give these their own out=DIR.")
    write_json(path, what)


def labels(label: int | str | Sequence[int] | None, classes: Sequence[str], images: Sequence[int]) -> torch.Tensor | None:
    """[B] the class of each image, or None for the null class."""
    if label is None:
        return None
    if not classes:
        raise UserError(f"label={label}: this model has no classes; one that was trained with model.classes=auto has those of its images.")
    if label == "all":
        label = range(len(classes))
    if not isinstance(label, int | str):
        return torch.tensor([label[k % len(label)] for k in images])
    if str(label) not in classes and not (isinstance(label, int) and 0 <= label < len(classes)):
        raise UserError(f"label={label}: no such class; {near(str(label), [*classes, 'all'])}")
    number: Any = list(classes).index(str(label)) if str(label) in classes else label
    return torch.full((len(images),), number)


def readied(denoiser: Denoiser, steps: Sequence[int]) -> Callable[[Condition | None], Denoise]:
    """condition -> Denoise. On a CPU the denoiser itself: there is little to spare, and the images keep their bits."""
    if denoiser.schedule.alpha_bar.is_cuda:
        return prepared(denoiser, steps)
    return lambda condition: lambda x_t, t: denoiser(x_t, t, condition)


def condition_of(label: torch.Tensor | None, device: torch.device) -> Condition | None:
    return None if label is None else {"label": label.to(device)}
