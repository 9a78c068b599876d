"""Sweeps on real machines: two drivers of one, a cell that another process trains, a Slurm that
does not answer."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from runtime.errors import Busy, UserError
from runtime.signals import INTERRUPTED, PREEMPTED, Stopped
from tests.helpers import runs
from training import sweep
from training.sweep_records import read_sweep


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """Sweeping adds to PYTHONPATH, and the terminal's handler to the log."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(sweep, "log_to_terminal", lambda: None)


def driven(tmp_path: Path, *more: str):
    argv = ["train.py", "-m", f"run.root={tmp_path}", "seed=0,1", *more]
    return sweep.sweeping("train", argv)


def test_a_second_driver_of_a_sweep_is_refused_and_spoils_nothing(tmp_path):
    with driven(tmp_path):
        (folder,) = tmp_path.glob("custom/sweeps/*")
        (folder / "0.json").write_text('{"status": "finished", "run": "x", "seconds": 1}')
        busy = "this sweep is being run by another process"
        with pytest.raises(UserError, match=busy), driven(tmp_path):
            raise AssertionError("it began")
        assert (folder / "0.json").exists()
    with driven(tmp_path):  # the first has ended
        assert not (folder / "0.json").exists()


@pytest.mark.parametrize(
    ("stop", "why", "code"),
    [
        (KeyboardInterrupt(), "interrupted", INTERRUPTED),
        (Stopped(signal.SIGTERM), "stopped by SIGTERM", PREEMPTED),
    ],
)
def test_a_driver_that_is_stopped_is_one_line_and_130_or_75(
    tmp_path, capsys, caplog, stop, why, code
):
    caplog.set_level("INFO")
    with pytest.raises(SystemExit) as left, driven(tmp_path):
        raise stop
    assert left.value.code == code
    assert f"{why}; the same command continues" in caplog.messages
    assert "not finished" in capsys.readouterr().out


def test_a_cell_that_is_busy_elsewhere_is_no_failure(tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    (tmp_path / "sweep.json").write_text(json.dumps({"cells": ["seed=0", "seed=1"]}))
    hydra = SimpleNamespace(
        mode=RunMode.MULTIRUN, sweep=SimpleNamespace(dir=str(tmp_path)), job=SimpleNamespace(num=1)
    )
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)

    def train():
        raise Busy("runs/x is being trained by another process")

    sweep.cell(train)
    found = read_sweep(tmp_path)
    assert found.table().splitlines()[-1].split()[-2:] == ["running", "elsewhere"]
    assert caplog.messages[-1].startswith("[2/2] seed=1: running elsewhere, runs/x is being")
    assert not sweep.report_failures(found)
    said = capsys.readouterr().err
    assert "1 of 2 cells are running elsewhere" in said and "1 of 2 cells are not finished" in said


# Slurm


SBATCH = {
    "an unknown partition": "Batch job submission failed: Invalid partition name specified",
    "no answer": "Batch job submission failed: Unable to contact slurm controller",
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Programs of Slurm's names. sbatch says what it is given and fails."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")

    def put(name: str, line: str) -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\necho 'sbatch: error: {line}' >&2\nexit 1\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    for name in ("srun", "sacct", "squeue"):
        put(name, "")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return put


@pytest.mark.parametrize("why", SBATCH)
def test_a_slurm_that_refuses_is_one_message_with_its_line(slurm, tmp_path, capfd, why):
    import submitit

    slurm("sbatch", SBATCH[why])
    executor = submitit.SlurmExecutor(folder=tmp_path / "jobs")
    with pytest.raises(UserError) as error, driven(tmp_path, "hydra/launcher=slurm"):
        try:
            executor.map_array(print, [1, 2])
        except Exception as error:  # Hydra would show its traceback
            raise AssertionError from error
    assert str(error.value).startswith(
        f"hydra/launcher=slurm: Slurm did not take the jobs: sbatch: error: {SBATCH[why]}\n"
    )
    assert "hydra.launcher.partition=NAME" in str(error.value)
    said = capfd.readouterr()
    assert "sbatch" not in said.err and "not finished" not in said.out


def test_an_sbatch_that_is_missing(slurm, tmp_path, monkeypatch):
    import submitit

    slurm("sbatch", "")
    executor = submitit.SlurmExecutor(folder=tmp_path / "jobs")
    (tmp_path / "bin/sbatch").unlink()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    sweeping = driven(tmp_path, "hydra/launcher=slurm")
    with pytest.raises(UserError, match=r"did not take the jobs: .*sbatch"), sweeping:
        executor.map_array(print, [1, 2])


@pytest.mark.slow
def test_train_py_shows_it_and_no_traceback(slurm, tmp_path):
    slurm("sbatch", SBATCH["no answer"])
    arguments = ["-m", *runs.TINY, f"run.root={tmp_path}/runs", "seed=0,1", "hydra/launcher=slurm"]
    done = runs.command("train.py", *arguments)
    assert done.returncode == 2 and done.stderr.count("error: ") == 2, done.stderr
    assert "Unable to contact slurm controller" in done.stderr and "Traceback" not in done.stderr
