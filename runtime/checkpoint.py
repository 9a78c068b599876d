"""Checkpoints: checkpoints/step_N/ with model.safetensors, ema.safetensors, optimizer.pt and state.json, which holds the sha256 of
the others. A directory under that name is whole: it was written aside, synced and renamed."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from runtime.errors import UserError
from runtime.files import remove_directory, sha256, write_directory

MODEL, EMA, OPTIMIZER, STATE = "model.safetensors", "ema.safetensors", "optimizer.pt", "state.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk. state: what state.json says, the config of the run among it."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return self.state["step"]

    def damage(self, names: list[str] | None = None) -> str | None:
        """What is wrong with the files, or None where every sha256 is right."""
        for name, expected in self.state["sha256"].items():
            if names and name not in names:
                continue
            file = self.path / name
            if not file.is_file():
                return f"{file} is missing"
            if sha256(file) != expected:
                return f"{file} is damaged: its sha256 is not the one in {STATE}"
        return None

    def weights(self, which: str = EMA) -> dict[str, Tensor]:
        """The tensors of the model or its EMA. Raises UserError where the file is damaged."""
        if damage := self.damage([which]):
            raise UserError(f"{damage}. Use another checkpoint of that run: {self.path.parent}/step_*.")
        return safetensors.torch.load_file(self.path / which)

    def optimizer(self) -> dict[str, Any]:
        return torch.load(self.path / OPTIMIZER, weights_only=True, map_location="cpu")


def open_checkpoint(path: Path) -> Checkpoint:
    """One checkpoint directory. Raises UserError where it is none."""
    try:
        state = json.loads((path / STATE).read_text())
        if not {"step", "sha256", "config"} <= state.keys():
            raise ValueError("it lacks step, sha256 or config")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no checkpoint of this project ({error}).") from error
    return Checkpoint(path, state)


def all_checkpoints(directory: Path) -> list[Checkpoint]:
    """The checkpoints in directory, oldest first. Their files are not read yet."""
    steps = sorted(int(p.name[5:]) for p in directory.glob("step_*") if p.name[5:].isdigit())
    return [open_checkpoint(directory / f"step_{step}") for step in steps]


def latest(directory: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint; a damaged one is named and left where it is."""
    for checkpoint in reversed(all_checkpoints(directory)):
        damage = checkpoint.damage()
        if damage is None:
            return checkpoint
        log.warning("%s; going back to the checkpoint before it.", damage)
    return None


def find(path: str | Path) -> Checkpoint:
    """The checkpoint that a user means: a checkpoint directory, or a run directory, whose newest one it then is."""
    path = Path(path).expanduser()
    if (path / STATE).is_file():
        return open_checkpoint(path)
    if (path / "checkpoints").is_dir() and (found := latest(path / "checkpoints")):
        return found
    raise UserError(f"{path}: no checkpoint there. Give a run directory (runs/EXPERIMENT/NAME) or one of its checkpoints/step_N.")


def save(directory: Path, model: dict[str, Tensor], ema: dict[str, Tensor], optimizer: dict, state: dict[str, Any]) -> None:
    """Writes directory/step_N, N = state["step"]."""
    buffer = io.BytesIO()
    torch.save(optimizer, buffer)
    contents: dict[str, bytes] = {
        MODEL: safetensors.torch.save({k: v.detach().contiguous() for k, v in model.items()}),
        EMA: safetensors.torch.save({k: v.detach().contiguous() for k, v in ema.items()}),
        OPTIMIZER: buffer.getvalue(),
    }
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    contents[STATE] = json.dumps(state | {"sha256": digests}, indent=1).encode()
    write_directory(directory / f"step_{state['step']}", contents)


def prune(directory: Path, keep_last: int) -> None:
    """Removes all but the newest keep_last and the one of lowest validation loss."""
    checkpoints = all_checkpoints(directory)
    judged = [c for c in checkpoints if c.state.get("validation_loss") is not None]
    best = min(judged, key=lambda c: c.state["validation_loss"], default=None)
    for checkpoint in checkpoints[:-keep_last]:
        if best is None or checkpoint.path != best.path:
            remove_directory(checkpoint.path)
