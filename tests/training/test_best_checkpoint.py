"""Which checkpoint is the best: by the run's own rule, whatever was pruned and damaged
meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from runtime import checkpoint
from runtime.checkpoint import MODEL
from runtime.errors import UserError
from runtime.files import remove_directory
from training.best_checkpoint import find_best_checkpoint
from training.prune_checkpoints import prune_checkpoints


def saved(
    directory: Path,
    step: int,
    loss: float | None = None,
    kid: float | None = None,
    by: str | None = None,
    grid: int | None = None,
) -> None:
    """by: run.best_by of its config; None for a run from before there was a choice. grid: of the
    held-out loss, likewise."""
    weights = {"a": torch.full((2,), float(step))}
    config = {"seed": 0} if by is None else {"run": {"best_by": by}}
    progress = checkpoint.Progress(validation_loss=loss, validation_kid=kid, held_out_grid=grid)
    path = directory / f"checkpoints/step_{step}"
    reached = checkpoint.Checkpoint(path, step, config, [], {}, progress)
    checkpoint.save(reached, weights, weights, {"state": {}})


def steps(directory: Path) -> list[int]:
    return [c.step for c in checkpoint.all_checkpoints(directory / "checkpoints")]


LOSSES = {1: 0.5, 2: 0.4, 3: 0.3, 4: 0.35, 12: 0.31}
KIDS = {1: 0.09, 2: -0.01, 3: 0.02, 4: 0.05, 12: -0.005}


@pytest.mark.parametrize(
    ("by", "best"), [(None, [1, 2, 3, 3, 3]), ("loss", [1, 2, 3, 3, 3]), ("kid", [1, 2, 2, 2, 2])]
)
def test_pruning_keeps_the_best_by_the_runs_rule(tmp_path, by, best):
    for step, expected in zip(LOSSES, best, strict=True):
        saved(tmp_path, step, LOSSES[step], KIDS[step], by)
        prune_checkpoints(tmp_path / "checkpoints", 1)
        assert steps(tmp_path) == sorted({expected, step})
        assert (
            find_best_checkpoint(tmp_path).step
            == find_best_checkpoint(tmp_path / "checkpoints").step
            == expected
        )


def test_losses_on_other_images_are_not_compared(tmp_path):
    """A run that was begun when the held-out loss looked at the first files alone, and went on with
    all of them."""
    for step, loss, grid in ((1, 0.01, None), (2, 0.5, 2), (3, 0.4, 2), (4, 0.45, 2)):
        saved(tmp_path, step, loss, by="loss", grid=grid)
        prune_checkpoints(tmp_path / "checkpoints", 1)
    assert find_best_checkpoint(tmp_path).step == 3 and steps(tmp_path) == [1, 3, 4]


def test_of_equals_the_oldest_is_the_best_as_it_was_while_the_run_went_on(tmp_path):
    for step, loss in ((1, 0.5), (2, 0.25), (3, 0.25)):
        saved(tmp_path, step, loss, by="loss")
    assert find_best_checkpoint(tmp_path).step == 2


def test_what_was_not_judged_is_not_the_best(tmp_path):
    for step, (loss, kid) in {
        1: (0.5, None),
        2: (0.1, None),
        3: (0.6, 0.4),
        4: (0.7, 0.3),
        5: (None, None),
    }.items():
        saved(tmp_path, step, loss, kid, "kid")
    assert find_best_checkpoint(tmp_path).step == 4
    prune_checkpoints(tmp_path / "checkpoints", 1)
    assert steps(tmp_path) == [4, 5]


def test_where_none_was_judged_the_best_is_the_newest(tmp_path):
    for step in (1, 2, 11):
        saved(tmp_path, step, 0.1 * step, None, "kid")
    assert find_best_checkpoint(tmp_path).step == 11
    prune_checkpoints(tmp_path / "checkpoints", 1)
    assert steps(tmp_path) == [11]


def test_a_damaged_best_is_named_and_the_next_best_taken(tmp_path, caplog):
    for step, loss in ((1, 0.2), (2, 0.1), (3, 0.3)):
        saved(tmp_path, step, loss, by="loss")
    file = tmp_path / "checkpoints/step_2" / MODEL
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert find_best_checkpoint(tmp_path).step == 1
    assert str(file) in caplog.text


def test_no_checkpoint_is_one_message(tmp_path):
    for empty in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="no checkpoint"):
            find_best_checkpoint(empty)
    saved(tmp_path, 3, 0.1)
    remove_directory(tmp_path / "checkpoints/step_3")
    with pytest.raises(UserError, match="no checkpoint"):
        find_best_checkpoint(tmp_path)
