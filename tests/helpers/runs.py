"""Runs of train.py for the tests: tiny ones, in processes of their own, compared by what they leave
on the disk.

The processes are forked from a server that has imported everything and composed a config
(preload.py), so that one costs a second and not five; train.py itself is run anew in each, from its
first line.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from runtime.checkpoint import EMA, MODEL, OPTIMIZER
from runtime.log import read_metrics
from tests.helpers import ROOT as REPO
from tests.helpers import kill_at

PATIENCE = 120  # seconds that a tiny run may take at most
TINY = [
    "model.channels=8",
    "model.multipliers=[1,2]",
    "model.groups=4",
    "model.attention_levels=[1]",
    "model.dropout=0.1",
    "data.size=8",
    "data.flip=true",
    "optimizer.lr=2e-4",
    "train.batch_size=8",
    "train.warmup=3",
    "train.precision=fp32",
    "train.ema_decay=0.99",
    "train.steps=12",
    "run.device=cpu",
    "run.checkpoint_every=4",
    "run.log_every=3",
    "run.held_out_draws=16",
    "run.sample_every=8",
    "run.samples=2",
    "sampler.steps=2",
    "run.keep_last=2",
]
# What trains changes before, between and after the checkpoints at 4 and 8; one part is frozen
# again, the time embedding always is.
UNFREEZING = [
    "train.accumulation=2",
    "transfer.rules=[{pattern: 'up.*'}, {pattern: 'conv_out.*'}, {pattern: '*norm*', from: 3, "
    "learning_rate_scale: 0.5}, {pattern: 'down.*', from: 6}, {pattern: 'up.1.*', "
    "learning_rate_scale: 0, from: 9}]",
]
TIMES = ("images_per_second", "seconds")  # what may differ between the rows of two equal runs

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.helpers.preload"])


@dataclass
class Launched:
    """A run in its process. log: what it prints."""

    process: multiprocessing.process.BaseProcess
    log: Path

    def wait(self, timeout: float = PATIENCE) -> tuple[int, str]:
        """Exit code (minus the signal's number where one ended it) and what was printed."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"still running after {timeout} s:\n{self.log.read_text()}")
        return self.process.exitcode, self.log.read_text()

    def until(self, pattern: str, timeout: float = PATIENCE) -> None:
        """Waits until the run has printed this."""
        end = time.monotonic() + timeout
        while not re.search(pattern, self.log.read_text()):
            assert time.monotonic() < end and self.process.is_alive(), (
                f"never printed {pattern}:\n{self.log.read_text()}"
            )
            time.sleep(0.01)


def launch(
    root: Path, arguments: Sequence[str] = (), at: str = "0", tiny: Sequence[str] = TINY
) -> Launched:
    """Starts a tiny run below root: root/runs, root/cache. at: see kill_at.py."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for the server, which is started with the first run
    root.mkdir(parents=True, exist_ok=True)
    log = root / "output.txt"
    log.write_text("")
    command = [*tiny, f"run.root={root}/runs", f"run.cache={root}/cache", *arguments]
    process = _context.Process(target=_child, args=(command, str(log), at), daemon=True)
    process.start()
    return Launched(process, log)


def _child(command: list[str], log: str, at: str) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    torch.set_num_threads(1)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
    # its own is a semaphore of the system, which a process that is killed leaves behind
    tqdm.set_lock(threading.RLock())
    os.environ["OPERATIONS"] = log.replace("output.txt", "operations.txt")
    os.chdir(REPO)
    kill_at.main(at, "train.py", command)


def command(script: str, *arguments: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess:
    """python SCRIPT ARGUMENTS in the project's folder, forked as a run is: exit code, stdout and
    stderr."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        process = _context.Process(
            target=_script, args=(script, arguments, *map(str, files)), daemon=True
        )
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(
                f"{script} {arguments}: still running after {timeout} s:\n{files[1].read_text()}"
            )
        return subprocess.CompletedProcess(
            [script, *arguments], process.exitcode, *(file.read_text() for file in files)
        )


