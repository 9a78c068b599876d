"""Which checkpoints of a run are removed."""

from pathlib import Path

from runtime.checkpoint import all_checkpoints
from runtime.files import remove_directory
from training.best_checkpoint import rank_checkpoints


def prune_checkpoints(directory: Path, keep_last: int) -> None:
    """Removes all but the newest keep_last and the best, of each kind of images that the held-out
    loss was taken on."""
    checkpoints = all_checkpoints(directory)
    kept = {c.path for c in checkpoints[-keep_last:]}
    newest_of_grid = {c.progress.held_out_grid: k for k, c in enumerate(checkpoints, 1)}
    for k in newest_of_grid.values():
        kept |= {best.path for best in rank_checkpoints(checkpoints[:k])[:1]}
    for checkpoint in checkpoints:
        if checkpoint.path not in kept:
            remove_directory(checkpoint.path)
