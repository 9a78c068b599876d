"""wandb is a copy: whatever it raises, the run keeps all that is its own, and one line says so."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evaluation.evaluator import copy_to_wandb, numbers_of
from runtime.log import RunLog, read_metrics
from runtime.wandb_copy import WandbCopy, WandbSettings, run_id

ONLINE = WandbSettings("online", "my/project: #1", timeout=3)


class Stub:
    """In place of the package: what it was told, and what it raises."""

    def __init__(self, fails: str = "", error: Exception | None = None):
        self.fails, self.error, self.told = fails, error, list[Any]()
        self.summary = SimpleNamespace(update=lambda values: self.call("summary", values))

    def call(self, name: str, *what: Any) -> None:
        if name == self.fails and self.error:
            raise self.error
        self.told.append((name, *what))

    def Settings(self, **given: Any) -> dict[str, Any]:
        return given

    def Image(self, pixels: np.ndarray) -> tuple[int, ...]:
        return pixels.shape

    def init(self, **given: Any) -> Stub:
        assert not sys.stdin.isatty()  # so that it does not ask for a key
        self.call("init", given)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.call("log", values, step)

    def finish(self) -> None:
        self.call("finish")


@pytest.fixture
def stub(monkeypatch):
    def put(*arguments: Any) -> Stub:
        made = Stub(*arguments)
        monkeypatch.setitem(sys.modules, "wandb", made)
        return made

    for name in ("WANDB_FINISH_TIMEOUT", "WANDB_FINISH_TIMEOUT_RAISES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return put


def told_run(directory: Path) -> None:
    log = RunLog(directory, 0, ONLINE, {"seed": 0})
    log.metrics(1, {"loss": 0.5})
    log.samples(1, np.zeros((4, 4, 1), np.uint8))
    log.metrics(2, {"loss": 0.25})
    log.close()


@pytest.mark.parametrize(
    ("fails", "error", "says"),
    [
        ("init", TimeoutError("Timed out after 3 s.\nPlease ..."), "Timed out after 3 s."),
        ("init", ValueError("No API key configured. Use `wandb login`."), "No API key configured"),
        ("init", ValueError("two lines\n  of one cause\n"), "(two lines of one cause)"),
        ("init", AttributeError(), "AttributeError"),
        ("log", ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        ("log", BrokenPipeError(32, "Broken pipe"), "Broken pipe"),
        ("finish", TimeoutError("not all was uploaded"), "not all was uploaded"),
    ],
)
def test_whatever_wandb_raises_the_run_has_all(stub, tmp_path, caplog, fails, error, says):
    stub(fails, error)
    told_run(tmp_path)
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0.5, 0.25]
    assert (tmp_path / "samples/samples_0000001.png").is_file()
    (line,) = caplog.messages
    assert line.startswith("wandb.mode=online: wandb gets nothing more of this run")
    assert says in line and "\n" not in line


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("WANDB_BASE_URL", "notaurl", "should be a valid URL"),
        ("WANDB_MODE", "bogus", "should be 'online', 'offline'"),
    ],
)
def test_a_variable_that_wandb_refuses_is_named_with_the_cause(
    monkeypatch, tmp_path, caplog, name, value, why
):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv(name, value)
    wandb.teardown()  # it reads variables once
    told_run(tmp_path)
    wandb.teardown()
    (line,) = caplog.messages
    assert f"({name}: Input {why}" in line and "\n" not in line
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


def test_a_package_that_cannot_be_imported(monkeypatch, tmp_path, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    told_run(tmp_path)
    assert len(caplog.messages) == 1 and len(read_metrics(tmp_path / "metrics.jsonl")) == 2


def test_what_wandb_is_told(stub, tmp_path):
    wandb = stub()
    directory = tmp_path / "custom" / "full-seed0-0123abcd"
    directory.mkdir(parents=True)
    told_run(directory)
    (_, given), *rest = wandb.told
    assert given["project"] == "my-project- -1" and given["resume"] == "allow"
    assert given["settings"]["init_timeout"] == 3 and given["group"] == "custom"
    assert rest == [
        ("log", {"loss": 0.5}, 1),
        ("log", {"samples": (4, 4)}, 1),
        ("log", {"loss": 0.25}, 2),
        ("finish",),
    ]


def test_two_copies_have_two_ids_and_one_run_keeps_its_own(tmp_path, monkeypatch):
    run = tmp_path / "exp/a b:c#肺%?;'\\-seed0"
    run.mkdir(parents=True)
    (run / "identity.json").write_text(json.dumps({"seed": 0}))
    shutil.copytree(run, tmp_path / "copy" / run.name)
    ids = [run_id(run), run_id(tmp_path / "copy" / run.name), run_id(run, "evaluation/x")]
    assert len(set(ids)) == 3 and not any(re.search(r"[/\\#?%:;,'\s]", name) for name in ids)
    monkeypatch.chdir(tmp_path)
    assert run_id(Path("exp") / run.name) == ids[0]
    (run / "identity.json").write_text(json.dumps({"seed": 1}))
    assert run_id(run) != ids[0]
    assert len(run_id(tmp_path / ("x" * 200))) <= 128


def test_evaluations_reach_wandb_beside_their_run(stub, tmp_path):
    wandb = stub()
    record = {
        "protocol": {"n": 8},
        "images": {"n": 8},
        "quality": {"test": {"kid": {"value": 0.5, "low": 0.4, "replicates": [1.0]}}},
        "memorization": {"pixels": {"copy_share": 0, "nearest": [1, 2], "ok": True}},
    }
    run = SimpleNamespace(config=SimpleNamespace(wandb=ONLINE), directory=tmp_path / "full-seed0")
    copy_to_wandb(run, tmp_path / "full-seed0/evaluation/ddim-8", record)
    (_, given), summary, _ = wandb.told
    assert given["job_type"] == "evaluation" and given["name"] == "full-seed0 ddim-8"
    assert given["id"] == run_id(tmp_path / "full-seed0", "ddim-8")
    assert summary == (
        "summary",
        {"quality/test/kid": 0.5, "memorization/pixels/copy_share": 0},
    )
    assert numbers_of({}) == {}


def test_disabled_is_not_even_imported(stub, tmp_path):
    wandb = stub("init", AssertionError())
    copy = WandbCopy(WandbSettings("disabled", "p"), tmp_path, {})
    copy.metrics(1, {})
    copy.summary({})
    copy.finish()
    assert wandb.told == []
