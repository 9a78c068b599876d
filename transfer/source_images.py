"""Images of the source's domain, at the target's size and channels: those that it was trained on,
or those that it makes itself."""

import io
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from config.old_spelling import as_then
from config.sections import TransferSettings
from data.dataset import Dataset, open_dataset
from data.image_reader import ImageReader
from data.intensity import Levels, of_bytes
from data.memory_map import open_memory_map
from data.pixels import to_uint8
from data.resize import in_bands
from data.settings import DataSettings
from data.splits import draw_subset
from diffusion.generate import SamplerSettings, bar_of_images, generate, steps_of
from diffusion.samplers import ddim
from diffusion.schedule import NoiseSchedule
from diffusion.spacing import log_snr_steps
from runtime.content import sha256_of
from runtime.errors import Misfit, UserError
from runtime.files import locked, read_checked, remove_leftovers, write_checked
from runtime.seeds import derive
from transfer.context import Start
from transfer.trained_weights import TrainedWeights

GENERATOR = 1  # raise when the same settings make other images
SECTIONS = ("model", "schedule", "network_schedule", "parameterization", "variance")
CURE = (
    "Take images that the source makes itself: _target_: transfer.source_images.generated in "
    "place of transfer.source_images.real."
)


def real(start: Start, *, n: int | None = None) -> Dataset:
    """The images that the source was trained on, read where its own config says.

    Args:
        n: so many of them, drawn by the run's seed; None for all.
    Returns:
        A Dataset whose splits["train"] are their rows of the memory map.
    Raises:
        UserError: for published weights, which do not say their images.
    """
    own = own_images(start.trained, start.data, start.cache)
    rows = own.splits["train"]
    if n is not None:
        if not 1 <= n <= len(rows):
            raise UserError(
                f"transfer.source_images.real, n={n}: the source was trained on {len(rows)} images."
            )
        rows = draw_subset(rows, n, start.seed, "source images")
    return replace(own, labels=start.labels_of(own.labels), splits={"train": rows})


def own_images(trained: TrainedWeights, data: DataSettings, cache: Path) -> Dataset:
    """The images of a source in its own splits, with the size and channels of a target's data (see
    with_channels), and the source's labels.

    Raises:
        UserError: where they are gone, and for published weights, which do not say their images.
    """
    check_known(trained)
    try:
        own = trained.config.data
        images = own.open_reader(cache)
        # its own n_train, less what was broken
        opened = open_dataset(own, images, trained.config.seed, cache)
    except UserError as error:
        raise UserError(
            f"the images that {trained.path} was trained on: {error}\n{CURE}"
        ) from error
    sizes = zip(data.height_width, own.height_width, strict=True)
    # the source's own memory map where size and channels agree
    at_target = replace(
        own,
        size=data.size,
        resample=data.resample,
        upscale=own.upscale or any(target > source for target, source in sizes),
    )
    pixels = with_channels(images, at_target, data.channels, cache)
    return replace(opened, images=pixels)


def with_channels(
    images: ImageReader, settings: DataSettings, channels: int, cache: Path
) -> np.ndarray:
    """[N, H, W, channels] uint8. Of gray and colour what data.resize makes; where either has other
    channels, and not as many, each is the gray of the image, which is how a source's weights are
    fitted to them (transfer.resize_weights): luma, or the mean over bands."""
    settings = replace(settings, shown=None)
    picture = settings.channels in (1, 3) and settings.bands is None
    if settings.channels == channels or (picture and channels in (1, 3)):
        pixels, _ = open_memory_map(images, replace(settings, channels=channels), cache)
        return pixels
    if not picture:
        images, settings = MeanOfBands(images, settings), replace(settings, bands=None)
    pixels, _ = open_memory_map(images, replace(settings, channels=1), cache)
    return np.broadcast_to(pixels, (*pixels.shape[:3], channels))


class MeanOfBands(ImageReader):
    """The images of another reader in gray."""

    def __init__(self, images: ImageReader, settings: DataSettings):
        self.images, self.bands, self.name = images, settings.bands, images.name
        self.labels, self.splits, self.classes = images.labels, images.splits, images.classes
        self.fingerprint = sha256_of([images.fingerprint, "mean of bands", settings.bands])

    def read_image(self, item: int) -> Image.Image:
        values = in_bands(self.images.read_image(item))
        taken = [band - 1 for band in self.bands or range(1, values.shape[2] + 1)]
        return Image.fromarray(values[..., taken].mean(-1, dtype=np.float32))

    def item_name(self, item: int) -> str:
        return self.images.item_name(item)


def check_known(source: TrainedWeights) -> None:
    """Checks that a source can say what it was trained on.

    Raises:
        Misfit: where it cannot.
    """
    # a bare file's config names images of ours
    if source.step is None or "_target_" not in source.config.raw["data"]:
        raise Misfit(
            f"{source.path}: published weights come without the images that they were trained "
            f"on. {CURE}"
        )


def which_steps(schedule: NoiseSchedule, steps: int) -> dict[str, str]:
    """What the name of generated images says of their steps: nothing where they are those of the
    first version, which were even, and trailing under zero terminal SNR."""
    unchanged = schedule.zero_terminal_snr or steps == schedule.steps
    return {} if unchanged else {"spacing": "log_snr"}


