"""A source decoded once into a uint8 memory map, whose name is a hash of what made it, and the subsets that runs use."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.memory import Memory
from data.source import ImageSource, hash_of, to_array
from runtime.errors import UserError
from runtime.files import locked, raise_if_full, sync_directory
from runtime.randomness import generator

DECODER = 1  # raise when to_array changes what it makes of a file


@dataclass(frozen=True)
class Dataset:
    """images: [N, H, W, C] uint8. labels: [N] int64. splits: rows of images by split. classes: names, or empty."""

    images: np.ndarray
    labels: np.ndarray
    splits: dict[str, np.ndarray]
    classes: Sequence[str]


@dataclass(frozen=True)
class DataSettings:
    """source: which images. size: [height, width] or one number for both. channels: 1 or 3. flip: mirror at random while
    training; off where left and right differ, as in radiographs. n_train: train on so many images, drawn by the run's seed;
    null for all. upscale: enlarge images that are smaller than size."""

    source: Callable[[Memory], ImageSource]
    size: int | Sequence[int]
    channels: int
    flip: bool
    n_train: int | None = None
    upscale: bool = False

    def __post_init__(self):
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, not {self.channels}.")
        if len(self.height_width) != 2 or min(self.height_width) < 1:
            raise ValueError(f"size must be one positive number or [height, width], not {self.size}.")

    @property
    def height_width(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)


def open_dataset(settings: DataSettings, source: ImageSource, seed: int, cache: Path) -> Dataset:
    """Decodes what is not decoded yet and draws the training subset."""
    train = np.asarray(source.splits["train"])
    if settings.n_train is not None:
        if not 1 <= settings.n_train <= len(train):
            raise UserError(f"data.n_train={settings.n_train}: {source.name} has {len(train)} training images.")
        order = torch.randperm(len(train), generator=generator(seed, "n_train")).numpy()
        train = np.sort(train[order[: settings.n_train]])
    images = decoded(source, settings.height_width, settings.channels, settings.upscale, cache)
    splits = {split: np.asarray(rows, dtype=np.int64) for split, rows in source.splits.items()}
    return Dataset(images, np.asarray(source.labels, dtype=np.int64), splits | {"train": train}, source.classes)


def decoded(source: ImageSource, size: tuple[int, int], channels: int, upscale: bool, cache: Path) -> np.ndarray:
    """The memory map of a source, built first where it is missing. Runs that need the same one wait for a single builder."""
    key = hash_of(DECODER, source.fingerprint, size, channels, upscale)[:16]
    path = cache / f"{key}.npy"
    if not path.exists():
        with locked(cache / f"{key}.lock"):
            if not path.exists():
                _decode(source, size, channels, upscale, path)
    return np.load(path, mmap_mode="r")


def _decode(source: ImageSource, size: tuple[int, int], channels: int, upscale: bool, path: Path) -> None:
    aside = path.with_suffix(".partial")
    shape = (len(source), *size, channels)
    failures: dict[int, str] = {}

    def decode(item: int) -> np.ndarray | None:
        try:
            return to_array(source.read(item), size, channels, upscale)
        except UserError as error:
            failures[item] = str(error)

    try:
        _reserve(aside, shape)
        images = np.lib.format.open_memmap(aside, mode="r+")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in tqdm(range(0, len(source), 256), desc=f"decoding {source.name}", unit="x256", disable=len(source) < 1000):
                items = range(start, min(start + 256, len(source)))
                for item, image in zip(items, pool.map(decode, items), strict=True):
                    if image is not None:
                        images[item] = image
        images.flush()
        if not failures:
            with open(aside, "rb+") as file:
                os.fsync(file.fileno())
            path.with_suffix(".json").write_text(json.dumps({"source": source.name, "shape": shape}))  # for whoever finds the file
            os.replace(aside, path)
            sync_directory(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise_if_full(error, path)
        raise
    if failures:
        aside.unlink()
        name = getattr(source, "label_of", lambda item: f"image {item}")
        shown = [f"  {name(item)}: {failures[item]}" for item in sorted(failures)[:20]]
        raise UserError(f"{len(failures)} of {len(source)} images of {source.name} cannot be used; mend or remove them:\n"
                        + "\n".join(shown) + ("\n  ..." if len(failures) > 20 else ""))


def _reserve(path: Path, shape: Sequence[int]) -> None:
    """Creates the array's file with its space taken: a full disk says so here, and not by a signal while writing the map."""
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=tuple(shape)).flush()
    with open(path, "rb+") as file:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
