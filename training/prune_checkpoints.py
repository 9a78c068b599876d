"""Which checkpoints of a run are removed, and what keeps one: a file needed_step_N.txt beside it,
with a line for each run and file that stands on its weights."""

import contextlib
import logging
from pathlib import Path

from runtime.checkpoint import all_checkpoints
from runtime.files import remove_directory
from training.best_checkpoint import rank_checkpoints

log = logging.getLogger(__name__)


def prune_checkpoints(directory: Path, keep_last: int) -> None:
    """Removes all but the newest keep_last, those that something stands on, and the best, of each
    kind of images that the held-out loss was taken on."""
    checkpoints = all_checkpoints(directory)
    kept = {c.path for c in checkpoints[-keep_last:]}
    newest_of_grid = {c.progress.held_out_grid: k for k, c in enumerate(checkpoints, 1)}
    for k in newest_of_grid.values():
        kept |= {best.path for best in rank_checkpoints(checkpoints[:k])[:1]}
    for checkpoint in checkpoints:
        if checkpoint.path not in kept and not _needed(checkpoint.path).exists():
            remove_directory(checkpoint.path)


def keep_for(path: Path, needs: Path) -> None:
    """What is at path, where it is a checkpoint in its run, stays as long as its run is trained
    further, for `needs` stands on it. Several processes may call this at once."""
    if path.parent.name != "checkpoints" or not path.is_dir():
        return
    note, line = _needed(path), f"{needs.absolute()}\n"
    try:
        with contextlib.suppress(FileNotFoundError):
            if line in note.read_text(errors="replace"):
                return
        with open(note, "a", errors="surrogateescape") as file:
            file.write(line)
    except OSError as error:  # the source is another's
        log.warning(
            f"{note} cannot be written ({error.strerror}): should that run be trained further, it "
            f"may remove {path.name}, which {needs} stands on. A copy of {path} would last"
        )


def _needed(path: Path) -> Path:
    return path.with_name(f"needed_{path.name}.txt")
