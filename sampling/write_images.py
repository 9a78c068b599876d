"""A folder of images that a denoiser makes: those that are missing in it can be made at any
time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data.pixels import to_uint8
from diffusion.generate import steps_of
from runtime.content import differences
from runtime.errors import UserError
from runtime.files import read_json, write_atomically, write_json
from runtime.image_grid import grid, png
from sampling.pipeline import Pipeline, SampleRequest

SETTINGS = "sampling.json"


def write_missing(out: Path, request: SampleRequest, model: Pipeline, frames: int = 8) -> int:
    """Makes those of the images 0 .. n - 1 that are not in out yet, the grid and the strip.

    Args:
        frames: of the strip of denoising steps.
    Returns:
        How many were made.
    """
    missing = [k for k in range(request.n) if not (out / image_name(k)).exists()]
    steps = steps_of(model.denoiser.schedule, request.sampler)[:-1]
    evenly = np.linspace(0, len(steps) - 1, frames).round().astype(int)
    picked = {steps[i] for i in evenly}
    strip: list[Tensor] = []
    with tqdm(total=len(missing) * len(steps), unit="step", disable=not missing) as bar:

        def on_step(numbers: Sequence[int], x0: Tensor, t: int) -> None:
            bar.update(len(numbers))
            if t in picked and 0 in numbers:
                strip.append(to_uint8(x0[:8]).cpu())

        for numbers, x0 in model.batches(request, missing, on_step):
            pixels = to_uint8(x0).cpu()
            for k, image in zip(numbers, pixels.numpy(), strict=True):
                write_atomically(out / image_name(k), png(image))
            if 0 in numbers:  # a row for each image, from noise at the left to the image
                rows = torch.stack([*strip, pixels[:8]], dim=1)
                sheet = grid(rows.flatten(0, 1).numpy(), columns=rows.shape[1])
                write_atomically(out / "strip.png", png(sheet))
    shown = np.stack([read_image(out / image_name(k)) for k in range(min(request.n, 256))])
    write_atomically(out / "grid.png", png(grid(shown)))
    return len(missing)


def image_name(k: int) -> str:
    return f"{k:06d}.png"


def read_image(path: Path) -> np.ndarray:
    try:
        return np.atleast_3d(np.asarray(Image.open(path)))
    except (OSError, SyntaxError) as error:  # Pillow's, of what is no image and of half of one
        raise UserError(
            f"{path} is damaged ({error}): delete it, and the same command makes it again."
        ) from error


def claim_folder(out: Path, settings: dict[str, Any]) -> None:
    """A folder holds the images of one set of settings.

    Raises:
        UserError: where it holds others.
    """
    path = out / SETTINGS
    out.mkdir(parents=True, exist_ok=True)
    if any(out.glob("[0-9]*.png")):  # not where a command failed before its first image
        unknown = f"{out} holds images of unknown origin: give these their own out=DIR."
        if not path.exists():
            raise UserError(unknown)
        if lines := differences(settings, read_json(path, unknown)):
            raise UserError(
                f"{out} holds images made otherwise (there -> here):\n  "
                + "\n  ".join(lines)
                + "\nGive these their own out=DIR."
            )
    write_json(path, settings)
