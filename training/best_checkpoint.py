"""Which checkpoint of a run is the best: that of lowest validation loss, or KID where run.best_by
says so."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from runtime.checkpoint import STATE, Checkpoint, all_checkpoints, open_checkpoint
from runtime.errors import UserError
from runtime.files import remove_directory

log = logging.getLogger(__name__)


def rank_checkpoints(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Those that were evaluated as the newest one was, the best first, of equals the oldest."""
    if not checkpoints:
        return []
    newest = checkpoints[-1]
    # older runs do not say it
    by = f"validation_{newest.config.get('run', {}).get('best_by', 'loss')}"
    scored = [
        c
        for c in checkpoints
        if c.progress.held_out_grid == newest.progress.held_out_grid
        and getattr(c.progress, by) is not None
    ]
    return sorted(scored, key=lambda c: getattr(c.progress, by))


def find_best_checkpoint(path: str | Path) -> Checkpoint:
    """The best of the kept checkpoints of a run directory, or of a directory of checkpoints; the
    newest where none was evaluated; one checkpoint is itself. A damaged one is named and passed
    over. Raises UserError where there is none."""
    path = Path(path).expanduser()
    if (path / STATE).is_file():
        return open_checkpoint(path)
    inside = path / "checkpoints"
    checkpoints = all_checkpoints(inside if inside.is_dir() else path)
    damages: list[str] = []
    for checkpoint in {
        c.path: c for c in [*rank_checkpoints(checkpoints), *reversed(checkpoints)]
    }.values():
        damage = checkpoint.damage()
        if damage is None:
            for line in damages:
                log.warning("%s; taking the next best checkpoint.", line)
            return checkpoint
        damages.append(damage)
    if damages:
        raise UserError(f"{path}: no checkpoint is whole:\n  " + "\n  ".join(damages))
    raise UserError(f"{path}: no checkpoint there. Give a run directory (runs/EXPERIMENT/NAME).")


def prune_checkpoints(directory: Path, keep_last: int) -> None:
    """Removes all but the newest keep_last and the best, of each kind of images that the held-out
    loss was taken on."""
    checkpoints = all_checkpoints(directory)
    by_grid: dict[int | None, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        by_grid.setdefault(checkpoint.progress.held_out_grid, []).append(checkpoint)
    kept = {c.path for c in checkpoints[-keep_last:]}
    kept |= {best.path for alike in by_grid.values() for best in rank_checkpoints(alike)[:1]}
    for checkpoint in checkpoints:
        if checkpoint.path not in kept:
            remove_directory(checkpoint.path)
