"""Checkpoints that are damaged, foreign or hostile, disks that fill up and losses that explode:
what was good stays, and is told."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from config.overrides import composed
from config.run_config import RunConfig
from data.file_cache import FileCache
from data.memory_map import open_memory_map
from data.settings import DataSettings
from data.sources.bundled import Faces
from runtime import checkpoint
from runtime.checkpoint import EMA, MODEL, OPTIMIZER, STATE
from runtime.config_schema import build
from runtime.errors import UserError
from tests.helpers import runs
from training.config_checks import check_run_config
from training.prune_checkpoints import prune_checkpoints
from training.run import open_trainer
from training.run_directory import open_images
from transfer.trained_weights import load_weights

FILES = [MODEL, EMA, OPTIMIZER, STATE]


def flip(path: Path, position: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= bit
    path.write_bytes(data)


def saved(
    directory: Path, step: int, loss: float | None = None, optimizer=None
) -> checkpoint.Checkpoint:
    """A small checkpoint, not of a run."""
    weights = {"a": torch.full((4, 3), float(step)), "b": torch.arange(5.0)}
    path, progress = directory / f"step_{step}", checkpoint.Progress(validation_loss=loss)
    checkpoint.save(
        checkpoint.Checkpoint(path, step, {"seed": 0}, [], {}, progress),
        weights,
        {name: w / 2 for name, w in weights.items()},
        optimizer or {"state": {}},
    )
    return checkpoint.open_checkpoint(path)


def one_error(code: int, text: str) -> str:
    """The one message of a run that refused."""
    assert code == 2, text
    assert "Traceback" not in text and text.count("error: ") == 1, text
    return text[text.index("error: ") :]


# Damage


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_sends_the_run_back_one_checkpoint(undisturbed, tmp_path, name):
    directory = runs.copied(undisturbed(), tmp_path / "run")
    file = directory / "checkpoints/step_12" / name
    flip(file, file.stat().st_size // 2)
    code, text = runs.train(tmp_path / "run")
    assert code == 0 and str(file) in text and "damaged" in text and "resuming at step 8" in text, (
        text
    )
    runs.assert_same_run(directory, undisturbed())


def test_all_checkpoints_damaged_stops_the_run_until_it_is_told_to_begin_again(
    undisturbed, tmp_path
):
    directory = runs.copied(undisturbed(), tmp_path / "run")
    for name, step in ((STATE, 8), (MODEL, 12)):
        flip(directory / f"checkpoints/step_{step}" / name, 100)
    before = runs.snapshot(directory)
    code, text = runs.train(tmp_path / "run")
    assert code == 2 and f"step_8/{STATE}" in text and f"step_12/{MODEL}" in text, text
    assert "none of its 2 checkpoints can be read" in text and "run.restart=true" in text
    after = runs.snapshot(directory)
    assert after == before
    code, text = runs.train(tmp_path / "run", ["run.restart=true"])
    assert code == 0 and "new run" in text and f"put aside: {directory}/damaged_1" in text, text
    runs.assert_same_run(directory, undisturbed())
    for name in before:
        if name.startswith(("checkpoints/", "samples/", "metrics.jsonl", "result.json")):
            assert (directory / "damaged_1" / name).read_bytes() == before[name][1]


@pytest.mark.parametrize("name", [MODEL, EMA, OPTIMIZER])
def test_every_kind_of_damage_is_seen(tmp_path, name):
    good = saved(tmp_path, 3)
    file = good.path / name
    data = file.read_bytes()
    assert good.damage() is None
    for position in (0, 7, len(data) // 2, len(data) - 1):
        flip(file, position)
        assert str(file) in good.damage()
        assert checkpoint.latest(tmp_path) is None
        file.write_bytes(data)
    file.write_bytes(data[:-1])
    assert str(file) in good.damage()
    file.unlink()
    assert str(file) in good.damage()
    file.write_bytes(data)
    assert good.damage() is None


def test_no_flipped_bit_of_the_state_goes_unseen(tmp_path):
    """The step, the config and the window of the log are in it: nothing else tells that they
    changed."""
    good = saved(tmp_path, 3, 0.5)
    file = good.path / STATE
    data = file.read_bytes()
    for position in range(len(data)):
        flip(file, position, (1, 4, 32)[position % 3])
        try:
            assert checkpoint.open_checkpoint(good.path) == good, position
        except UserError as error:
            assert str(good.path) in str(error)
        file.write_bytes(data)


@pytest.mark.parametrize(
    "content",
    [None, b"", b"[]", b"{}", b"null", b"\xff\xfe", b'{"step": 3, "sha256": {}, "config": {}}'],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "step_3").mkdir()
    if content is not None:
        (tmp_path / "step_3" / STATE).write_bytes(content)
    with pytest.raises(UserError, match="step_3"):
        checkpoint.open_checkpoint(tmp_path / "step_3")
    with pytest.raises(UserError, match=str(tmp_path)):
        checkpoint.find(tmp_path / "step_3")


@pytest.mark.parametrize("opened", [checkpoint.find, lambda path: load_weights(str(path))])
def test_where_all_are_damaged_every_script_says_what_train_py_does(tmp_path, caplog, opened):
    for step in (3, 6):
        flip(saved(tmp_path / "checkpoints", step).path / MODEL, -1)
    with pytest.raises(UserError) as raised:
        opened(tmp_path)
    assert re.fullmatch(
        f"{tmp_path}/checkpoints: none of its 2 checkpoints can be read, as said above: "
        "put back a copy of one; or .*run.restart=true .*",
        str(raised.value),
    )
    first, last = caplog.messages
    assert "step_6" in first and first.endswith("; going on to the next checkpoint")
    assert "step_3" in last and "going on" not in last


@pytest.mark.parametrize("opened", [checkpoint.find, lambda path: load_weights(str(path))])
def test_one_checkpoint_with_a_damaged_state_has_a_way_out(tmp_path, opened):
    path = saved(tmp_path / "checkpoints", 3).path
    (path / STATE).write_text("{")
    with pytest.raises(UserError) as raised:
        opened(path)
    assert str(raised.value).startswith(f"{path / STATE} is damaged or not of this project: Exp")
    assert str(raised.value).endswith(
        f". Use another checkpoint of that run: {path.parent}/step_*; or put back a copy of it."
    )


def test_weights_are_not_read_from_a_damaged_file(tmp_path):
    good = saved(tmp_path, 3)
    assert torch.equal(good.weights(MODEL)["a"], torch.full((4, 3), 3.0))
    flip(good.path / MODEL, -1)
    with pytest.raises(UserError, match="damaged"):
        good.weights(MODEL)
    assert torch.equal(good.weights(EMA)["a"], torch.full((4, 3), 1.5))


def test_a_source_that_is_no_checkpoint_is_one_message(tmp_path):
    (tmp_path / "nothing").mkdir()
    message = one_error(*runs.train(tmp_path / "run", [f"source.from={tmp_path}/nothing"]))
    assert f"{tmp_path}/nothing" in message and "no checkpoint" in message


# What a checkpoint says of itself


def test_the_state_has_the_sha256_of_the_files(undisturbed):
    for step in (8, 12):
        path = undisturbed() / f"checkpoints/step_{step}"
        state = json.loads((path / STATE).read_text())
        assert state["sha256"] == {
            name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in FILES[:3]
        }
        assert state["step"] == step and state["config"]["train"]["steps"] == 12
        assert sorted(p.name for p in path.iterdir()) == sorted(FILES)


def test_equal_weights_are_equal_bytes(tmp_path):
    """So that a sha256 compares two runs. More than one key of metadata in a safetensors file would
    come in any order."""
    for side in ("left", "right"):
        saved(tmp_path / side, 3)
    for name in (MODEL, EMA):
        assert (tmp_path / "left/step_3" / name).read_bytes() == (
            tmp_path / "right/step_3" / name
        ).read_bytes()


def test_pruning_keeps_the_last_and_the_best(tmp_path):
    losses = {1: 0.9, 2: 0.3, 3: 0.5, 4: None, 5: 0.4, 6: 0.8, 12: 0.7}
    kept = []
    for step, loss in losses.items():
        saved(tmp_path, step, loss)
        prune_checkpoints(tmp_path, 2)
        kept.append(sorted(c.step for c in checkpoint.all_checkpoints(tmp_path)))
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6], [2, 6, 12]]
    prune_checkpoints(tmp_path, 1)
    assert sorted(c.step for c in checkpoint.all_checkpoints(tmp_path)) == [2, 12]
    assert not list(tmp_path.glob(".*"))
    assert all(c.damage() is None for c in checkpoint.all_checkpoints(tmp_path))


def test_a_damaged_state_does_not_stop_pruning(tmp_path):
    for step in (1, 2, 3, 4):
        saved(tmp_path, step)
    (tmp_path / "step_2" / STATE).write_text("{")
    prune_checkpoints(tmp_path, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_2", "step_4"]


# Hostile input


class Evil:
    """Unpickling this creates a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    bait = tmp_path / "created"
    evil = saved(tmp_path, 3, optimizer={"state": Evil(bait)})
    torch.load(evil.path / OPTIMIZER, weights_only=False)
    assert bait.exists()  # it would work
    bait.unlink()
    with pytest.raises(UserError, match=OPTIMIZER):
        evil.optimizer()
    assert not bait.exists()


def test_a_run_with_a_hostile_optimizer_stops_with_one_message(undisturbed, tmp_path):
    directory = runs.copied(undisturbed(), tmp_path / "run")
    last = checkpoint.find(directory)
    checkpoint.save(
        last,
        last.weights(MODEL),
        last.weights(EMA),
        {"state": Evil(tmp_path / "created")},
    )
    message = one_error(*runs.train(tmp_path / "run", ["train.steps=16"]))
    assert f"step_12/{OPTIMIZER}" in message
    assert not (tmp_path / "created").exists()


HOSTILE = [
    "os.system",
    "shutil.rmtree",
    "builtins.eval",
    "subprocess.Popen",
    "torch.load",
    "torch.hub.load",
    "runtime.checkpoint.torch.load",
    "runtime.checkpoint.remove_directory",
    "data.cache.os.system",
    "data.dataset.os.system",
    "data.dataset.Path",
    "data.sources.bundled.np.load",
    "data.sources.celeba.Path",
    "data.resize.to_array",
    "models.unet.torch.load",
    "models.unet.nn.Linear",
    "diffusion.schedule.torch.load",
    "diffusion.schedule.math.sqrt",
    "torch.optim.os.system",
    "torch.optim.swa_utils.deepcopy",
    "torch.optim.adam.torch.load",
    "models",
    "models.",
    ".models",
    "",
    "system",
    "models.unet",
    "models.unet.UNet.__init__",
    "models.unet.__builtins__",
    "models.unet.nothing",
    "models_evil.unet.UNet",
    5,
    None,
    ["os.system"],
    {"_target_": "os.system"},
]


