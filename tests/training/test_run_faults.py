"""What befalls a run on a real machine: a terminal that is cut, a limit on its time, checkpoints
that are all damaged, images that have changed, a run of the same identity under another name."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from config.overrides import composed
from config.run_config import RunConfig
from runtime import time_limit
from runtime.errors import UserError
from runtime.signals import PREEMPTED, Preempted, StopRequest
from runtime.time_limit import TimeLimit
from tests.helpers import runs
from tests.helpers.folder_runs import bits, copied, images, ramp, run
from training import loop
from training.run_directory import last_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The root of a finished run."""
    root = tmp_path_factory.mktemp("trained")
    images(root / "images")
    run(root)
    return root


# The terminal


def test_a_run_whose_terminal_breaks_goes_on(undisturbed, tmp_path):
    """As `train.py ... | head -1`, with stderr in the same pipe."""
    pipe = tmp_path / "output.txt"
    os.mkfifo(pipe)
    where = [f"run.root={tmp_path}/runs", f"run.cache={tmp_path}/cache"]
    process = runs._context.Process(
        target=runs._child, args=([*runs.TINY, *where], str(pipe), "0"), daemon=True
    )
    process.start()
    with open(pipe) as reader:
        assert reader.readline()
    process.join(runs.PATIENCE)
    assert process.exitcode == 0
    directory = runs.directory_of(tmp_path)
    runs.assert_same_run(directory, undisturbed())
    log = (directory / "log.txt").read_text()
    assert "is lost (Broken pipe)" in log and f"finished: {directory}" not in log.split("lost")[0]


def test_a_terminal_that_hangs_up_is_a_request_to_stop(undisturbed, tmp_path):
    longer = ["train.steps=24", "run.checkpoint_every=20"]
    launched = runs.launch(tmp_path, longer)
    launched.until(r"0/24")
    for _ in range(2):  # the shell's and the terminal's own
        os.kill(launched.process.pid, signal.SIGHUP)
    code, text = launched.wait()
    assert code == PREEMPTED and "stopped by SIGHUP; everything is saved" in text, text
    assert runs.train(tmp_path, longer)[0] == 0
    runs.assert_same_run(runs.directory_of(tmp_path), undisturbed(*longer), 24)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_under_nohup_a_hangup_is_ignored(handler):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with StopRequest() as request:
            if handler is signal.SIG_IGN:
                assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            for _ in range(2):
                signal.raise_signal(signal.SIGHUP)
            asked = request.asked()
            assert (asked is None) if handler is signal.SIG_IGN else str(asked) == "SIGHUP"
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


# run.hours


