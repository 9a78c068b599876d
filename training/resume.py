"""What is left to do in a run's directory: nothing where it is finished, which the same command and
the same cell of a sweep then skip; else it goes on from its newest checkpoint."""

from runtime.checkpoint import Checkpoint


def is_finished(saved: Checkpoint, steps: int) -> bool:
    """So many steps are done, and what is due after the last."""
    return saved.step >= steps and not saved.progress.pending
