"""Which checkpoint of a run is the best: that of lowest validation loss, or KID where run.best_by
says so."""

from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from runtime.checkpoint import Checkpoint, find


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
    return find(path, rank_checkpoints)