def images_of(term: Any) -> Any:
    """The images of the source that a term of a strategy takes, real or generated, bound to their
    settings; None for none."""
    return getattr(term, "keywords", {}).get("images")


def made_anew(strategy: TransferSettings, schedule: NoiseSchedule) -> dict[str, str]:
    """which_steps of the images that a strategy lets its source, of this schedule, generate: for
    the identity of its run."""
    found: dict[str, str] = {}
    for images in map(images_of, strategy.terms.values()):
        if getattr(images, "func", None) is generated:
            found |= which_steps(schedule, images.keywords["steps"])
    return found


def generated(start: Start, *, n: int, steps: int, batch_size: int) -> Dataset:
    """n images that the source makes, with its own network, size and channels, by DDIM in so many
    steps (log_snr_steps); classes in turn. Image k is a function of (seed, k), so a larger n adds
    to those that are there. Made once, on the run's device, and kept in the cache."""
    if min(n, steps, batch_size) < 1:
        raise UserError(
            f"transfer.source_images.generated: n={n}, steps={steps} and "
            f"batch_size={batch_size} must be at least 1."
        )
    images = SelfMade(start, n, steps, batch_size)
    own = start.trained.config.image_shape[0]
    data = replace(
        start.data, channels=own, bands=None, shown=None, upscale=True, skip_broken=False
    )
    pixels = with_channels(images, data, start.data.channels, start.cache)
    labels = start.labels_of(np.asarray(images.labels, dtype=np.int64))
    return Dataset(pixels, labels, {"train": np.arange(n)}, images.classes)


class SelfMade(ImageReader):
    """The items are the source's samples. They lie at its own size in cache/generated/HASH/, one
    file a batch, named by its first image: what was interrupted goes on after the last whole batch.
    """

    def __init__(self, start: Start, n: int, steps: int, batch_size: int):
        self.name = f"{n} images generated by {start.trained.path.name}"
        self.classes = start.trained.classes
        config = start.trained.config
        # all that decides the bits of an image
        made_by = {
            "version": GENERATOR,
            "weights": start.trained.digests["ema"],
            "shape": config.image_shape,
            "steps": steps,
            "seed": start.seed,
            **which_steps(config.schedule, steps),
            **as_then({section: node for section in SECTIONS if (node := config.raw.get(section))}),
        }
        self.fingerprint = sha256_of([made_by, n])
        self.splits = {"train": range(n)}
        folder = start.cache / "generated" / sha256_of(made_by)[:16]
        with locked(folder / ".lock"):
            remove_leftovers(folder)
            images = _kept(folder)
            if len(images) < n:
                _make(start, range(len(images), n), steps, batch_size, folder)
                images = _kept(folder)
        self.images = images[:n]
        self.labels = [k % max(1, config.classes) for k in range(n)]

    def read_image(self, item: int) -> Levels:
        return of_bytes(self.images[item])


def _kept(folder: Path) -> list[np.ndarray]:
    """The images from the first on, [H, W, C] uint8 each, read from the disk when they are looked
    at."""
    images: list[np.ndarray] = []
    for path in sorted(folder.glob("[0-9]*.npy")):
        # otherwise the batch before it is gone or damaged
        if int(path.stem) == len(images) and read_checked(path) is not None:
            # what is behind the array does not matter to it
            images.extend(np.load(path, mmap_mode="r"))
    return images


def _make(start: Start, missing: range, steps: int, batch_size: int, folder: Path) -> None:
    """Generates the images with these numbers, a batch at a time, and keeps each batch when it is
    whole."""
    config, device = start.trained.config, start.denoiser.schedule.alpha_bar.device
    denoiser = config.frozen_denoiser(start.trained.load("ema"), device)
    schedule, sampler = denoiser.schedule, SamplerSettings(ddim, log_snr_steps, steps)
    if steps > schedule.steps:
        raise UserError(
            f"transfer.source_images.generated, steps={steps}: the source's schedule has only "
            f"{schedule.steps}."
        )
    steps = len(steps_of(schedule, sampler)) - 1
    what = f"images of the source, {len(missing)} of {missing.stop}"
    with bar_of_images(len(missing), steps, delay=2, desc=what) as bar:
        for first in range(0, len(missing), batch_size):
            numbers = missing[first : first + batch_size]
            label = torch.tensor([k % max(1, config.classes) for k in numbers], device=device)
            try:
                x0 = generate(
                    partial(denoiser, condition={"label": label}),
                    schedule,
                    sampler,
                    config.image_shape,
                    [derive(start.seed, "replay", k) for k in numbers],
                    lambda x0, t: bar.update(len(x0)),
                )
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"transfer.source_images.generated, batch_size={batch_size}: the device is "
                    f"out of memory ({str(error).splitlines()[0]}). A smaller one makes the same "
                    "images."
                ) from error
            file = io.BytesIO()
            np.save(file, to_uint8(x0).cpu().numpy())
            write_checked(folder / f"{numbers.start:08d}.npy", file.getvalue())
