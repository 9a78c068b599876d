"""The images of a run: decoded, without what cannot be used, and the subset that it trains on."""

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.image_reader import ImageReader
from data.memory_map import open_memory_map
from data.settings import DataSettings
from data.splits import SPLITS, draw_folds, draw_subset, take_validation
from runtime.errors import UserError

log = logging.getLogger("data")


@dataclass(frozen=True)
class Dataset:
    """Images in memory or in a map, with their labels and splits.

    Attributes:
        images: [N, H, W, C] uint8.
        labels: [N] int64.
        splits: rows of images by split.
        classes: names of the labels, or empty.
        groups: [N] int64, the same for images of one patient, or of whatever else the reader never
            splits. None: each image is alone.
    """

    images: np.ndarray
    labels: np.ndarray
    splits: dict[str, np.ndarray]
    classes: Sequence[str]
    groups: np.ndarray | None = None


def open_dataset(settings: DataSettings, reader: ImageReader, seed: int, cache: Path) -> Dataset:
    """Decodes what is not decoded yet, takes out what cannot be used and draws the training subset.

    Args:
        seed: draws the subset where settings.subset_seed is null.
        cache: the folder of the memory maps.

    Raises:
        UserError: where no image is left to train on, or fewer than settings.n_train.
    """
    check_subset(settings, len(reader.splits["train"]), reader)  # before hours of decoding
    images, broken = open_memory_map(reader, settings, cache)
    splits = {
        split: np.setdiff1d(np.asarray(rows, dtype=np.int64), list(broken))
        for split, rows in reader.splits.items()
    }
    if not len(splits["train"]):
        why = f"; {len(broken)} cannot be used." if broken else "."
        raise UserError(f"{reader.name}: no image is left to train on{why}")
    splits |= drawn_of_train(settings, reader, splits["train"], seed)
    train = splits["train"]
    labels = np.asarray(reader.labels, dtype=np.int64)
    if lost := np.setdiff1d(labels[reader.splits["train"]], labels[train]).tolist():
        names = ", ".join(reader.classes[k] for k in lost)
        log.warning(f"{reader.name}: none of the {len(train)} training images is of class {names}")
    return Dataset(images, labels, splits, reader.classes, group_numbers(reader))


def group_numbers(reader: ImageReader) -> np.ndarray | None:
    """See Dataset.groups."""
    number = {group: k for k, group in enumerate(dict.fromkeys(reader.groups or ()))}
    if reader.groups is None or len(number) == len(reader):
        return None
    return np.array([number[group] for group in reader.groups], np.int64)


def drawn_of_train(
    settings: DataSettings, reader: ImageReader, train: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """The splits that settings draw out of the rows to train on: the test where there is a fold, of
    the others n_train, and of these the validation images. Raises UserError where it cannot be."""
    groups = range(len(reader)) if reader.groups is None else reader.groups
    splits: dict[str, np.ndarray] = {}
    if settings.fold is not None:
        k, count = settings.fold
        if given := len(reader.splits["test"]):
            raise UserError(
                f"data.fold={[k, count]}: {reader.name} has {given} test images already. "
                "data.test=0 draws none; where a folder is the test, leave data.fold out."
            )
        folds = draw_folds(train, reader.labels, groups, count)
        if not all(map(len, folds)):
            raise UserError(
                f"data.fold={[k, count]}: the {len(train)} images of {reader.name} do not fill "
                f"{count} folds: fewer folds, or more images or patients."
            )
        splits["test"], train = folds[k], np.setdiff1d(train, folds[k])
    check_subset(settings, len(train), reader)
    if settings.n_train is not None:
        draw = seed if settings.subset_seed is None else settings.subset_seed
        train = draw_subset(train, settings.n_train, draw, "n_train")
    splits["train"] = train
    if settings.validation_of_train is not None:
        share = settings.validation_of_train
        splits["train"], splits["validation"] = take_validation(train, reader.labels, groups, share)
    return splits


def check_subset(settings: DataSettings, images: int, reader: ImageReader) -> None:
    """Raises UserError where data.n_train of so many images cannot be drawn."""
    n = settings.n_train
    if n is None or 1 <= n <= images:
        return
    others = [
        f"{len(reader.splits[split])} are for {split}"
        for split in SPLITS[1:]
        if reader.splits[split]
    ]
    left = f" ({len(reader)} in all; {' and '.join(others)})" if others else ""
    cure = f"set data.n_train={images} or less, or null for all"
    drawn = "validation" in inspect.signature(settings.reader).parameters
    if drawn and others and images < n <= len(reader):
        cure += "; data.validation=0 data.test=0 leaves all that is not in folders of its own"
    raise UserError(f"data.n_train={n}: {reader.name} has {images} training images{left}: {cure}.")