class Clock:
    """In seconds; moved by what is done and by nothing else."""

    def __init__(self, monkeypatch, **takes: float):
        self.now, self.began = 1000.0, 1000.0
        monkeypatch.setattr(time_limit, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(time_limit, "began", lambda: self.began)
        for name, seconds in takes.items():
            where = loop.checkpoint if name == "save" else loop.Trainer
            self.lengthen(monkeypatch, where, name, seconds)

    def lengthen(self, monkeypatch, where, name: str, seconds: float) -> None:
        real = getattr(where, name)

        def longer(*args, **kwargs):
            self.now += seconds
            return real(*args, **kwargs)

        monkeypatch.setattr(where, name, longer)


def test_a_run_saves_and_leaves_before_its_hours_are_over(trained, tmp_path, monkeypatch, caplog):
    images(tmp_path / "images")
    clock = Clock(monkeypatch, step=60.0, _evaluate=600.0, save=120.0)
    starts, steps = 0, []
    while True:
        clock.began, starts = clock.now, starts + 1
        try:
            directory = run(tmp_path, "run.hours=0.5")
            break
        except Preempted as stopped:
            assert str(stopped) == "run.hours=0.5" and stopped.number == signal.SIGUSR2
        assert clock.now - clock.began <= 1800
        steps.append(max(runs.steps_of(next(tmp_path.glob("runs/custom/*")))))
    # an evaluation of 600 s, known by then, would not have fitted in
    assert starts == 2 and steps == [4]
    (same,) = trained.glob("runs/custom/*-seed0-*")
    assert directory.name == same.name and bits(directory) == bits(same)
    assert runs.rows(directory) == runs.rows(same)


def test_what_was_not_measured_yet_is_given_a_share(monkeypatch):
    clock = Clock(monkeypatch)
    limit = TimeLimit(10.0)
    clock.now += 36000 - 601  # 300 s, twice
    assert not limit.is_over() and limit.is_over("evaluation")
    clock.now += 2
    assert limit.is_over()
    with limit.measured("saving"):
        clock.now += 7.0
    clock.now = clock.began + 36000 - 15
    assert not limit.is_over()
    clock.now += 2
    assert limit.is_over() and not TimeLimit(None).is_over("evaluation")


def test_no_hours_are_refused():
    with pytest.raises(UserError, match="hours must be above 0"):
        _ = RunConfig(composed("train", ["run.hours=0"])).run


def test_neither_hours_nor_restart_make_another_run(trained, tmp_path):
    copied(trained, tmp_path)
    before = bits(run(trained))
    assert bits(run(tmp_path, "run.hours=100", "run.restart=true")) == before
    assert len(list(tmp_path.glob("runs/custom/*"))) == 1


# All checkpoints damaged


def test_all_checkpoints_damaged_are_put_aside_again_and_again(tmp_path):
    """Also where the first were put aside before."""
    for k in (1, 2):
        for name in ("checkpoints/step_2", "checkpoints/step_4", "samples"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "metrics.jsonl").write_text(f"rows {k}")
        with pytest.raises(UserError, match=r"none of its 2 checkpoints.*run.restart=true"):
            last_checkpoint(tmp_path, restart=False)
        assert last_checkpoint(tmp_path, restart=True) is None
        assert (tmp_path / f"damaged_{k}/metrics.jsonl").read_text() == f"rows {k}"
        assert runs.steps_of(tmp_path / f"damaged_{k}") == [2, 4]
    assert not (tmp_path / "checkpoints").exists()
    assert last_checkpoint(tmp_path, restart=False) is None


def test_checkpoints_that_are_gone_stop_a_run_as_damaged_ones_do(trained, tmp_path):
    """Whether the folder is gone or what was in it; the rows say that there were some."""
    for k, (gone, steps) in enumerate([("checkpoints", 2), ("checkpoints/step_*", 6)]):
        copied(trained, tmp_path / str(k))
        (directory,) = tmp_path.glob(f"{k}/runs/custom/*-seed0-*")
        for path in directory.glob(gone):
            shutil.rmtree(path)
        before = runs.snapshot(directory)
        with pytest.raises(UserError, match=r"checkpoints are gone.*step 4.*run.restart=true"):
            run(tmp_path / str(k), steps=steps)
        assert runs.snapshot(directory) == before
        assert run(tmp_path / str(k), "run.restart=true") == directory
        assert bits(directory) == bits(next(trained.glob("runs/custom/*-seed0-*")))
        kept = (directory / "damaged_1/metrics.jsonl").read_bytes()
        assert kept == before["metrics.jsonl"][1]


def test_the_only_checkpoint_of_a_run_is_missed_too(tmp_path):
    images(tmp_path / "images")
    directory = run(tmp_path, steps=2)
    shutil.rmtree(directory / "checkpoints")
    with pytest.raises(UserError, match="checkpoints are gone"):
        run(tmp_path, steps=2)


def test_a_run_whose_first_checkpoint_found_no_room_begins_again(undisturbed, tmp_path):
    """Rows, samples and result.json are there by then."""
    done = runs.operations(undisturbed().parents[2])
    at = runs.number_of(done, r"write \.step_4/model")
    code, text = runs.train(tmp_path, at=f"{at}=FULL")
    directory = runs.directory_of(tmp_path)
    assert code == 2 and not runs.steps_of(directory) and (directory / "result.json").exists(), text
    code, text = runs.train(tmp_path)
    assert code == 0 and "new run" in text, text
    runs.assert_same_run(directory, undisturbed())


# Runs beside it


def told(caplog, word: str) -> list[str]:
    return [message for message in caplog.messages if word in message]


def split_of(root: Path) -> tuple[set[str], set[str]]:
    """The names of held-out images, and of those to train on."""
    data = RunConfig(composed("train", ["data=folder", f"data.path={root}/images"])).data
    reader = data.open_reader(root / "cache")
    names = [path.relative_to(root / "images").as_posix() for path in reader.files]
    train = {names[k] for k in reader.splits["train"]}
    return {*names} - train, train


def test_folders_keep_a_split_when_images_change(tmp_path, caplog):
    for level, split in enumerate(("train", "val", "test"), 10):
        folder = tmp_path / "images" / split / "dark"
        folder.mkdir(parents=True)
        for k in range(8):
            ramp(k, 3 * level).save(folder / f"{k}.png")
    run(tmp_path, steps=2)
    (tmp_path / "images/train/dark/1.png").unlink()
    run(tmp_path, steps=2)
    (line,) = told(caplog, "another run")
    assert line.endswith(
        "23 of its 24 images are the same. Images were added, removed, renamed or "
        "changed since, so this is a new run"
    )


def test_after_images_have_changed_the_run_that_is_there_is_named(trained, tmp_path, caplog):
    copied(trained, tmp_path)
    (other,) = tmp_path.glob("runs/custom/*-seed0-*")
    ramp(99, 40).save(tmp_path / "images/bright/0.png")  # one is another
    (tmp_path / "images/dark/1.png").unlink()  # one is gone
    ramp(98, 70).save(tmp_path / "images/dark/100.png")  # and two are new
    ramp(97, 50).save(tmp_path / "images/dark/101.png")
    new = run(tmp_path, steps=2)
    assert new != other
    (line,) = told(caplog, "another run")
    assert line.startswith(
        f"another run of the same settings is at {other}, step 4; 14 of its 16 images are the same"
    )
    (before, _), (_, train_now) = split_of(trained), split_of(tmp_path)
    moved = (before - {"bright/0.png"}) & train_now
    assert moved and line.endswith(
        f"so this is a new run. {len(moved)} of the {len(before)} images that were held out there "
        "are training images here, so numbers of held-out images do not compare between the two. A "
        "drawn split is drawn anew for other images; folders train, val and test keep it "
        "(docs/data.md)"
    )
    caplog.clear()
    run(tmp_path, steps=4)  # goes on: the run is known by now
    assert not told(caplog, "another run")


def test_where_its_images_are_not_kept_their_number_is_unknown(trained, tmp_path, caplog):
    copied(trained, tmp_path)
    shutil.rmtree(tmp_path / "cache")
    ramp(99, 40).save(tmp_path / "images/bright/0.png")
    run(tmp_path, steps=2)
    assert "how many of its images are the same is unknown" in told(caplog, "another run")[0]


def test_images_that_an_earlier_version_decoded_are_not_said_to_be_gone(
    trained, tmp_path, caplog, monkeypatch
):
    copied(trained, tmp_path)
    monkeypatch.setattr("data.memory_map.DECODER", 1000)
    ramp(99, 40).save(tmp_path / "images/bright/0.png")
    run(tmp_path, steps=2)
    (line,) = told(caplog, "another run")
    assert "unknown, as run.cache does not hold them as this version reads them" in line


def test_another_set_of_images_is_no_change(trained, tmp_path, caplog):
    copied(trained, tmp_path)
    for path in (tmp_path / "images").rglob("*.png"):
        Image.effect_noise((10, 10), 60).save(path)
    run(tmp_path, steps=2)
    assert not told(caplog, "another run")


def test_the_same_run_under_another_name_is_named(trained, tmp_path, caplog):
    copied(trained, tmp_path)
    (other,) = tmp_path.glob("runs/custom/*-seed0-*")
    new = run(tmp_path, steps=2, experiment="mine")
    assert new.name == other.name and new.parent.name == "mine"
    (line,) = told(caplog, "the same run")
    assert line == f"the same run is at {other}, step 4, under another name; this one begins anew"


def test_a_run_from_another_step_of_its_source_is_named_with_the_way_on(trained, tmp_path, caplog):
    """The same command after the source was trained further: it would begin anew."""
    copied(trained, tmp_path)
    (source,) = tmp_path.glob("runs/custom/*-seed0-*")
    transfer = [f"source.from={source}", "transfer=norm_only", "seed=1"]
    stopped = run(tmp_path, *transfer, steps=2, experiment="tr")
    run(tmp_path, steps=6)
    caplog.clear()
    new = run(tmp_path, *transfer, experiment="tr")
    assert new != stopped
    (line,) = told(caplog, "another run")
    cure = f"source.from={source}/checkpoints/step_4"
    assert line == (
        f"another run of the same settings is at {stopped}, step 2; it started from step 4 of the "
        f"same source, and this new run starts from step 6. With {cure} that one goes on"
    )
    caplog.clear()
    caplog.set_level("INFO", "train")
    transfer[0] = cure
    assert run(tmp_path, *transfer, experiment="tr") == stopped
    assert told(caplog, "resuming at step 2") and not told(caplog, "another run")


def test_two_checkpoints_that_are_asked_for_are_no_surprise(trained, tmp_path, caplog):
    copied(trained, tmp_path)
    (source,) = tmp_path.glob("runs/custom/*-seed0-*")
    for step in (2, 4):
        start = f"source.from={source}/checkpoints/step_{step}"
        run(tmp_path, start, "transfer=norm_only", steps=2, experiment="tr")
    assert len(list(tmp_path.glob("runs/tr/*"))) == 2 and not told(caplog, "another run")


# Paths from another working directory


def test_relative_paths_are_found_from_anywhere(trained, tmp_path, monkeypatch):
    """Images, source and the difference from it, also after all was moved together."""
    from evaluation.trained_run import TrainedRun
    from runtime.checkpoint import find
    from training.export_weights import export_difference
    from transfer.trained_weights import load_weights, origin_of, source_of

    torch.set_num_threads(1)
    first, moved = tmp_path / "first", tmp_path / "moved"
    copied(trained, first)
    monkeypatch.chdir(first)
    (source,) = Path("runs/custom").glob("*-seed0-*")
    target = run(Path(), f"source.from={source}", "seed=1", "transfer=norm_only", steps=2)
    export_difference(str(target), Path("small.safetensors"))
    said = json.loads((target / "source.json").read_text())
    assert not Path(said["path"]).is_absolute() and said["folder"] == str(first)
    for place in (first, moved):
        if place == moved:
            os.rename(first, moved)
        monkeypatch.chdir(tmp_path)
        opened = TrainedRun(find(place / target), "ema", [], None, tmp_path / "cache")
        dataset, _ = opened.images
        assert len(dataset.images) == 16
        found = source_of(origin_of(place / target), opened.config, None)
        assert found.path.samefile(place / source / "checkpoints/step_4")
        small = load_weights(str(place / "small.safetensors")).load("ema")
        for name, tensor in opened.trained.load("ema").items():
            assert torch.equal(tensor, small[name])
