"""One command, many runs: each cell is the run that it is alone, a cell that fails fails alone, the
same command goes on."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from config import overrides
from config.overrides import check_overrides, options
from runtime.errors import UserError
from runtime.hydra_private import parse_command_line
from runtime.signals import PREEMPTED, Preempted
from tests.helpers import runs
from training import sweep, sweep_jobs
from training.sweep_records import Sweep, read_sweep

SWEEP = ["-m", *runs.TINY]


def cells_of(root: Path) -> dict[str, Path]:
    """STRATEGY-seedS of the runs below root -> directory."""
    return {p.parent.name.rsplit("-", 1)[0]: p.parent for p in root.glob("runs/*/*/identity.json")}


def test_each_cell_is_the_run_alone_and_again_it_is_skipped(undisturbed, tmp_path):
    """Between the cells another arithmetic, other weights that train: nothing of it stays
    behind."""
    command = ["transfer=norm_bias,full", "train.precision=bf16,fp32"]
    code, text = runs.train(tmp_path, command, tiny=SWEEP)
    assert code == 0, text
    order = [("bf16", "norm_bias"), ("bf16", "full"), ("fp32", "norm_bias"), ("fp32", "full")]
    for count, (precision, transfer) in enumerate(order, 1):
        assert (
            f"\n[{count}/4] train.precision={precision} transfer={transfer}: finished, held-out "
            "loss"
        ) in text
    directories = {
        (json.loads((p / "environment.json").read_text())["precision"], p.name.split("-")[0]): p
        for p in (q.parent for q in tmp_path.glob("runs/custom/*/identity.json"))
    }
    assert set(directories) == set(order)
    for transfer in ("norm_bias", "full"):
        runs.assert_same_run(directories["fp32", transfer], undisturbed(f"transfer={transfer}"))
    for directory in directories.values():
        log = (directory / "log.txt").read_text()
        # its own, and no word of the sweep
        assert log.count("held-out loss") == 3 and "[" not in log, log
    before = {d: runs.snapshot(d) for d in directories.values()}
    code, text = runs.train(tmp_path, command, tiny=SWEEP)
    assert code == 0 and text.count("finished, held-out loss") == 4
    assert {d: runs.snapshot(d) for d in directories.values()} == before


def test_a_signal_between_two_cells_stops_the_sweep(tmp_path):
    """While Hydra composes the next one."""
    run = runs.launch(tmp_path, ["seed=0,1,2"], tiny=SWEEP)
    run.until(r"\[1/3\] seed=0: finished")
    os.kill(run.process.pid, signal.SIGTERM)
    code, text = run.wait()
    assert code == PREEMPTED and "2 of 3 cells are not finished" in text, text
    assert text.count("stopped by SIGTERM") == 1 and "Traceback" not in text


def test_a_signal_stops_the_sweep_and_the_same_command_continues(undisturbed, tmp_path):
    command = ["seed=0,1,2", "train.steps=24", "run.checkpoint_every=20"]
    run = runs.launch(tmp_path, command, tiny=SWEEP)
    run.until(r"\[1/3\] seed=0: finished[\s\S]*[369]/24")
    os.kill(run.process.pid, signal.SIGTERM)
    code, text = run.wait()
    assert (
        code == PREEMPTED
        and "stopped by SIGTERM; everything is saved" in text
        and "Traceback" not in text
    )
    assert "2 of 3 cells are not finished; the same command continues" in text
    found = cells_of(tmp_path)
    assert sorted(found) == ["full-seed0", "full-seed1"]  # the third was not begun
    reached = runs.steps_of(found["full-seed1"])[-1]
    assert 0 < reached < 24
    code, text = runs.train(tmp_path, command, tiny=SWEEP)
    assert code == 0 and f"resuming at step {reached}:" in text, text
    for seed in range(2):
        runs.assert_same_run(
            cells_of(tmp_path)[f"full-seed{seed}"], undisturbed(*command[1:], f"seed={seed}"), 24
        )


def test_the_number_of_steps_is_no_axis(tmp_path):
    """Its cells would be one run, which goes on, and the table would give its last loss to each."""
    code, text = runs.train(
        tmp_path,
        ["train.steps=2,4"],
        tiny=["-m", *(o for o in runs.TINY if "train.steps" not in o)],
    )
    assert (
        code == 2
        and "train.steps is no axis of a sweep" in text
        and not (tmp_path / "runs").exists()
    ), text


def test_cells_that_fail_fail_alone_and_are_named(tmp_path):
    code, text = runs.train(
        tmp_path,
        ["data.n_train=100000,40", "train.batch_size=8,7"],
        tiny=[*SWEEP, "train.accumulation=2"],
    )
    assert code == 1, text
    assert "error: 3 of 4 cells failed:" in text and "Traceback" not in text
    assert "[2/4] train.batch_size=8 data.n_train=40: finished, held-out loss" in text
    assert (
        "  train.batch_size=7 data.n_train=40: batch_size=7 must be a multiple of accumulation=2"
        in text.replace("train: ", "")
    )
    assert text.count("  train.batch_size=8 data.n_train=100000: ") == 1
    rows = [line for line in text.splitlines() if line.endswith(("  failed", "  finished"))]
    assert [line.split()[-1] for line in rows] == ["failed", "finished", "failed", "failed"]


# a cell


@pytest.fixture
def as_cell(tmp_path, monkeypatch):
    """In this process, the second of three cells."""
    (tmp_path / "sweep.json").write_text(json.dumps({"cells": ["seed=0", "seed=1", "seed=2"]}))
    hydra = SimpleNamespace(
        mode=RunMode.MULTIRUN, sweep=SimpleNamespace(dir=str(tmp_path)), job=SimpleNamespace(num=1)
    )
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    return tmp_path


def raising(error):
    def train():
        raise error

    return train


@pytest.mark.parametrize(
    ("error", "message", "traceback"),
    [
        (UserError("no images"), "no images", False),
        (SystemExit(3), "SystemExit: 3", True),
        (KeyError("x"), "KeyError: 'x'", True),
        (
            PermissionError(13, "Permission denied", "/here"),
            "/here: Permission denied. Where things are written",
            False,
        ),
    ],
)
def test_what_ends_a_cell_is_noted(as_cell, capfd, error, message, traceback):
    sweep.cell(raising(error))
    record = json.loads((as_cell / "1.json").read_text())
    assert record["status"] == "failed" and record["message"].startswith(message)
    assert ("Traceback" in capfd.readouterr().err) == traceback
    assert not sweep.report_failures(Sweep(as_cell, ["seed=0"]))
    assert sweep.report_failures(read_sweep(as_cell))
    assert f"error: 1 of 3 cells failed:\n  seed=1: {message}" in capfd.readouterr().err


@pytest.mark.parametrize("error", [Preempted(signal.SIGTERM), KeyboardInterrupt()])
def test_what_stops_all_cells_is_raised(as_cell, error):
    with pytest.raises(type(error)):
        sweep.cell(raising(error))
    assert not (as_cell / "1.json").exists()


def test_a_job_that_submitit_requeues_leaves_no_record(as_cell, monkeypatch):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    with pytest.raises(SystemExit):
        sweep.cell(raising(SystemExit(-1)))
    assert not (as_cell / "1.json").exists()


def test_cells_elsewhere_are_told_of_as_they_end(as_cell, caplog):
    caplog.set_level(logging.INFO)
    run = as_cell / "run"
    run.mkdir()
    (run / "result.json").write_text('{"held_out_loss": 0.06512, "held_out_grid": 2}')
    with sweep_jobs.told_of_cells(read_sweep(as_cell)):
        (as_cell / "2.json").write_text(
            json.dumps({"status": "finished", "run": str(run), "seconds": 54.4})
        )
        end = time.monotonic() + 20
        while not caplog.messages:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert caplog.messages == ["[1/3] seed=2: finished, held-out loss 0.0651, 0:00:54"]
        (as_cell / "0.json").write_text(
            json.dumps({"status": "failed", "message": "no images\nnone", "seconds": 3700})
        )
    assert caplog.messages[1:] == ["[2/3] seed=0: failed, no images, 1:01:40"]


def test_a_job_that_dies_is_a_cell_that_failed_and_the_others_are_waited_for(as_cell, monkeypatch):
    submitit = pytest.importorskip("submitit")
    from submitit.core.utils import FailedJobError, UncompletedJobError

    def results(job):
        if isinstance(job.outcome, Exception):
            raise job.outcome
        return [job.outcome]

    monkeypatch.setattr(submitit.Job, "results", results)
    outcomes = [
        UncompletedJobError("Job 7_0 (task: 0) has no output (state: OUT_OF_MEMORY)\nlog"),
        "ended by itself",
        FailedJobError("Traceback ...\nImportError: no module torch\n"),
    ]
    (as_cell / "1.json").write_text(json.dumps({"status": "finished", "run": "x", "seconds": 1}))
    with sweep_jobs.jobs_watched(read_sweep(as_cell)):
        jobs = [
            SimpleNamespace(outcome=o, job_id=f"7_{n}", paths=SimpleNamespace(stdout=f"/log{n}"))
            for n, o in enumerate(outcomes)
        ]
        returned = [submitit.Job.results(job)[0] for job in jobs]
    assert (
        returned[1] == "ended by itself"
        and returned[0].return_value is None
        and returned[2].return_value is None
    )
    records = read_sweep(as_cell).records()
    assert [r["status"] for r in records] == ["failed", "finished", "failed"]
    assert (
        records[0]["message"]
        == "its job 7_0 ended without a result, OUT_OF_MEMORY. What it printed: /log0"
    )
    assert records[2]["message"] == (
        "its job 7_2 ended without a result, ImportError: no module torch. What it printed: /log2"
    )
    assert submitit.Job.results is results


# before the first cell


def planned(tmp_path, *arguments: str) -> sweep.Sweep:
    return sweep.plan("train", ["-m", f"run.root={tmp_path}", *arguments])[0]


def test_the_command_line_goes_before_the_sweep(tmp_path):
    given = ["+experiment=transfer_demo", "+sweep=shots", "transfer=scratch,full"]
    shots = planned(tmp_path, *given, "seed=5", "data.n_train=range(10,40,10)")
    assert list(shots.cells) == [
        f"transfer={t} data.n_train={n}" for t in ("scratch", "full") for n in (10, 20, 30)
    ]
    assert (
        shots.folder.parent == tmp_path / "transfer_demo/sweeps"
        and shots.folder.name.startswith("shots-")
    )
    whole = planned(tmp_path, *given)
    assert len(whole.cells) == 2 * 4 * 3 and whole.folder != shots.folder
    every = planned(tmp_path, "transfer=glob(*)")
    assert set(every.cells) == {f"transfer={name}" for name in options("transfer")}


def test_m_may_come_last(tmp_path):
    """What is added to the command line stands beside the overrides, where a parser still takes
    it."""
    argv = ["train.py", "seed=0,1", f"run.root={tmp_path}", "-m"]
    with pytest.raises(RuntimeError, match="begun"), sweep.sweeping("train", argv):
        assert parse_command_line(argv[1:]).overrides[-1].startswith("hydra.sweep.dir=")
        raise RuntimeError("begun")


def refused(*arguments: str) -> str:
    with pytest.raises(UserError) as error:
        check_overrides("train", arguments)
        with sweep.sweeping("train", ["train.py", *arguments]):
            raise AssertionError("it began")
    return str(error.value)


@pytest.fixture
def own_sweeps(tmp_path, monkeypatch):
    """write(name, params): a sweep of that name, in a copy of conf."""
    shutil.copytree(overrides.CONF, tmp_path / "conf")
    monkeypatch.setattr(overrides, "CONF", tmp_path / "conf")
    return lambda name, params: (tmp_path / f"conf/sweep/{name}.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n"
        + "".join(f"      {line}\n" for line in params)
    )


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("transfer: scratch,frist", "transfer=frist: there is no such transfer"),
        ("seeed: 0,1", "seeed: there is no such setting; did you mean seed"),
        ("optimizer.lrr: 1e-3,1e-2", "did you mean optimizer.lr"),
        ("transfer: freeze_encodr", "did you mean freeze_encoder"),
    ],
)
def test_what_a_sweep_varies_is_checked_as_the_command_line_is(own_sweeps, param, message):
    own_sweeps("own", [param])
    assert message in refused("-m", "+sweep=own")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "+sweep=shotss"], "did you mean shots"),
        (["-m", "sweep=shots"], "write +sweep=shots, with a plus"),
        (["-m", "+sweep=shots,own"], "one sweep at a time"),
        (
            ["+experiment=transfer_demo", "+sweep=own"],
            "add -m, python train.py -m +experiment=transfer_demo +sweep=own",
        ),
        (["hydra/launcher=slurm"], "add -m"),
        (["-m", "--cfg", "job", "seed=0,1"], "leave -m out"),
        (["-m", "seed=0,1", "hydra/launcher=slrm"], "Could not find 'hydra/launcher/slrm'"),
        (["-m", "seed=0,1", "hydra.sweeper.max_batch=3"], "max_batch"),
        (["-m", "seed=0,1", "run.directory=x"], "run.directory is that of one run"),
        (["-m", "seed=0,1", "hydra/launcher=slurm"], "there is no Slurm here"),
    ],
)
def test_a_sweep_that_cannot_run_is_refused(own_sweeps, monkeypatch, arguments, message):
    own_sweeps("own", ["seed: 0,1"])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert message in refused(*arguments)


def test_missing_packages_are_named(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert "pip install hydra-submitit-launcher" in refused(
        "-m", "seed=0,1", "hydra/launcher=slurm"
    )


@pytest.mark.parametrize("name", options("sweep"))
def test_every_sweep_varies_what_there_is(name, tmp_path):
    described = (overrides.CONF / f"sweep/{name}.yaml").read_text()
    experiment = re.search(rf"python train.py -m (\+experiment=\w+) \+sweep={name}\s", described)[1]
    check_overrides("train", ["-m", experiment, f"+sweep={name}"])
    if "runs" in described:
        images = ["data.path=nowhere"] if "data.path=" in described else []
        assert (
            f" {len(planned(tmp_path, experiment, f'+sweep={name}', *images).cells)} runs"
            in described
        )


def test_the_slurm_launcher_composes():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    launcher = overrides.composed_keys(
        "train", ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"], hydra=True
    )["hydra"]["launcher"]
    assert (
        launcher["max_num_timeout"] >= 1000
        and launcher["gpus_per_node"] == 1
        and launcher["partition"] == "gpu"
    )
    assert launcher["additional_parameters"] == {"requeue": True}
