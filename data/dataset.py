"""A source decoded once into a uint8 memory map, whose name is a hash of what made it, and the subsets that runs use."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from data.file_cache import Changed, FileCache
from data.image_reader import ImageReader, TooSmall, hash_of, to_array
from runtime.build import Settings, make
from runtime.errors import UserError
from runtime.files import Damaged, locked, put_aside, raise_if_full, read_sealed, sync_directory, write_sealed
from runtime.log import recorded
from runtime.randomness import generator

DECODER = 3  # raise when to_array changes what it makes of a file
SHOWN = 20  # files that a message names
BLOCK = 1 << 24  # bytes of a map that have a checksum of their own

_verified: set[tuple[Any, ...]] = set()  # maps whose bytes this process has found to be right: path, inode, size, times

log = logging.getLogger("data")


@dataclass(frozen=True)
class Dataset:
    """images: [N, H, W, C] uint8. labels: [N] int64. splits: rows of images by split. classes: names, or empty."""

    images: np.ndarray
    labels: np.ndarray
    splits: dict[str, np.ndarray]
    classes: Sequence[str]


@dataclass(frozen=True)
class DataSettings(Settings):
    """reader: of the images. size: [height, width] or one number for both. channels: 1 (colour becomes luma, ITU-R 601) or 3 (gray
    is repeated). flip: mirror at random while training; off where left and right differ, as in radiographs. n_train: train on so
    many images; null for all. subset_seed: draws them; null is the run's seed, so that each seed of a run sees others. upscale:
    enlarge images that are smaller than size. resample: the filter that scales, antialiased in each case. skip_broken: leave out what
    is broken, foreign or too small, instead of stopping."""

    reader: Callable[[FileCache], ImageReader]
    size: int | Sequence[int]
    channels: int
    flip: bool
    n_train: int | None = None
    subset_seed: int | None = None
    upscale: bool = False
    resample: Literal["lanczos", "bicubic", "hamming", "bilinear", "box"] = "lanczos"
    skip_broken: bool = False

    def __post_init__(self):
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, not {self.channels}.")
        if len(self.height_width) != 2 or min(self.height_width) < 1:
            raise ValueError(f"size must be one positive number or [height, width], not {self.size}.")
        if self.subset_seed is not None and self.n_train is None:
            raise ValueError(f"subset_seed={self.subset_seed} draws n_train of the images, and n_train is null: set n_train too, or leave "
                             "subset_seed at null.")

    @property
    def height_width(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)

    def open_reader(self, cache: Path) -> ImageReader:
        """cache: a folder, in which it is kept what was found out about files."""
        return make(self.reader, "data", FileCache(cache / "memory"))


OWN_KEYS = {field.name for field in fields(DataSettings)} - {"reader"}  # of section data; others are the reader's


def open_dataset(settings: DataSettings, source: ImageReader, seed: int, cache: Path) -> Dataset:
    """Decodes what is not decoded yet, takes out what cannot be used and draws the training subset."""
    _check_subset(settings, source.splits["train"], source)  # before hours of decoding
    images, broken = decoded(source, settings, cache)
    splits = {split: np.asarray([row for row in rows if row not in broken], dtype=np.int64) for split, rows in source.splits.items()}
    train = splits["train"]
    if not len(train):
        raise UserError(f"{source.name}: no image is left to train on" + (f"; {len(broken)} cannot be used." if broken else "."))
    _check_subset(settings, train, source)
    if settings.n_train is not None:
        draw = seed if settings.subset_seed is None else settings.subset_seed
        order = torch.randperm(len(train), generator=generator(draw, "n_train")).numpy()
        train = np.sort(train[order[: settings.n_train]])
    labels = np.asarray(source.labels, dtype=np.int64)
    if lost := sorted(set(labels[source.splits["train"]].tolist()) - set(labels[train].tolist())):
        log.warning("%s: none of the %d training images is of class %s", source.name, len(train),
                    ", ".join(source.classes[k] for k in lost))
    return Dataset(images, labels, splits | {"train": train}, source.classes)


def _check_subset(settings: DataSettings, train: Sequence[int], source: ImageReader) -> None:
    if settings.n_train is not None and not 1 <= settings.n_train <= len(train):
        raise UserError(f"data.n_train={settings.n_train}: {source.name} has {len(train)} training images.")


def decoded(source: ImageReader, settings: DataSettings, cache: Path) -> tuple[np.ndarray, dict[int, str]]:
    """The memory map of a source, and why which of its items could not be used (none of them without skip_broken). Built first where
    it is missing or damaged; runs that need the same one wait for a single builder. Raises Changed, and keeps nothing, where a file is
    not what the source's fingerprint is of."""
    key = hash_of(DECODER, source.fingerprint, settings.height_width, settings.channels, settings.upscale, settings.resample)[:16]
    path, built = cache / f"{key}.npy", False
    about = _known(path, source, settings)
    if about is None:
        with locked(cache / f"{key}.lock"):
            about = _known(path, source, settings, put_aside)
            if about is None:
                about, built = _decode(source, settings, path), True
    for line in [] if built else about["said"]:  # such as a range that was measured
        log.info("%s", line)
    broken = _broken(about)
    if broken:
        log.warning("%s\n(remembered in %s; delete it to try these again)", _listed(source, broken, "left out"), path.with_suffix(".json"))
    return np.load(path, mmap_mode="r"), broken


