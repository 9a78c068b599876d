"""A run that was killed, wherever that was, and started again with the same command ends with the
bits of one that was not."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from pathlib import Path

import pytest
import torch

from runtime.checkpoint import EMA, MODEL, find
from tests.helpers import runs

TINY_SOURCE = "source.overrides=[" + ",".join(f'"{setting}"' for setting in runs.TINY) + "]"
FROM_EXPERIMENT = ["+experiment=transfer_demo", "train.steps=12", TINY_SOURCE]
AVERAGES = ["train.ema_lengths=[0.05,0.1]", "run.checkpoint_at=[1,5,9]"]
# Operations that leave something half done; + is right after. The slow tests take all operations.
MOMENTS = [
    (r"replace cache/.*\.npy", ""),
    (r"write \.step_8/optimizer.pt", ""),
    (r"replace checkpoints/step_8", "+"),
    (r"write samples/.*08.png", ""),
    (r"replace checkpoints/\.step_4.removed", "+"),
]


def operations(directory: Path) -> list[str]:
    return runs.operations(directory.parents[2])


def kill(root: Path, arguments, at: str) -> None:
    code, text = runs.train(root, arguments, at)
    assert code == -9, f"not killed at {at}:\n{text}"


def killed_and_resumed(root: Path, arguments, at: str) -> Path:
    kill(root, arguments, at)
    return runs.finish(root, arguments)


def test_the_bar_says_what_is_done_while_it_stands_still(undisturbed):
    said = (undisturbed().parents[2] / "output.txt").read_text()
    assert all(f", {doing}]" in said for doing in ("validating", "sampling", "saving"))
    assert re.search(r"12/12 .*, loss 0\.\d{4}, \d+ images/s\]\s*$", said.split("finished")[0])


@pytest.mark.parametrize("operation, when", MOMENTS)
def test_killed(undisturbed, tmp_path, operation, when):
    expected = undisturbed()
    at = f"{runs.number_of(operations(expected), operation)}{when}"
    runs.assert_same_run(killed_and_resumed(tmp_path, [], at), expected)


@pytest.mark.slow  # test_killed_again_and_again is quick
@pytest.mark.parametrize("operation, when", [MOMENTS[1], MOMENTS[2]])
def test_killed_while_unfreezing(undisturbed, tmp_path, operation, when):
    expected = undisturbed(*runs.UNFREEZING)
    at = f"{runs.number_of(operations(expected), operation)}{when}"
    runs.assert_same_run(killed_and_resumed(tmp_path, runs.UNFREEZING, at), expected)


def test_the_unfreezing_run_trains_and_freezes_what_its_rules_say(undisturbed):
    """Else the tests above would compare runs in which nothing changes."""
    expected = undisturbed(*runs.UNFREEZING)
    states = [
        find(expected / f"checkpoints/step_{step}").optimizer()["optimizer"]["state"]
        for step in (8, 12)
    ]
    before, after = (
        {key: int(moments["step"]) for key, moments in state.items()} for state in states
    )
    assert set(before.values()) == {2, 5, 8}  # unfrozen at 6, at 3, at 0
    assert set(after.values()) == {6, 9, 12}  # one part was frozen at 9
    assert [before[key] for key, steps in after.items() if steps == 9 and before[key] == 8]


def test_killed_again_and_again(undisturbed, tmp_path):
    kills = 0
    while (code := runs.train(tmp_path, runs.UNFREEZING, "41")[0]) == -9:
        kills += 1
        assert kills < 10
    assert code == 0 and kills >= 2
    runs.assert_same_run(runs.directory_of(tmp_path), undisturbed(*runs.UNFREEZING))


def transfer(undisturbed) -> list[str]:
    return [
        "data=bundled_tissue",
        "data.size=8",
        "data.n_train=30",
        "seed=1",
        f"source.from={undisturbed()}",
        *runs.UNFREEZING,
    ]


@pytest.mark.slow
def test_killed_while_transferring_from_a_checkpoint(undisturbed, tmp_path):
    arguments = transfer(undisturbed)
    expected = undisturbed(*arguments)
    # the second starts from no checkpoint, too
    for operation in (
        r"write \.step_4/ema.safetensors",
        r"fsync samples/.*08.png",
    ):
        kill(tmp_path, arguments, str(runs.number_of(operations(expected), operation)))
    runs.assert_same_run(runs.finish(tmp_path, arguments), expected)
    told = json.loads((runs.directory_of(tmp_path) / "source.json").read_text())
    assert told["sha256"] == runs.sha256(undisturbed() / "checkpoints/step_12/ema.safetensors")


def test_stopped_in_the_source_and_then_killed_in_the_target(undisturbed, tmp_path):
    """A source that is missing is trained in the same process: both continue."""
    expected = tmp_path / "expected"
    code, text = runs.train(expected, FROM_EXPERIMENT)
    assert code == 0, text
    done = runs.operations(expected)
    in_source, _ = [int(line.split()[0]) for line in done if re.search(r"write \.step_8/ema", line)]
    code, text = runs.train(tmp_path, FROM_EXPERIMENT, f"{in_source}=TERM")
    assert code == 75, text
    assert runs.steps_of(runs.directory_of(tmp_path, "pretrain_demo")) == [4, 8]
    _, in_target = [
        int(line.split()[0]) for line in done if re.search(r"replace checkpoints/step_12", line)
    ]
    kill(tmp_path, FROM_EXPERIMENT, str(in_target - in_source))
    code, text = runs.train(tmp_path, FROM_EXPERIMENT)
    assert code == 0 and re.search(r"resuming at step \d+: .*/transfer_demo/", text), text
    for experiment in ("pretrain_demo", "transfer_demo"):
        runs.assert_same_run(
            runs.directory_of(tmp_path, experiment), runs.directory_of(expected, experiment)
        )
    # as by itself
    runs.assert_same_weights(
        runs.directory_of(tmp_path, "pretrain_demo"), undisturbed("+experiment=pretrain_demo"), 12
    )


def test_accumulation_changes_no_draw(tmp_path):
    """Without dropout the micro-batches add up to the batch. A larger eps keeps Adam from enlarging
    rounding errors."""
    settings = ["model.dropout=0", "optimizer.eps=1e-4", "augmentation=natural"]
    whole = runs.finish(tmp_path / "1", [*settings, "train.accumulation=1"])
    parts = runs.finish(tmp_path / "4", [*settings, "train.accumulation=4"])
    for ours, theirs in zip(runs.rows(parts), runs.rows(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    first, second = (find(directory).weights(MODEL) for directory in (whole, parts))
    assert max((first[name] - second[name]).abs().max().item() for name in first) < 1e-5
    start = find(whole / "checkpoints/step_8").weights(MODEL)
    # they do move
    assert max((first[name] - start[name]).abs().max().item() for name in first) > 1e-4


def test_more_steps_continue_the_run(undisturbed, tmp_path):
    settings = ["run.log_every=4"]
    first = runs.finish(tmp_path, [*settings, "train.steps=8"])
    assert runs.steps_of(first) == [4, 8]
    code, text = runs.train(tmp_path, [*settings, "train.steps=12"])
    assert code == 0 and "resuming at step 8" in text
    assert runs.directory_of(tmp_path) == first
    runs.assert_same_run(first, undisturbed(*settings))


def test_a_finished_run_is_left_alone(undisturbed, tmp_path):
    directory = runs.copied(undisturbed(), tmp_path)
    before = runs.snapshot(tmp_path / "runs"), runs.snapshot(tmp_path / "cache")
    code, text = runs.train(tmp_path)
    assert code == 0 and f"finished: {directory} has 12 steps" in text
    assert (runs.snapshot(tmp_path / "runs"), runs.snapshot(tmp_path / "cache")) == before


def test_a_directory_of_another_config_is_refused(undisturbed, tmp_path):
    place = f"run.directory={tmp_path}/mine"
    shutil.copytree(undisturbed(), tmp_path / "mine")
    before = runs.snapshot(tmp_path / "mine")
    code, text = runs.train(tmp_path, [place, "seed=3", "optimizer.lr=1e-3", "train.steps=20"])
    assert code == 2 and "Traceback" not in text and text.count("error: ") == 1
    assert (
        "seed: 0 -> 3" in text
        and "optimizer.lr: 0.0002 -> 0.001" in text
        and "run.directory" in text
    )
    # what is equal, or may differ, is not shown
    assert "steps" not in text and "batch_size" not in text
    assert runs.snapshot(tmp_path / "mine") == before


def test_checkpoints_of_unknown_origin_are_refused(undisturbed, tmp_path):
    directory = runs.copied(undisturbed(), tmp_path)
    (directory / "identity.json").unlink()
    code, text = runs.train(tmp_path)
    assert code == 2 and "Traceback" not in text and "identity.json" in text
    assert runs.steps_of(directory) == [8, 12]


def test_what_a_user_keeps_in_the_directory_stays(tmp_path):
    """run.directory may be any folder, such as the one that is the work tree of git."""
    place = tmp_path / "mine"
    for name in (".git", ".venv", "checkpoints"):
        (place / name).mkdir(parents=True)
    for name in (".git/HEAD", ".gitignore", ".env", "notes.txt", "checkpoints/.keep"):
        (place / name).write_text("mine")
    kill(tmp_path, [f"run.directory={place}"], "50")
    code, text = runs.train(tmp_path, [f"run.directory={place}"])
    assert code == 0, text
    for name in (".git/HEAD", ".gitignore", ".env", "notes.txt", "checkpoints/.keep"):
        assert (place / name).read_text() == "mine"


def test_a_second_process_is_refused_until_the_first_is_gone(undisturbed, tmp_path):
    root = tmp_path / "first"
    first = runs.launch(root, ["run.held_out_draws=1000000"])
    first.until("training images")
    code, text = runs.train(tmp_path / "second", [f"run.root={root}/runs"])
    assert (
        code == 2
        and "is being trained by another process" in text
        and "Traceback" not in text
        and text.count("error: ") == 1
    )
    assert first.process.is_alive()
    first.process.kill()
    assert first.wait()[0] == -9
    runs.assert_same_run(runs.finish(root), undisturbed())


def test_rows_are_on_the_disk_before_the_checkpoint_that_counts_them(undisturbed):
    done = operations(undisturbed())
    for step in (4, 8, 12):
        first = runs.number_of(done, rf"write \.step_{step}/model")
        assert re.search("fsync .*/metrics.jsonl", done[first - 2]), done
        rows = find(undisturbed() / f"checkpoints/step_{step}").progress.rows if step > 4 else 2
        assert rows == sum(bool(re.search("write .*/metrics.jsonl", line)) for line in done[:first])


def test_the_average_follows_the_weights_from_step_to_step(tmp_path):
    """ema_n = d_n ema_{n-1} + (1 - d_n) w_n, d_n = min(decay, (1 + n) / (10 + n)), also across a
    resumption."""
    settings = [
        "run.checkpoint_every=1",
        "run.keep_last=9",
        "run.sample_every=100",
        "train.ema_decay=0.3",
    ]
    for steps in (3, 6):
        directory = runs.finish(tmp_path, [*settings, f"train.steps={steps}"])
    for n in range(1, 6):
        before, after = (find(directory / f"checkpoints/step_{step}") for step in (n, n + 1))
        decay = min(0.3, (1 + n) / (10 + n))
        average, weights = before.weights(EMA), after.weights(MODEL)
        for name, ours in after.weights(EMA).items():
            torch.testing.assert_close(
                ours.double(),
                decay * average[name].double() + (1 - decay) * weights[name].double(),
                rtol=1e-6,
                atol=1e-7,
            )


# Every moment


def every_moment(done: list[str]) -> list[str]:
    """Before (or in the middle of) each operation, and after each that is a sync or a rename."""
    numbered = [line.split()[:2] for line in done]
    return [n for n, _ in numbered] + [f"{n}+" for n, kind in numbered if kind != "write"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("variant", ["plain", "transfer", "averages"])
def test_killed_at_every_operation(undisturbed, tmp_path, variant):
    own = {"transfer": transfer, "averages": lambda _: AVERAGES}
    arguments = own[variant](undisturbed) if variant in own else []
    expected = undisturbed(*arguments)
    moments = every_moment(operations(expected))
    for at in moments:
        root = tmp_path / at
        runs.assert_same_run(killed_and_resumed(root, arguments, at), expected)
        shutil.rmtree(root)
    print(f"{variant}: {len(operations(expected))} operations, {len(moments)} kills, all equal")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_every_operation_after_a_signal_during_evaluation(undisturbed, tmp_path):
    """The only checkpoint waits for its evaluation and is then replaced by the one that has it: it
    must never be lost."""
    settings = ["run.keep_last=1", "run.log_every=4", "run.checkpoint_every=8"]
    expected, stopped = undisturbed(*settings), tmp_path / "stopped"
    # the row of step 8, just before its evaluation
    at = runs.number_of(operations(expected), r"write samples/.*08.png") - 2
    code, text = runs.train(stopped, settings, f"{at}=TERM")
    assert code == 75, text
    assert find(runs.directory_of(stopped)).progress.pending and runs.steps_of(
        runs.directory_of(stopped)
    ) == [8]
    shutil.copytree(stopped, tmp_path / "resumed")
    runs.finish(tmp_path / "resumed", settings)
    moments = every_moment(runs.operations(tmp_path / "resumed"))
    for at in moments:
        root = tmp_path / at
        shutil.copytree(stopped, root)
        kill(root, settings, at)
        code, text = runs.train(root, settings)
        assert code == 0 and "new run" not in text, (
            f"the checkpoint was lost by a kill at {at}:\n{text}"
        )
        runs.assert_same_run(runs.directory_of(root), expected)
        shutil.rmtree(root)
    print(f"pending: {len(moments)} kills, all equal")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("variant", ["plain", "unfreezing"])
def test_killed_at_random_moments(undisturbed, tmp_path, variant):
    arguments = runs.UNFREEZING if variant == "unfreezing" else []
    expected, moments, kills = undisturbed(*arguments), random.Random(variant), 0
    start = time.monotonic()
    runs.finish(tmp_path / "timed", arguments)
    duration = time.monotonic() - start
    for k in range(20):
        root = tmp_path / str(k)
        run = runs.launch(root, arguments)
        time.sleep(moments.uniform(0, duration))
        run.process.kill()
        kills += run.wait()[0] == -9
        runs.assert_same_run(runs.finish(root, arguments), expected)
        shutil.rmtree(root)
    assert kills >= 10
    print(f"{variant}: {kills} kills within {duration:.1f} s, all equal")
