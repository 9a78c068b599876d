"""Which source a target starts from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.pretrained import Trained
from runtime import checkpoint
from runtime.errors import UserError
from transfer.trained import open_plain, plain

SMALL_GPU_HOURS = 0.2  # a missing source up to here is trained without being asked
FREE = ("in_channels", "out_channels", "classes", "dropout", "gradient_checkpointing")  # of a model: the weights fit all the same


@dataclass(frozen=True)
class Source:
    """Where a target's weights come from: a checkpoint that is there, or the run of an experiment that may still have to be
    trained. identity: what it adds to the identity of the target's run, no path among it."""

    name: str
    identity: dict[str, Any]
    checkpoint: Trained | None = None
    config: dict[str, Any] | None = None
    directory: Path | None = None

    @property
    def own(self) -> dict[str, Any]:
        """Its own config."""
        return self.checkpoint.state["config"] if self.checkpoint else self.config

    def found(self) -> Trained | None:
        """The checkpoint to start from: of an experiment, the one at its last step, or a later one where the run was continued."""
        if self.checkpoint:
            return self.checkpoint
        steps = self.config["train"]["steps"]
        candidates = [c for c in checkpoint.all_checkpoints(self.directory / "checkpoints") if c.step >= steps and not c.state["pending"]]
        return plain(candidates[0]) if candidates else None

    def must_be_trainable(self, asked: bool) -> None:
        """Raises UserError, with the command and the hours, where a missing source is too large to train unasked."""
        hours = self.config["gpu_hours"]
        if hours > SMALL_GPU_HOURS and not asked:
            raise UserError(
                f"source.from={self.name}: no finished run of it in {self.directory.parent}, and training it takes about {hours:g} "
                f"GPU-hours. Train it with\n  python train.py +experiment={self.name}\nor in this run with source.train=true, or give "
                "source.from= a run directory or a checkpoint.")


def from_pretrained(name: str, weights: checkpoint.Which, config: dict[str, Any]) -> Source:
    """A source that is there. config: the target's, whose settings a bare file of weights is read with."""
    found = open_plain(name, config)
    return Source(name, {"from": f"sha256 {found.state['sha256'][checkpoint.FILES[weights]][:16]}"}, checkpoint=found)


def other_settings(target: dict[str, Any], source: dict[str, Any]) -> list[str]:
    """The settings of the source's model that decide which tensors fit and that the target's has otherwise, as overrides."""
    return [f"model.{key}={_short(target.get(key))} -> {_short(source.get(key))}" for key in (target | source)
            if key not in FREE and target.get(key) != source.get(key)]


def _short(value: Any) -> str:
    return json.dumps(value).replace(" ", "").strip('"')