def _known(path: Path, source: ImageReader, settings: DataSettings,
           tell: Callable[[Path, str], object] = lambda path, why: None) -> dict[str, Any] | None:
    """What is known of the map, or None where it has to be built. One with gaps is built anew for a run that wants none: what it
    takes to read them, a decoder say, may have been installed since; so is one of a start that could not read how many frames there
    are. tell: what to do with a file that is damaged."""
    record = path.with_suffix(".json")
    if not path.exists() or not record.exists():
        return None
    try:
        about = read_sealed(record)
    except Damaged as error:
        tell(record, str(error))
        return None
    if about["shape"][0] != len(source) or (_broken(about) and not settings.skip_broken):
        return None
    if damage := _damage(path, about):
        tell(path, damage)
        return None
    return about


def _damage(path: Path, about: dict[str, Any]) -> str | None:
    """What is wrong with the bytes of a map, or None. They are read once a process: it costs 0.6 s a GB of a core."""
    stat = path.stat()
    stamp = path.absolute(), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    if stamp in _verified:
        return None
    try:
        found = _checksums(path)
    except OSError as error:  # a bad sector
        return f"{path} cannot be read ({error.strerror or error})"
    if stat.st_size != about["bytes"]:
        return f"{path} is damaged: it has {stat.st_size} bytes of {about['bytes']}"
    if wrong := [k for k, (ours, theirs) in enumerate(zip(found, about["crc32"], strict=True)) if ours != theirs]:
        return (f"{path} is damaged: {len(wrong)} of its {len(found)} blocks of {BLOCK >> 20} MiB do not have their checksum, the "
                f"first at byte {wrong[0] * BLOCK}")
    _verified.add(stamp)
    return None


def _checksums(path: Path) -> list[int]:
    """crc32 of each block of a file: against accidents, and three times as fast as sha256."""
    with open(path, "rb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        blocks = range(0, os.fstat(file.fileno()).st_size, BLOCK)
        return list(pool.map(lambda start: zlib.crc32(os.pread(file.fileno(), BLOCK, start)), blocks))


def _broken(about: dict[str, Any]) -> dict[int, str]:
    return {int(item): reason for item, reason in about["broken"].items()}


def _decode(source: ImageReader, settings: DataSettings, path: Path) -> dict[str, Any]:
    aside = path.with_suffix(".partial")
    shape = (len(source), *settings.height_width, settings.channels)
    failures: dict[int, UserError] = {}

    def decode(item: int) -> np.ndarray | None:
        try:
            return to_array(source.read_image(item), settings.height_width, settings.channels, settings.upscale, settings.resample)
        except Changed:
            raise
        except UserError as error:
            failures[item] = error

    try:
        _reserve(aside, shape)
        images = np.lib.format.open_memmap(aside, mode="r+")
        with recorded() as said, ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in tqdm(range(0, len(source), 256), desc=f"decoding {source.name}", unit="x256", delay=2):
                items = range(start, min(start + 256, len(source)))
                for item, image in zip(items, pool.map(decode, items), strict=True):
                    if image is not None:
                        images[item] = image
        getattr(source, "check_files", lambda: None)()
        images.flush()
        if not failures or settings.skip_broken:
            with open(aside, "rb+") as file:
                os.fsync(file.fileno())
            about = {"source": source.name, "shape": shape, "broken": {item: str(failures[item]) for item in sorted(failures)},
                     "said": [record.getMessage() for record in said if record.name == log.name],
                     "bytes": aside.stat().st_size, "crc32": _checksums(aside)}
            os.replace(aside, path)  # before what says that it is whole: there may be one with gaps
            sync_directory(path.parent)
            write_sealed(path.with_suffix(".json"), about)
            sync_directory(path.parent)
            return about
    except Exception as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise_if_full(error, path)
        raise
    aside.unlink()
    small = any(isinstance(error, TooSmall) for error in failures.values())
    raise UserError(_listed(source, {item: str(error) for item, error in failures.items()}, "cannot be used")
                    + "\nMend or remove them, or leave them out with data.skip_broken=true."
                    + (" What is too small is enlarged with data.upscale=true; or choose a smaller data.size." if small else ""))


def _listed(source: ImageReader, broken: dict[int, str], verdict: str) -> str:
    name = getattr(source, "item_name", lambda item: f"image {item}")
    shown = [f"  {name(item)}: {broken[item]}" for item in sorted(broken)[:SHOWN]]
    return (f"{len(broken)} of {len(source)} images of {source.name}: {verdict}\n" + "\n".join(shown)
            + (f"\n  ... and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""))


def _reserve(path: Path, shape: Sequence[int]) -> None:
    """Creates the array's file with its space taken: a full disk says so here, and not by a signal while writing the map."""
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=tuple(shape)).flush()
    with open(path, "rb+") as file:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
