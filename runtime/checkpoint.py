"""Checkpoints: checkpoints/step_N/ with model.safetensors, ema.safetensors, optimizer.pt and
state.json, which holds the sha256 of the others and of its own content. A directory under that name
is whole: it was written aside, synced and renamed."""

import hashlib
import io
import json
import logging
import pickle
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from runtime.errors import UserError
from runtime.files import sha256, write_directory

MODEL, EMA, OPTIMIZER, STATE = "model.safetensors", "ema.safetensors", "optimizer.pt", "state.json"
Which = Literal["ema", "model", "average"]  # of the sets of weights, as settings say it
FILES: dict[Which, str] = {"ema": EMA, "model": MODEL}  # the third is of a whole run
OWN = "sha256 of the rest"  # in state.json
LISTED = 8  # names in a message
MEND_ALL = (
    "put back a copy of one; or train.py's command of this run with run.restart=true begins it "
    "again, and puts aside what there is."
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a run was.

    Args:
        pending: stopped between the step and its evaluation.
        validation_loss, validation_kid: of its evaluation there, None where there was none.
        held_out_grid: which images that was taken on.
        seconds: trained.
        rows: of metrics.jsonl.
        window: the summed loss since the last of these, and of how many steps.
    """

    pending: bool = False
    validation_loss: float | None = None
    validation_kid: float | None = None
    held_out_grid: int | None = None
    seconds: float = 0.0
    rows: int = 0
    window: tuple[float, int] = (0.0, 0)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk.

    Args:
        config: of the run.
        classes: their names.
        digests: the sha256 of each file.
    """

    path: Path
    step: int
    config: dict[str, Any]
    classes: list[str]
    digests: dict[str, str]
    progress: Progress = Progress()

    def damage(self, *names: str) -> str | None:
        """What is wrong with these files, or with any, or None where every sha256 is right."""
        for name in names or self.digests:
            file = self.path / name
            if not file.is_file():
                return f"{file} is missing"
            if sha256(file) != self.digests[name]:
                return f"{file} is damaged: its sha256 is not the one in {STATE}"
        return None

    def weights(self, which: str) -> dict[str, Tensor]:
        """The tensors of the model or its EMA, by their names.

        Raises:
            UserError: where the file is damaged.
        """
        if damage := self.damage(which):
            raise UserError(f"{damage}. {_mend(self.path)}")
        return safetensors.torch.load_file(self.path / which)

    def optimizer(self) -> dict[str, Any]:
        """The state of the optimizer and of what remembers losses.

        Raises:
            UserError: where the file holds anything but tensors and plain values, as it is foreign
                input.
        """
        try:
            return torch.load(self.path / OPTIMIZER, weights_only=True, map_location="cpu")
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError(
                f"{self.path / OPTIMIZER} is no optimizer of this project: "
                f"{str(error).splitlines()[0]}"
            ) from error


def open_checkpoint(path: Path) -> Checkpoint:
    """One checkpoint directory.

    Raises:
        UserError: where it is none, or its state.json is damaged.
    """
    try:
        state = json.loads((path / STATE).read_text())
        if not isinstance(state, dict) or not {"step", "sha256", "config"} <= state.keys():
            raise ValueError("it lacks step, sha256 or config")
        if state.pop(OWN, None) != _digest(state):
            raise ValueError("its content does not have the sha256 that it says")
    except (OSError, ValueError) as error:
        raise UserError(f"{path / STATE} is damaged or not of this project: {error}") from error
    progress = Progress(**{f.name: state[f.name] for f in fields(Progress) if f.name in state})
    return Checkpoint(
        path, state["step"], state["config"], state.get("classes", []), state["sha256"], progress
    )


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def all_checkpoints(directory: Path) -> list[Checkpoint]:
    """The checkpoints in directory, oldest first; one whose state.json is damaged is named and left
    out. The other files are not read yet."""
    found = []
    for step in sorted(int(p.name[5:]) for p in directory.glob("step_*") if p.name[5:].isdigit()):
        try:
            found.append(open_checkpoint(directory / f"step_{step}"))
        except UserError as error:
            log.warning(error)
    return found


Rank = Callable[[Sequence[Checkpoint]], Sequence[Checkpoint]]  # oldest first -> best first


def first_whole(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """The first undamaged one; a damaged one is named and left where it is."""
    for left, checkpoint in zip(reversed(range(len(checkpoints))), checkpoints, strict=True):
        damage = checkpoint.damage()
        if damage is None:
            return checkpoint
        log.warning(damage + ("; going on to the next checkpoint" if left else ""))
    return None


def _mend(path: Path) -> str:
    """What to do where this very checkpoint was asked for and is damaged."""
    return f"Use another checkpoint of that run: {path.parent}/step_*; or put back a copy of it."


def all_damaged(directory: Path, count: int) -> str:
    """What is told where none of the checkpoints of a directory is whole."""
    return f"{directory}: none of its {count} checkpoints can be read, as said above"


def latest(directory: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint."""
    return first_whole(all_checkpoints(directory)[::-1])


def find(path: str | Path, rank: Rank = lambda checkpoints: []) -> Checkpoint:
    """The checkpoint that a user means: a checkpoint directory, or of a run directory, or of a
    directory of checkpoints, the first by rank, or the newest where it names none.

    Raises:
        UserError: where there is none, or none is whole.
    """
    path = Path(path).expanduser()
    if (path / STATE).is_file():
        try:
            return open_checkpoint(path)
        except UserError as error:
            raise UserError(f"{error}. {_mend(path)}") from error
    inside = path / "checkpoints"
    directory = inside if inside.is_dir() else path
    checkpoints = all_checkpoints(directory)
    in_order = {c.path: c for c in [*rank(checkpoints), *reversed(checkpoints)]}
    if found := first_whole(list(in_order.values())):
        return found
    if there := len(list(directory.glob("step_*"))):
        raise UserError(f"{all_damaged(directory, there)}: {MEND_ALL}")
    raise UserError(
        f"{path}: no checkpoint there. {told_below(path)}Give a run directory "
        "(runs/EXPERIMENT/NAME) or one of its checkpoints/step_N."
    )


def told_below(path: Path) -> str:
    """What is in a folder that is too high: the runs of an experiment, the experiments of
    run.root, or what diffusers' training scripts leave; "" where there is none of these."""
    kinds = {
        "runs": ("*/checkpoints", 1),
        "experiments": ("*/*/checkpoints", 2),
        "diffusers' checkpoints": ("checkpoint-*/unet*", 1),
    }
    for kind, (pattern, up) in kinds.items():
        if found := sorted({str(p.parents[up - 1]) for p in path.glob(pattern)}):
            more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
            return f"There are {kind} in it: {', '.join(found[:LISTED])}{more}. "
    return ""


def save(
    reached: Checkpoint,
    model: dict[str, Tensor],
    ema: dict[str, Tensor],
    optimizer: dict[str, Any],
) -> None:
    """Writes the directory of a checkpoint, whose digests are made here."""
    buffer = io.BytesIO()
    torch.save(optimizer, buffer)
    contents = {MODEL: _packed(model), EMA: _packed(ema), OPTIMIZER: buffer.getvalue()}
    state = {
        "step": reached.step,
        **asdict(reached.progress),
        "classes": reached.classes,
        "config": reached.config,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    contents[STATE] = json.dumps(state | {OWN: _digest(state)}, indent=1).encode()
    write_directory(reached.path, contents, "set run.keep_last lower")


def _packed(tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save({k: v.detach().contiguous() for k, v in tensors.items()})
