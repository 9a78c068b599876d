"""Published images: opened, counted, and compared with what stands in their files; and the
experiments that start from what is published."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.contact_row import Row, show, train
from benchmarks.record import Record
from config.overrides import composed
from data.dataset import open_dataset
from data.sources.medmnist import MedMnist
from runtime.download import published
from runtime.errors import UserError
from runtime.files import sha256, write_atomically
from training.config_checks import check_run_config
from training.pretrained_source import find_source
from training.run_directory import open_images


def try_images(row: Row, device: torch.device, out: Path, steps: int) -> Record:
    """Opens, counts, compares pixels with another way to read them, trains."""
    overrides = [line.format(out=out) for line in row.overrides]
    config = check_run_config(composed("train", [*overrides, f"run.cache={out}/cache"]))
    reader = open_images(config)
    counts = [len(rows) for rows in reader.splits.values()]
    if tuple(counts) != tuple(row.counts):
        raise UserError(f"{row.name}: {counts} images, and the official set has {row.counts}.")
    dataset = open_dataset(config.data, reader, 0, Path(config.run.cache))
    some = np.random.default_rng(0).choice(len(dataset.images), 64, replace=False)
    for item in some.tolist():
        image, label = row.again(reader, item)
        same = np.array_equal(dataset.images[item].squeeze(), image.squeeze())
        if not same or dataset.labels[item] != label:
            raise UserError(f"{reader.item_name(item)} is read otherwise than it stands there.")
    rows = dataset.splits["train"][np.linspace(0, counts[0] - 1, 16).astype(int)]
    show(out / f"{row.file}.png", torch.from_numpy(dataset.images[rows]), 8)
    found: Record = dict(zip(reader.splits, counts)) | {"classes": len(dataset.classes)}
    found |= {"pixels_compared": len(some)}
    found |= train(overrides, row, device, out, steps)
    pictures = {f"{row.file}.png": "16 images to train on, spread over all"}
    return {"found": found, "file": about_images(row, reader), "pictures": pictures}


def about_images(row: Row, reader: Any) -> Record:
    """Of a file that is read as it is; an archive was compared before it was unpacked."""
    if isinstance(reader, MedMnist):
        published()[reader.path.name].check(reader.path)
        return {"bytes": reader.path.stat().st_size, "sha256": sha256(reader.path)}
    known = published()[row.archive]
    return {"bytes": known.bytes, "sha256": known.sha256}


def by_numpy(reader: Any, item: int) -> tuple[np.ndarray, int]:
    """Image and label of MedMNIST: train, val and test one after the other."""
    arrays = _arrays(reader.path.resolve())
    for split in ("train", "val", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if item < len(images):
            return images[item], int(labels[item].item())
        item -= len(images)
    raise IndexError(item)


@cache
def _arrays(path: Path) -> dict[str, np.ndarray]:
    """All of a file at once: numpy reads a whole array each time that one is asked for."""
    return dict(np.load(path))


def by_pillow(reader: Any, item: int) -> tuple[np.ndarray, int]:
    """Of a folder of classes: the place of the name of the file's among them."""
    file = reader.files[item]
    classes = sorted(path.name for path in file.parent.parent.iterdir() if path.is_dir())
    return np.asarray(Image.open(file)), classes.index(file.parent.name)


def by_bytes(reader: Any, item: int) -> tuple[np.ndarray, int]:
    """Of CIFAR-10: 10,000 records a file, a label and the planes R, G and B."""
    start = item % 10_000 * 3073
    record = np.fromfile(reader.files[item // 10_000], np.uint8, 3073, offset=start)
    return record[1:].reshape(3, 32, 32).transpose(1, 2, 0), int(record[0])


def try_experiment(row: Row, device: torch.device, out: Path, steps: int) -> Record:
    """The first steps of a command that the README and conf/experiment name."""
    config = check_run_config(composed("train", list(row.overrides)))
    source, reader = find_source(config), open_images(config)
    for file in (source.weights.path, reader.path):
        published()[file.name].check(file)
    found = train(row.overrides, row, device, out, steps)
    picture = f"{row.file}.png"
    write_atomically(out / picture, (out / "runs" / row.file / "images.png").read_bytes())
    return {"found": found, "pictures": {picture: "its training images, as the network sees them"}}
