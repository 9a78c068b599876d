"""The first thing to run on a machine with a GPU: what works, how fast, and what was promised.

    python -m benchmarks.gpu --out DIR --minutes 9

Each step runs in a process of its own, within a limit; each result is one line of
DIR/results.jsonl as it comes, with the device, its clocks and driver, the versions and the commit.
What fails is told and passed over. The same command again goes on where this one ended, for the
same commit and device. It ends with a table of what was promised. Without a GPU it says so and runs
what can run.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import gpu_steps
from benchmarks.common import reason
from benchmarks.gpu_steps import Step
from benchmarks.record import Record, Results, spoken
from runtime.device import named_device
from runtime.errors import UserError
from runtime.log import table

MODULE = "benchmarks.gpu"
LEAST = 10  # seconds that are worth starting a step for
TRIES = 3  # calls that a part gets to end in
POISONED = 3  # exit code: the device is in no state to go on in this process


@dataclass(frozen=True)
class Promise:
    """What the docs promise of a GPU. key: of a value of a result, of which more is better."""

    text: str
    step: str
    name: str
    key: str
    least: float


PROMISES = (
    Promise("norm + SiLU, forward, of a copy", "shares", "group_norm_act forward", "share", 0.80),
    Promise("norm + SiLU, backward, of a copy", "shares", "group_norm_act backward", "share", 0.75),
    Promise("training step, over diffusers eager", "eager", "training 128", "ratio", 1.7),
    Promise("training step, over diffusers compiled", "compiled", "training 128", "ratio", 1.15),
    Promise("sampling, over diffusers eager", "sampling", "ddim 16", "ratio", 3.0),
)


# in the process of a step


def measure(step: Step, results: Results) -> int:
    """Runs what a step still lacks. Returns the exit code."""
    known = results.known(step.name)
    for name, run in step.parts(results.device):
        if name in known:
            continue
        results.add(step.name, name=name, state="begun")
        began = time.monotonic()
        try:
            found = run()
        except (Exception, SystemExit) as error:  # it is told, and the others go on
            why = reason(error, 600)
            results.add(step.name, name=name, state="failed", why=why)
            print(f"  {name}: {why}", flush=True)
            if "CUDA error" in str(error) or not usable(results.device):
                return POISONED
            continue
        seconds = time.monotonic() - began
        results.add(step.name, name=name, state="measured", seconds=round(seconds, 3), **found)
        print(f"  {name}: {spoken(found)}", flush=True)
    return 0


def usable(device: torch.device) -> bool:
    """Whether the device still computes: after an illegal access it does nothing any more."""
    try:
        return device.type != "cuda" or torch.ones(8, device=device).sum().item() == 8
    except Exception:
        return False


def die_with_parent() -> None:
    """Where the process that was started is killed, the step's own does not go on beside the next
    one's."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


# in the process that was started


def run_step(step: Step, results: Results, out: Path, deadline: float) -> None:
    """In a process of its own. A part that ends or hangs it is noted as failed; called again, the
    others go on."""
    limit = min(time.monotonic() + step.limit, deadline)
    command = [sys.executable, "-m", MODULE, "--out", str(out), "--step", step.name]
    process = subprocess.Popen(
        [*command, "--device", str(results.device)],
        env=os.environ | step.environment,
        start_new_session=True,
    )
    try:
        code = process.wait(max(0.0, limit - time.monotonic()))
        why = f"its process ended with {code}"
    except subprocess.TimeoutExpired:
        if limit == deadline:  # of all steps together: the next call goes on
            if (name := results.interrupted(step.name)) and results.tries(step.name, name) >= TRIES:
                why = f"{TRIES} calls had no time for it: more --minutes"
                results.add(step.name, name=name, state="failed", why=why)
            return
        code, why = None, f"ran past the step's limit of {step.limit:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it has started
        process.wait()
    name = results.interrupted(step.name)
    if name:
        results.add(step.name, name=name, state="failed", why=why)
        print(f"  {name}: {why}", flush=True)
    elif code != POISONED and step.name not in results.ended():
        # all its parts are there, or it could not even begin
        results.add(step.name, name=None, state="done" if code == 0 else "failed", why=why)


def run_all(steps: Sequence[Step], results: Results, out: Path, deadline: float) -> list[str]:
    """The names of those that are left."""
    for step in steps:
        if step.name in results.ended():
            continue
        print(f"{step.name}: {step.about}", flush=True)
        while step.name not in results.ended():
            if deadline - time.monotonic() < LEAST:
                return [s.name for s in steps if s.name not in results.ended()]
            run_step(step, results, out, deadline)
    return []


def promised(records: Sequence[Record]) -> list[list[str]]:
    """What was promised, what was measured, with which torch, and how far it falls short."""
    rows = [["promised", "at least", "measured", "torch", ""]]
    measured = {(r["step"], r["name"]): r for r in records if r["state"] == "measured"}
    for promise in PROMISES:
        record = measured.get((promise.step, promise.name), {})
        value = record.get(promise.key)
        if value is None:
            rows.append([promise.text, f"{promise.least:g}", "-", "", "not measured"])
            continue
        kept = "kept" if value >= promise.least else f"missed by {promise.least - value:.2f}"
        rows.append([promise.text, f"{promise.least:g}", f"{value:.2f}", record["torch"], kept])
    return rows


def failures(records: Sequence[Record]) -> Iterator[str]:
    for r in records:
        if r["state"] == "failed":
            yield f"  {r['step']}, {r['name'] or 'at its start'}: {r['why']}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="the folder of the results")
    parser.add_argument("--minutes", type=float, default=9, help="no step is started after these")
    parser.add_argument("--device", default="auto", help="cuda, or cpu for what runs there")
    parser.add_argument("--step", help="this step alone, in this process")
    chosen = parser.parse_args(argv)
    try:
        device = named_device(chosen.device)
    except UserError as error:
        parser.error(str(error))
    results = Results(chosen.out, device)
    steps = gpu_steps.steps_on(device)
    if chosen.step:
        (step,) = (s for s in steps if s.name == chosen.step)
        die_with_parent()
        if device.index is not None:
            torch.cuda.set_device(device)
        try:
            code = measure(step, results)
        except Exception as error:  # before its first part
            results.add(step.name, name=None, state="failed", why=reason(error, 600))
            raise
        sys.exit(code)
    if device.type != "cuda":
        names = ", ".join(step.name for step in steps)
        print(f"No CUDA device here (torch {torch.__version__}): only {names} can run.")
    left = run_all(steps, results, chosen.out, time.monotonic() + 60 * chosen.minutes)
    records = results.records()
    print(f"\n{results.where['device']}, commit {results.where['commit']}; {results.path}")
    print(table(promised(records)))
    if failed := list(failures(records)):
        print("\n".join(["failed:", *failed]))
    if left:
        print(f"left: {', '.join(left)}. The same command goes on.")


if __name__ == "__main__":
    main()
