"""A folder of images that a denoiser makes: those that are missing in it can be made at any
time."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from torch import Tensor

from data.image_file import read_image_file
from data.pixels import to_uint8
from data.resize import in_bands
from diffusion.generate import bar_of_images, steps_of
from runtime.content import differences
from runtime.errors import UserError
from runtime.files import make_directory, read_json, write_atomically, write_json
from runtime.image_grid import captioned_grid, grid, png
from sampling.pipeline import Pipeline, SampleRequest

SETTINGS = "sampling.json"
SHOWN = 256  # images in the grid


def write_missing(out: Path, request: SampleRequest, model: Pipeline, frames: int = 8) -> int:
    """Makes those of the images 0 .. n - 1 that are not in out yet, the grid and the strip.

    Args:
        frames: of the strip of denoising steps.
    Returns:
        How many were made.
    """
    channels = model.weights.config.image_shape[0]
    files = [out / image_name(k, channels) for k in range(request.n)]
    names = []
    if request.label == "all":
        names = [model.classes[k % len(model.classes)] for k in range(request.n)]
        files = list(map(with_class, files, names))
    missing = [k for k, file in enumerate(files) if not file.exists()]
    steps = steps_of(model.denoiser.schedule, request.sampler)[:-1]
    evenly = np.linspace(0, len(steps) - 1, frames).round().astype(int)
    picked = {steps[i] for i in evenly}
    strip: list[Tensor] = []
    with bar_of_images(len(missing), len(steps), disable=not missing) as bar:

        def on_step(numbers: Sequence[int], x0: Tensor, t: int) -> None:
            bar.update(len(numbers))
            if t in picked and 0 in numbers:
                strip.append(to_uint8(x0[:8]).cpu())

        for numbers, x0 in model.batches(request, missing, on_step):
            pixels = to_uint8(x0).cpu()
            for k, image in zip(numbers, pixels.numpy(), strict=True):
                write_atomically(files[k], lossless(image))
            if 0 in numbers:  # a row for each image, from noise at the left to the image
                rows = torch.stack([*strip, pixels[:8]], dim=1)
                sheet = grid(model.view(rows.flatten(0, 1).numpy()), columns=rows.shape[1])
                write_atomically(out / "strip.png", png(sheet))
    shown = model.view(np.stack(list(map(read_image, files[:SHOWN]))))
    sheet = captioned_grid(shown, names[:SHOWN]) if names else grid(shown)
    write_atomically(out / "grid.png", png(sheet))
    return len(missing)


def image_name(k: int, channels: int) -> str:
    """A TIFF has any number of channels; a PNG is known by everyone."""
    return f"{k:06d}.{'png' if channels in (1, 3) else 'tif'}"


def lossless(pixels: np.ndarray) -> bytes:
    """[H, W, C] uint8 as the file of image_name."""
    if (channels := pixels.shape[-1]) in (1, 3):
        return png(pixels)
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        pixels,
        photometric="minisblack",
        planarconfig="contig",
        extrasamples=["unspecified"] * (channels - 1),
        compression="zlib",
        metadata=None,
    )
    return buffer.getvalue()


def with_class(file: Path, name: str) -> Path:
    """The file of an image of this class. One that an earlier version named without it stays."""
    return file if file.exists() else file.with_stem(f"{file.stem}_{as_name(name)}")


def as_name(text: object) -> str:
    """What may stand in the name of a file."""
    return re.sub(r"[^\w.-]+", "-", str(text))[:60]


def read_image(path: Path) -> np.ndarray:
    """[H, W, C] uint8 of a file of lossless."""
    try:
        return in_bands(read_image_file(path)).astype(np.uint8)
    except UserError as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it, and the same command makes it again."
        ) from error


def claim_folder(out: Path, settings: dict[str, Any]) -> None:
    """A folder holds the images of one set of settings.

    Raises:
        UserError: where it holds others.
    """
    path = out / SETTINGS
    make_directory(out)
    # not where a command failed before its first image
    if any(out.glob("[0-9]*.png")) or any(out.glob("[0-9]*.tif")):
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