def _script(script: str, arguments: Sequence[str], stdout: str, stderr: str) -> None:
    for fd, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), fd)
    torch.set_num_threads(1)
    os.chdir(REPO)
    sys.argv, sys.path[0] = [script, *arguments], str(REPO)
    runpy.run_path(script, run_name="__main__")


def train(
    root: Path, arguments: Sequence[str] = (), at: str = "0", tiny: Sequence[str] = TINY
) -> tuple[int, str]:
    """A tiny run to its end: exit code, what it printed."""
    return launch(root, arguments, at, tiny).wait()


def finish(root: Path, arguments: Sequence[str] = ()) -> Path:
    """A tiny run that must succeed -> its directory."""
    code, text = train(root, arguments)
    assert code == 0, text
    return directory_of(root)


def copied(directory: Path, root: Path) -> Path:
    """A finished run at another root, where the same command finds it, and on which nothing
    stands: another test may have started from the original."""
    shutil.copytree(directory.parents[2], root, dirs_exist_ok=True)
    for note in root.glob("runs/*/*/checkpoints/needed_*"):
        note.unlink()
    return directory_of(root)


def directory_of(root: Path, experiment: str = "*") -> Path:
    """The one run directory below root."""
    found = sorted(p for p in root.glob(f"runs/{experiment}/*") if p.is_dir())
    assert len(found) == 1, found
    return found[0]


def operations(root: Path) -> list[str]:
    """What the last run below root that was not killed did, such as "17 replace
    checkpoints/step_8"."""
    return (root / "operations.txt").read_text().splitlines()


def number_of(lines: Sequence[str], pattern: str) -> int:
    """The number of the one operation that matches."""
    found = [line for line in lines if re.search(pattern, line)]
    assert len(found) == 1, (pattern, found, lines)
    return int(found[0].split()[0])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def steps_of(directory: Path) -> list[int]:
    return sorted(int(p.name[5:]) for p in (directory / "checkpoints").glob("step_*"))


def rows(directory: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    text = (directory / "metrics.jsonl").read_text()
    read = read_metrics(directory / "metrics.jsonl")
    assert len(read) == text.count("\n"), f"a torn row:\n{text}"
    return [{key: value for key, value in row.items() if key not in TIMES} for row in read]


def tensors(node, path: str = "") -> dict[str, object]:
    """The leaves of a nest of dicts and lists by their path."""
    if isinstance(node, dict):
        return {
            k: v for key, value in node.items() for k, v in tensors(value, f"{path}.{key}").items()
        }
    if isinstance(node, list | tuple):
        return {
            k: v
            for key, value in enumerate(node)
            for k, v in tensors(value, f"{path}.{key}").items()
        }
    return {path: node}


def assert_same_weights(ours: Path, theirs: Path, step: int) -> None:
    """Two runs have the same model, average and optimizer at a step, to the bit."""
    ours, theirs = ours / f"checkpoints/step_{step}", theirs / f"checkpoints/step_{step}"
    for name in (MODEL, EMA):
        assert sha256(ours / name) == sha256(theirs / name), f"{name} of step {step} differs"
    a, b = (tensors(torch.load(p / OPTIMIZER, weights_only=True)) for p in (ours, theirs))
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key], (
            f"optimizer{key} differs"
        )


def assert_same_run(ours: Path, theirs: Path, step: int = 12) -> None:
    """A disturbed run left what an undisturbed one left: weights, rows, pictures, snapshots of
    averages, and nothing beside them."""
    assert_same_weights(ours, theirs, step)
    assert rows(ours) == rows(theirs)
    for kind in ("samples", "averages"):
        files = {p.name: sha256(p) for p in ours.glob(f"{kind}/*")}
        assert files == {p.name: sha256(p) for p in theirs.glob(f"{kind}/*")}
    hidden = [p for p in ours.rglob(".*") if p.name != ".lock"]
    assert not hidden, f"left behind: {hidden}"


def snapshot(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time and content."""
    return {
        str(p.relative_to(directory)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }
