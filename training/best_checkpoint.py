"""Which checkpoint of a run is the best: that of lowest validation loss, or KID where run.best_by
says so."""

from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from runtime.checkpoint import STATE, Checkpoint, all_checkpoints, first_whole, open_checkpoint
from runtime.errors import UserError


def rank_checkpoints(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Those that were evaluated as the newest one was, the best first, of equals the oldest."""
    if not checkpoints:
        return []
    newest = checkpoints[-1]
    # older runs do not say it
    by = attrgetter(f"progress.validation_{newest.config.get('run', {}).get('best_by', 'loss')}")
    grid = newest.progress.held_out_grid
    return sorted(
        (c for c in checkpoints if c.progress.held_out_grid == grid and by(c) is not None), key=by
    )


def find_best_checkpoint(path: str | Path) -> Checkpoint:
    """The best of the kept checkpoints of a run directory, or of a directory of checkpoints; the
    newest where none was evaluated; one checkpoint is itself. A damaged one is named and passed
    over.

    Raises:
        UserError: where there is none.
    """
    path = Path(path).expanduser()
    if (path / STATE).is_file():
        return open_checkpoint(path)
    inside = path / "checkpoints"
    checkpoints = all_checkpoints(inside if inside.is_dir() else path)
    best_first = {c.path: c for c in [*rank_checkpoints(checkpoints), *reversed(checkpoints)]}
    if found := first_whole(best_first.values(), "taking the next best checkpoint"):
        return found
    raise UserError(
        f"{path}: no checkpoint there is whole. Give a run directory (runs/EXPERIMENT/NAME)."
    )