@pytest.mark.parametrize("target", HOSTILE)
@pytest.mark.parametrize(
    "section", ["model", "schedule", "parameterization", "variance", "optimizer", "data", "sampler"]
)
def test_a_hostile_target_in_a_config_is_refused(
    undisturbed, monkeypatch, tmp_path, section, target
):
    """Judged by where the object is defined: each of these is reachable from a module of ours, or
    looks as if it were."""
    made = undisturbed()  # before files can no longer be removed
    for call in ("system", "remove", "unlink", "rmdir"):
        monkeypatch.setattr(os, call, lambda *_: pytest.fail("it was called"))
    monkeypatch.setattr(shutil, "rmtree", lambda *_: pytest.fail("it was called"))
    config = json.loads(json.dumps(checkpoint.find(made).config))
    node = {"_target_": target, "command": "true", "path": str(tmp_path)}
    config[section] = {
        "data": {**config[section], **node},
        "sampler": {**config[section], "function": node},
    }.get(section, node)
    for use in (check_run_config, lambda config: build_part(config, section)):
        with pytest.raises(UserError, match="_target_: .*(is not defined in|there is no)"):
            use(config)


def build_part(config: dict, section: str):
    if section in ("data", "sampler"):
        return getattr(RunConfig(config), section)
    if section == "optimizer":
        return build(config[section], ["torch.optim"], section)
    return RunConfig(config).build_denoiser()


def test_a_hostile_target_inside_a_part_is_refused(undisturbed):
    config = json.loads(json.dumps(checkpoint.find(undisturbed()).config))
    config["schedule"] = {
        "_target_": "diffusion.schedule.zero_terminal",
        "schedule": {"_target_": "os.system", "command": "true"},
    }
    with pytest.raises(UserError, match="os.system is not defined in diffusion"):
        RunConfig(config).build_denoiser()


# A full disk


@pytest.mark.parametrize("operation", [r"write \.step_8/optimizer.pt", r"write samples/.*12.png"])
def test_a_full_disk_is_one_message_and_costs_nothing(undisturbed, tmp_path, operation):
    full_at(
        undisturbed(),
        tmp_path,
        runs.number_of(runs.operations(undisturbed().parents[2]), operation),
    )


