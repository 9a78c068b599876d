"""Averages of train.ema_lengths in runs: what is kept of what, killed and resumed, evaluations at a
list of steps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from config.identity import digest, identity
from config.overrides import composed
from config.run_config import RunConfig
from config.sections import TrainSettings
from runtime.checkpoint import MODEL, OPTIMIZER, all_checkpoints, find
from runtime.errors import UserError
from tests.helpers import runs
from tests.helpers.folder_runs import images
from tests.helpers.folder_runs import run as run_folder
from training.config_checks import check_run_config
from training.power_average import gamma_of
from training.snapshots import all_snapshots, best_snapshot

LENGTHS = "train.ema_lengths=[0.05,0.1]"
AT = "run.checkpoint_at=[1,2,3,5,7,9]"


def kept(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (directory / "averages").iterdir()}


def validated(directory: Path) -> dict[int, float]:
    """Step -> validation loss."""
    key = "validation/loss"
    return {row["step"]: row[key] for row in runs.rows(directory) if key in row}


# Names and bits


def test_without_lengths_a_run_has_the_name_and_files_that_it_had(undisturbed):
    content = composed("train", ["+experiment=pretrain_demo"])
    assert content["train"]["ema_lengths"] == [] and content["run"]["checkpoint_at"] is None
    name = digest(identity(RunConfig(content), "images"))
    del content["train"]["ema_lengths"], content["run"]["checkpoint_at"]
    assert digest(identity(RunConfig(content), "images")) == name
    content["run"]["checkpoint_at"] = [1, 2]
    assert digest(identity(RunConfig(content), "images")) == name
    content["train"]["ema_lengths"] = [0.05]
    assert digest(identity(RunConfig(content), "images")) != name
    assert not (undisturbed() / "averages").exists()
    assert set(find(undisturbed()).optimizer()) == {"optimizer", "timesteps"}


def test_neither_averages_nor_other_evaluations_change_the_weights(undisturbed):
    ours, plain = undisturbed(LENGTHS, AT), undisturbed()
    for file in ("model", "ema"):
        name = f"checkpoints/step_12/{file}.safetensors"
        assert runs.sha256(ours / name) == runs.sha256(plain / name)
    assert ours.name.rpartition("-")[0] == plain.name.rpartition("-")[0]  # but for the hash


@pytest.mark.parametrize("lengths", ["[0]", "[0.3]", "[0.1,0.1]", "[-0.1]"])
def test_lengths_that_are_none_are_refused(lengths):
    with pytest.raises(UserError, match=r"train: ema_lengths=.*at most 0\.289"):
        check_run_config(composed("train", [f"train.ema_lengths={lengths}"]))
    assert TrainSettings.__dataclass_fields__["ema_lengths"].default == ()


@pytest.mark.parametrize("steps", ["[0,2]", "[3,2]", "[2,2]"])
def test_steps_that_do_not_rise_are_refused(steps):
    with pytest.raises(UserError, match="run: checkpoint_at=.*that rise"):
        check_run_config(composed("train", [f"run.checkpoint_at={steps}"]))


# What is kept


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source")
    images(root / "images")
    return run_folder(root)


STEP_BY_STEP = ["run.checkpoint_every=1", "run.keep_last=99", "run.sample_every=99", LENGTHS]
STRATEGIES = {
    "full": [],
    "lora": ["transfer.inject.0.rank=2", "transfer.inject.1.rank=2"],
    "gradual_unfreezing": [],
    "freeze_encoder": [],
}


def averaged(saved: list[dict[str, torch.Tensor]], length: float) -> dict[str, torch.Tensor]:
    """sum_i ((i/t)^(gamma + 1) - ((i - 1)/t)^(gamma + 1)) theta_i in float64. saved: theta_1 to
    theta_t."""
    exponent, t = gamma_of(length) + 1, len(saved)
    total = {name: torch.zeros(w.shape, dtype=torch.float64) for name, w in saved[0].items()}
    for i, weights in enumerate(saved, 1):
        for name, w in weights.items():
            total[name] += ((i / t) ** exponent - ((i - 1) / t) ** exponent) * w.double()
    return total


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_snapshots_have_the_average_of_what_trains_at_any_time(source, strategy):
    """Adapters, parts that are frozen, and parts that thaw in the middle."""
    own = [f"source.from={source}", f"transfer={strategy}", *STRATEGIES[strategy]]
    directory = run_folder(source.parents[2], *own, *STEP_BY_STEP, steps=6)
    rows = [row.split(",") for row in (directory / "plan.csv").read_text().splitlines()[1:]]
    trains = {name for name, _, _, rate, *_ in rows if float(rate) > 0}
    saved = [c.weights(MODEL) for c in all_checkpoints(directory / "checkpoints")]
    assert len(saved) == 6
    assert trains and (strategy in ("full", "gradual_unfreezing")) == (trains == saved[0].keys())
    if strategy == "lora":
        assert all(".lora." in name for name in trains if name.startswith("down."))
    for snapshot in all_snapshots(directory)[-3:]:
        for length in (0.05, 0.1):
            found, expected = snapshot.read(length), averaged(saved[: snapshot.step], length)
            assert found.keys() == trains
            for name, w in found.items():
                torch.testing.assert_close(w.double(), expected[name], rtol=2e-6, atol=1e-7)
    assert [s.step for s in all_snapshots(directory)][-1] == 6
    state = find(directory).optimizer()["averages"]
    assert {key: set(average) for key, average in state.items()} == {"0.05": trains, "0.1": trains}


def test_a_snapshot_says_the_validation_loss_of_its_step(undisturbed):
    rows = {
        r["step"]: r["validation/loss"]
        for r in runs.rows(undisturbed(LENGTHS, AT))
        if "validation/loss" in r
    }
    found = {s.step: s.loss for s in all_snapshots(undisturbed(LENGTHS, AT))}
    assert found == {step: rows[step] for step in found} and 12 in found


# Killed, stopped, continued


@pytest.mark.parametrize(
    ("operation", "when"),
    [
        (r"write averages/\.step_7\.safetensors", ""),
        (r"replace averages/step_7\.safetensors", "+"),
        (r"write \.step_7/optimizer.pt", ""),
    ],
)
@pytest.mark.slow
def test_killed(undisturbed, tmp_path, operation, when):
    expected = undisturbed(LENGTHS, AT)
    at = runs.number_of(runs.operations(expected.parents[2]), operation)
    code, text = runs.train(tmp_path, [LENGTHS, AT], f"{at}{when}")
    assert code == -9, text
    runs.assert_same_run(runs.finish(tmp_path, [LENGTHS, AT]), expected)


def test_stopped_between_evaluations_while_unfreezing(undisturbed, tmp_path):
    """The averages go on from a checkpoint that is none of an evaluation."""
    command = [LENGTHS, AT, *runs.UNFREEZING]
    expected = undisturbed(*command)
    done = runs.operations(expected.parents[2])
    rows = [line for line in done if re.search(r"write .*/metrics.jsonl", line)]
    # rows: evaluations 1 2 3, training 3 (one of both steps), 5, 6, ...
    steps = [row["step"] for row in runs.rows(expected)]
    at = rows[steps.index(6)].split()[0]
    code, text = runs.train(tmp_path, command, f"{at}=TERM")
    assert code == 75, text
    directory = runs.directory_of(tmp_path)
    assert find(directory).step == 6 and "averages" in find(directory).optimizer()
    assert [s.step for s in all_snapshots(directory)][-1] == 5
    runs.assert_same_run(runs.finish(tmp_path, command), expected)


def test_snapshots_after_the_checkpoint_that_a_run_goes_on_from_are_made_again(
    undisturbed, tmp_path
):
    directory = runs.copied(undisturbed(LENGTHS, AT), tmp_path)
    last = directory / "averages/step_12.safetensors"
    last.with_name("step_11.safetensors").write_bytes(last.read_bytes().replace(b": 12", b": 11"))
    last.unlink()
    (directory / "checkpoints/step_12").rename(tmp_path / "away")
    code, text = runs.train(tmp_path, [LENGTHS, AT])
    assert code == 0 and "resuming" in text, text
    assert kept(directory) == kept(undisturbed(LENGTHS, AT))


def test_snapshots_come_before_the_checkpoint_of_their_step(undisturbed):
    done = runs.operations(undisturbed(LENGTHS, AT).parents[2])
    for step in (1, 2, 3, 5, 7, 9, 12):
        snapshot = runs.number_of(done, rf"replace averages/step_{step}\.safetensors")
        assert snapshot < runs.number_of(done, rf"write \.step_{step}/model")
        assert snapshot < runs.number_of(done, rf"replace checkpoints/step_{step}$")


# Steps of evaluations


def test_evaluations_come_at_the_steps_of_the_list_and_at_the_end(undisturbed):
    directory = undisturbed(LENGTHS, AT)
    assert list(validated(directory)) == [1, 2, 3, 5, 7, 9, 12]
    # run.sample_every=8: with the first evaluation after it, and at the end
    assert [int(p.stem[-2:]) for p in sorted((directory / "samples").iterdir())] == [9, 12]


def test_a_larger_number_of_steps_goes_on_with_the_same_list(undisturbed, tmp_path):
    """And what was the last step is an evaluation that the longer run would not have had."""
    first = runs.finish(tmp_path, [LENGTHS, AT, "train.steps=8", "run.keep_last=1"])
    assert list(validated(first)) == [1, 2, 3, 5, 7, 8]
    code, text = runs.train(tmp_path, [LENGTHS, AT, "train.steps=12", "run.keep_last=1"])
    assert code == 0 and "resuming at step 8" in text
    assert runs.directory_of(tmp_path) == first
    assert list(validated(first)) == [1, 2, 3, 5, 7, 8, 9, 12]
    runs.assert_same_weights(first, undisturbed(LENGTHS, AT), 12)
    best = json.loads((first / "result.json").read_text())["best_step"]
    losses = validated(first)
    assert best == min(losses, key=losses.get) == best_snapshot(all_snapshots(first)).step
    assert runs.steps_of(first) == sorted({best, 12})


def test_restart_puts_averages_aside(undisturbed, tmp_path):
    directory = runs.copied(undisturbed(LENGTHS, AT), tmp_path)
    for file in directory.glob(f"checkpoints/*/{OPTIMIZER}"):
        file.write_bytes(b"damaged")
    code, text = runs.train(tmp_path, [LENGTHS, AT, "run.restart=true"])
    assert code == 0, text
    assert kept(directory / "damaged_1") == kept(directory)
    assert kept(directory) == kept(undisturbed(LENGTHS, AT))
