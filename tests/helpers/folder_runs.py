"""Tiny runs of a folder of images, by train.py in this process."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from config.overrides import composed
from runtime.checkpoint import EMA, MODEL
from tests.helpers import runs, transfers
from training import run as training_run

TINY = [
    "model.channels=8",
    "model.multipliers=[1,2]",
    "model.groups=4",
    "model.attention_levels=[]",
    "data.size=8",
    "data.channels=1",
    "train.batch_size=4",
    "train.warmup=0",
    "train.precision=fp32",
    "run.device=cpu",
    "run.held_out_draws=8",
    "run.samples=1",
    "run.checkpoint_every=2",
    "run.log_every=1",
    "sampler.steps=2",
    "schedule.steps=20",
]
STEPS = 4


def ramp(k: int, level: int) -> Image.Image:
    """A picture whose pixels depend on each other."""
    y, x = np.mgrid[0:10, 0:10]
    return Image.fromarray(np.clip(level + 9 * y + 2 * k * x, 0, 255).astype(np.uint8))


def images(root: Path) -> Path:
    return transfers.folders(
        root, {"bright": lambda k: ramp(k, 90), "dark": lambda k: ramp(k, 10)}, n=8
    )


def run(root: Path, *more: str, steps: int = STEPS, experiment: str = "custom") -> Path:
    """A tiny run of root/images by train.py, which keeps all below root -> its directory."""
    torch.set_num_threads(1)
    places = [
        "data=folder",
        f"data.path={root}/images",
        f"run.root={root}/runs",
        f"run.cache={root}/cache",
    ]
    raw = composed("train", [*TINY, *places, f"train.steps={steps}", *more])
    return training_run.train(raw | {"experiment": experiment})


def bits(directory: Path, step: int = STEPS) -> list[str]:
    return [runs.sha256(directory / f"checkpoints/step_{step}" / name) for name in (MODEL, EMA)]


def copied(root: Path, to: Path) -> Path:
    shutil.copytree(root, to, dirs_exist_ok=True)
    return to
