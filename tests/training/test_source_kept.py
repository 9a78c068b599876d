"""A source that is trained further: what stands on its earlier weights stays whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.checkpoint import all_checkpoints
from runtime.errors import UserError
from tests.helpers import runs
from training.export_weights import export_difference
from training.prune_checkpoints import keep_for, prune_checkpoints
from transfer.trained_weights import load_weights

LONGER = ["train.steps=24", "run.checkpoint_every=6", "run.keep_last=1"]


def continued(source: Path) -> None:
    code, text = runs.train(source.parents[2], LONGER)
    assert code == 0 and "resuming at step 12" in text, text


def note_of(source: Path) -> Path:
    return source / "checkpoints/needed_step_12.txt"


def test_what_stands_on_a_source_stays_when_it_is_trained_further(undisturbed, tmp_path):
    source = runs.copied(undisturbed(), tmp_path / "source")
    code, text = runs.train(
        tmp_path / "target", [f"source.from={source}", "transfer=lora", "transfer.inject.0.rank=2"]
    )
    assert code == 0, text
    target, file = runs.directory_of(tmp_path / "target"), tmp_path / "small.safetensors"
    export_difference(str(target), file)
    assert note_of(source).read_text().splitlines() == [str(target), str(file)]
    before = load_weights(str(file)).load("ema")

    continued(source)
    assert 12 in runs.steps_of(source) and 18 not in runs.steps_of(source)
    after = load_weights(str(file)).load("ema")
    assert all(after[name].equal(tensor) for name, tensor in before.items())

    note_of(source).unlink()  # the way to let it go
    prune_checkpoints(source / "checkpoints", 1)
    assert 12 not in runs.steps_of(source)
    with pytest.raises(UserError, match=r"was trained further since, to step 24(.|\n)*source=PATH"):
        load_weights(str(file))


def test_a_source_that_may_only_be_read_is_told_of(undisturbed, tmp_path, caplog):
    source = runs.copied(undisturbed(), tmp_path)
    note_of(source).mkdir()  # as root may write anywhere
    keep_for(all_checkpoints(source / "checkpoints")[-1].path, Path("mine"))
    assert "cannot be written" in caplog.text and "A copy of" in caplog.text


def test_one_line_for_each_and_nothing_beside_what_is_no_run(undisturbed, tmp_path):
    source = runs.copied(undisturbed(), tmp_path)
    for name in ("a", "b", "a"):
        keep_for(source / "checkpoints/step_12", tmp_path / name)
    assert len(note_of(source).read_text().splitlines()) == 2
    (tmp_path / "step_12").mkdir()
    keep_for(tmp_path / "step_12", tmp_path / "a")
    assert not list(tmp_path.glob("needed*"))
