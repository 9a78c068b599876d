"""What a row of benchmarks.contact is, and what several kinds of rows do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import Record
from runtime.errors import UserError
from runtime.files import discard, write_atomically
from runtime.image_grid import grid, png

TRAIN = Path(__file__).parent.parent / "train.py"


class Row(NamedTuple):
    """One thing that is tried.

    Args:
        run: (row, device, out, steps) -> what was found, and pictures with what they show.
        overrides: of train.py, or of evaluate.py for features; {out} is the folder of results.
        batch: of the training.
        formulas: of a file of weights, against_formulas' network, alpha_bar and settings.
        counts: images of an official set, to train, validate and test.
        archive: that images are unpacked from.
        again: (reader, number) -> that image [H, W, C] or [H, W] and its label, by another route.
    """

    name: str
    kind: str
    about: str
    run: Callable[[Row, torch.device, Path, int], Record]
    overrides: Sequence[str] = ()
    batch: int = 8
    formulas: dict[str, Any] = {}
    counts: Sequence[int] = ()
    archive: str = ""
    again: Callable[[Any, int], tuple[np.ndarray, int]] | None = None

    @property
    def file(self) -> str:
        return self.name.replace("/", "_")


def train(
    overrides: Sequence[str], row: Row, device: torch.device, out: Path, steps: int
) -> Record:
    """A few steps of train.py with these settings."""
    directory = out / "runs" / row.file
    discard(directory)
    few = [
        f"train.steps={steps}",
        f"train.batch_size={row.batch}",
        "train.warmup=0",
        "run.log_every=1",
        f"run.checkpoint_every={steps}",
        "run.held_out_draws=16",
        "run.samples=4",
        "sampler.steps=4",
        f"run.directory={directory}",
        f"run.cache={out}/cache",
        f"run.device={device}",
    ]
    output = out / f"{row.file}.log"
    print(f"training {steps} steps; what train.py says is in {output}", flush=True)
    with open(output, "w") as file:
        command = [sys.executable, str(TRAIN), *overrides, *few]
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        said = output.read_text().strip().splitlines()[-1:]
        raise UserError(f"train.py {' '.join(overrides)} ended with {code}: {' '.join(said)}")
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    discard(directory / "checkpoints")  # gigabytes
    steps_of = [r for r in rows if "images_per_second" in r]
    speed = sorted(r["images_per_second"] for r in steps_of)[len(steps_of) // 2]
    return {
        "training_steps": steps,
        "first_loss": steps_of[0]["loss"],
        "last_loss": steps_of[-1]["loss"],
        "ms_per_training_step": 1000 * row.batch / speed,
        "batch": row.batch,
    }


def show(path: Path, images: Tensor, columns: int) -> None:
    """images [N, H, W, C] uint8."""
    write_atomically(path, png(grid(images.cpu().numpy(), columns)))