def test_a_full_disk_at_a_row_of_the_log(undisturbed, tmp_path):
    """The row is torn; the next run must not write behind the torn one."""
    row = (
        runs.number_of(runs.operations(undisturbed().parents[2]), r"replace checkpoints/step_4") + 2
    )
    assert (
        "write" in (line := runs.operations(undisturbed().parents[2])[row - 1])
        and "metrics.jsonl" in line
    )
    full_at(undisturbed(), tmp_path, row)


def full_at(expected: Path, root: Path, number: int) -> None:
    message = one_error(*runs.train(root, at=f"{number}=FULL"))
    assert "the disk is full" in message
    directory = runs.directory_of(root)
    found = checkpoint.all_checkpoints(directory / "checkpoints")
    assert all(c.damage() is None for c in found)
    done = [
        line
        for line in runs.operations(expected.parents[2])[: number - 1]
        if "replace checkpoints/step_" in line
    ]
    assert len(found) == len(done)  # what was there is unharmed
    # and nothing lies about that takes space
    assert not [p for p in directory.rglob(".*") if p.name != ".lock"]
    runs.assert_same_run(runs.finish(root), expected)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_full_disk_at_every_write(undisturbed, tmp_path):
    done = runs.operations(undisturbed().parents[2])
    writes = [int(line.split()[0]) for line in done if line.split()[1] == "write"]
    for number in writes:
        full_at(undisturbed(), tmp_path / str(number), number)
        shutil.rmtree(tmp_path / str(number))
    print(f"disk full at each of {len(writes)} writes, all equal afterwards")


@pytest.mark.parametrize("call", ["posix_fallocate", "fsync", "replace"])
def test_a_full_disk_while_decoding(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(UserError, match="the disk is full"):
            open_memory_map(Faces(FileCache(tmp_path)), DataSettings(Faces, 8, 1, False), tmp_path)
    assert [p.suffix for p in tmp_path.iterdir() if p.suffix != ".json"] == [".lock"]
    images, broken = open_memory_map(
        Faces(FileCache(tmp_path)), DataSettings(Faces, 8, 1, False), tmp_path
    )
    assert images.shape == (100, 8, 8, 1) and not broken


# Losses that are not finite


def explosion(step: int) -> list[str]:
    """From this step, counted from 0, a rate that throws the weights out of range."""
    return [
        (
            f"transfer.rules=[{{pattern: '*'}}, {{pattern: '*', from: {step}, learning_rate_scale: "
            "1e30}]"
        ),
        "run.log_every=4",
    ]


def all_finite(found: checkpoint.Checkpoint) -> bool:
    return all(
        bool(w.isfinite().all()) and float(w.abs().max()) < 100
        for which in (MODEL, EMA)
        for w in found.weights(which).values()
    )


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    message = one_error(*runs.train(tmp_path, explosion(5)))
    directory = runs.directory_of(tmp_path)
    assert "of step 6 is not finite" in message  # the first loss after the step that did it
    assert str(directory / "checkpoints/step_4") in message and "optimizer.lr" in message
    assert runs.steps_of(directory) == [4] and all_finite(checkpoint.find(directory))
    assert "of step 6 is not finite" in one_error(*runs.train(tmp_path, explosion(5)))
    assert runs.steps_of(directory) == [4]


def test_weights_out_of_range_are_not_kept_as_a_good_checkpoint(tmp_path):
    """The step before a checkpoint did it: all losses of the training were finite."""
    message = one_error(*runs.train(tmp_path, explosion(7)))
    directory = runs.directory_of(tmp_path)
    assert (
        "after 8 steps is not finite" in message
        and str(directory / "checkpoints/step_4") in message
    )
    assert runs.steps_of(directory) == [4] and all_finite(checkpoint.find(directory))


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    """A finite loss with an infinite gradient: the weights are lost in that very step, here the
    last before a checkpoint."""
    torch.set_num_threads(1)
    config = RunConfig(
        composed(
            "train",
            [
                *runs.TINY,
                "run.checkpoint_every=3",
                "run.log_every=8",
                f"run.cache={tmp_path}/cache",
            ],
        )
    )
    directory = tmp_path / "run"
    directory.mkdir()
    prepared = open_trainer(config, open_images(config), directory, None, None)
    weight = prepared.denoiser.network.conv_in.weight
    weight.register_hook(
        lambda gradient: gradient * float("inf") if prepared.steps_done == 2 else gradient
    )
    with pytest.raises(UserError, match="gradient of step 2 is not finite.*No checkpoint"):
        prepared.train()
    assert not list(directory.glob("checkpoints/step_*"))
