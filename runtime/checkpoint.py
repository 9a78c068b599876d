"""Checkpoints: checkpoints/step_N/ with model.safetensors, ema.safetensors, optimizer.pt and state.json, which holds the sha256 of
the others and of its own content. A directory under that name is whole: it was written aside, synced and renamed."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from runtime.errors import UserError
from runtime.files import remove_directory, sha256, write_directory

MODEL, EMA, OPTIMIZER, STATE = "model.safetensors", "ema.safetensors", "optimizer.pt", "state.json"
Which = Literal["ema", "model"]  # of the two sets of weights, as settings say it
FILES: dict[Which, str] = {"ema": EMA, "model": MODEL}
OWN = "sha256 of the rest"  # in state.json
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
        """Raises UserError where the file holds anything but tensors and plain values: it is foreign input."""
        try:
            return torch.load(self.path / OPTIMIZER, weights_only=True, map_location="cpu")
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError(f"{self.path / OPTIMIZER} is no optimizer of this project: {str(error).splitlines()[0]}") from error


def open_checkpoint(path: Path) -> Checkpoint:
    """One checkpoint directory. Raises UserError where it is none, or its state.json is damaged."""
    try:
        state = json.loads((path / STATE).read_text())
        if not isinstance(state, dict) or not {"step", "sha256", "config"} <= state.keys():
            raise ValueError("it lacks step, sha256 or config")
        if state.pop(OWN, None) != _digest(state):
            raise ValueError("its content does not have the sha256 that it says")
    except (OSError, ValueError) as error:
        raise UserError(f"{path / STATE} is damaged or not of this project: {error}") from error
    return Checkpoint(path, state)


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def all_checkpoints(directory: Path) -> list[Checkpoint]:
    """The checkpoints in directory, oldest first; one whose state.json is damaged is named and left out. The other files are not
    read yet."""
    found = []
    for step in sorted(int(p.name[5:]) for p in directory.glob("step_*") if p.name[5:].isdigit()):
        try:
            found.append(open_checkpoint(directory / f"step_{step}"))
        except UserError as error:
            log.warning("%s", error)
    return found


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
    state = state | {"sha256": digests}
    contents[STATE] = json.dumps(state | {OWN: _digest(state)}, indent=1).encode()
    write_directory(directory / f"step_{state['step']}", contents)


def prune(directory: Path, keep_last: int) -> None:
    """Removes all but the newest keep_last and the best, of each kind of images that the held-out loss was taken on."""
    checkpoints = all_checkpoints(directory)
    alike: dict[int | None, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        alike.setdefault(checkpoint.state.get("held_out_grid"), []).append(checkpoint)
    kept = {c.path for c in [*checkpoints[-keep_last:], *(best for found in alike.values() for best in ranked(found)[:1])]}
    for checkpoint in checkpoints:
        if checkpoint.path not in kept:
            remove_directory(checkpoint.path)


def ranked(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Those that were judged as the newest one was, the best first: of lowest validation loss, or KID where the newest one's config has
    run.best_by=kid. Of equals the oldest."""
    if not checkpoints:
        return []
    by = f"validation_{checkpoints[-1].state['config'].get('run', {}).get('best_by', 'loss')}"  # older runs do not say it
    alike = [c for c in checkpoints if c.state.get("held_out_grid") == checkpoints[-1].state.get("held_out_grid")]
    return sorted((c for c in alike if c.state.get(by) is not None), key=lambda c: c.state[by])


def best(path: str | Path) -> Checkpoint:
    """The best of the kept checkpoints of a run directory, or a directory of checkpoints, by the run's own rule; the newest where none
    was judged; one checkpoint is itself. A damaged one is named and passed over. Raises UserError where there is none."""
    path = Path(path).expanduser()
    if (path / STATE).is_file():
        return open_checkpoint(path)
    checkpoints = all_checkpoints(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    damages = []
    for checkpoint in {c.path: c for c in [*ranked(checkpoints), *reversed(checkpoints)]}.values():
        damage = checkpoint.damage()
        if damage is None:
            for line in damages:
                log.warning("%s; taking the next best checkpoint.", line)
            return checkpoint
        damages.append(damage)
    if damages:
        raise UserError(f"{path}: no checkpoint is whole:\n  " + "\n  ".join(damages))
    raise UserError(f"{path}: no checkpoint there. Give a run directory (runs/EXPERIMENT/NAME).")
