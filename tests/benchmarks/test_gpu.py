"""What benchmarks.gpu does with steps that fail, hang, die and are interrupted, on a stub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_steps, record
from tests.helpers import ROOT

NAMES = ["quick", "fails", "poisons", "hangs", "dies", "broken", "shares"]


def run(out: Path, *words: str, module: str = "tests.helpers.stub_gpu") -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, "--out", str(out), "--device", "cpu", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("gpu")
    return out, run(out, "--minutes", "4")


@pytest.mark.slow
def test_each_part_is_measured_or_told(first):
    out, said = first
    ends = {(r["step"], r["name"]): r for r in lines(out) if r["name"] and r["state"] != "begun"}
    measured = {key for key, r in ends.items() if r["state"] == "measured"}
    assert measured == {
        *(("quick", name) for name in "ab"),
        *(("fails", name) for name in "ac"),
        *((step, "b") for step in ("poisons", "hangs", "dies")),
        *(("shares", f"group_norm_act {way}") for way in ("forward", "backward")),
    }
    assert ends["fails", "b"]["why"] == "failed: ValueError: wrong"
    assert "illegal memory access" in ends["poisons", "a"]["why"]
    assert ends["hangs", "a"]["why"] == "ran past the step's limit of 20 s"
    assert ends["dies", "a"]["why"] == "its process ended with 9"
    assert "broken, at its start: failed: ZeroDivisionError" in said
    for r in ends.values():
        assert {"device", "commit", "torch", "driver", "clocks", "at"} <= r.keys()


@pytest.mark.slow
def test_what_a_part_has_started_ends_with_it(first):
    """Else it would run beside the next one, which is timed."""
    out, _ = first
    pid = int((out / "sleeping").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
def test_it_ends_with_what_was_promised(first):
    _, said = first
    assert "No CUDA device here" in said and "left:" not in said
    forward, backward, step = (
        next(line for line in said.splitlines() if line.startswith(text))
        for text in ("norm + SiLU, forward", "norm + SiLU, backward", "training step, over")
    )
    assert forward.endswith("kept") and torch.__version__ in forward
    assert backward.endswith("missed by 0.25") and step.endswith("not measured")


@pytest.mark.slow
def test_a_second_call_has_nothing_to_do(first):
    out, _ = first
    before = len(lines(out))
    said = run(out, "--minutes", "1")
    assert len(lines(out)) == before and "missed by 0.25" in said


def test_a_call_without_time_says_what_is_left(tmp_path):
    assert f"left: {', '.join(NAMES)}. The same command goes on." in run(tmp_path, "--minutes", "0")


def test_what_a_kill_left_goes_on(tmp_path):
    """A part that was begun and has no end, and a torn line: it is measured again; what is there is
    not."""
    run(tmp_path, "--step", "quick")
    kept = [r for r in lines(tmp_path) if r["name"] == "a" or r["state"] == "begun"]
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(map(json.dumps, kept)) + '\n{"step": "qui')
    run(tmp_path, "--step", "quick")
    found = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    assert [r["name"] for r in found if r["state"] == "measured"] == ["a", "b"]


def test_a_ratio_is_of_the_fastest_rows_however_their_speed_is_written():
    rows = [
        {"implementation": name, "layout": layout, "images/s": speed, "median s": ""}
        for name, layout, speed in (
            ("ours", "channels_last", "2.5e+04"),
            ("diffusers", "NCHW", "4021"),
            ("diffusers", "channels_last", "1.306e+04"),
        )
    ]
    assert gpu_steps.against(rows, "ours", "diffusers")["ratio"] == pytest.approx(2.5 / 1.306)
    rows[1:] = []
    assert gpu_steps.against(rows, "ours", "diffusers")["no_ratio"] == "no rows of diffusers"


def test_a_part_that_no_call_has_time_for_is_told_at_the_third(tmp_path, monkeypatch):
    results = gpu.Results(tmp_path, torch.device("cpu"))
    step = gpu_steps.Step("long", "", 100, lambda device: [])
    for _ in range(gpu.TRIES):
        assert not results.known("long")
        results.add("long", name="a", state="begun")
        monkeypatch.setattr(gpu, "MODULE", "tests.helpers.stub_sleeps")
        gpu.run_step(step, results, tmp_path, time.monotonic() + 0.1)
    assert results.known("long") == {"a"}


def test_another_commit_begins_anew(tmp_path, monkeypatch):
    results = gpu.Results(tmp_path, torch.device("cpu"))
    results.add("quick", name="a", state="measured", x=1.0)
    assert results.known("quick") == {"a"}
    monkeypatch.setattr(record, "commit", lambda: "another")
    assert not gpu.Results(tmp_path, torch.device("cpu")).known("quick")


def test_without_a_gpu_it_runs_what_can_run():
    found = [step.name for step in gpu_steps.steps_on(torch.device("cpu"))]
    assert found == ["machine", "counted", "operators"]
    promised = {(p.step, p.name) for p in gpu.PROMISES}
    assert promised <= {(s.name, name) for s in gpu_steps.STEPS for name in names_of(s)}


def names_of(step: gpu_steps.Step) -> set[str]:
    """Of the parts that promises are about, which a CPU can list and not run."""
    listed = {"shares", "eager", "compiled", "sampling"}
    return {name for name, _ in step.parts(torch.device("cpu"))} if step.name in listed else set()


def test_an_operator_that_is_wrong_is_found(monkeypatch):
    """And one that leaves something unwritten, and one that does not repeat its bits."""
    work = next(gpu_steps.workloads.norms(2, 4, 64, (), torch.float32))
    right = work.judge()
    draws = torch.Generator().manual_seed(0)
    wrongs = {
        "wrong by": lambda *a, **k: right(*a, **k) * 1.001,
        "wrong by inf": lambda *a, **k: right(*a, **k).index_fill(0, torch.tensor([1]), torch.nan),
        "two runs differ": lambda *a, **k: right(*a, **k) + 1e-8 * torch.rand(1, generator=draws),
    }
    for message, function in wrongs.items():
        monkeypatch.setattr(gpu_steps.Work, "fused", lambda self, f=function: f)
        with pytest.raises(ValueError, match=message):
            gpu_steps.checked(work, "fp32", "NCHW", torch.device("cpu"))
    monkeypatch.setattr(gpu_steps.Work, "fused", lambda self: right)
    assert gpu_steps.checked(work, "fp32", "NCHW", torch.device("cpu"))["error"] < 1e-6
