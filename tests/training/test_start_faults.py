"""A start that is refused leaves no run, and no directory where it is refused before it has one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config.overrides import composed
from reporting.runs import read_runs
from runtime.errors import UserError
from tests.helpers.starts import config_of
from training.run import train
from training.run_directory import IDENTITY, claim, claimed


def images(root: Path, count: int = 20) -> Path:
    root.mkdir()
    for k in range(count):
        pixels = np.random.default_rng(k).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{k}.png")
    return root


def asked(tmp_path: Path, *overrides: str) -> dict:
    places = [f"run.root={tmp_path}/runs", f"run.cache={tmp_path}/cache", "run.device=cpu"]
    return config_of(["data=folder", f"data.path={tmp_path}/images", *places, *overrides])


@pytest.mark.parametrize(
    "n, cure",
    [
        (19, r"set data.n_train=16 or less, or null for all; data.validation=0 data.test=0 leaves"),
        (21, r"set data.n_train=16 or less, or null for all\."),
        (0, r"set data.n_train=16 or less"),
    ],
)
def test_more_images_than_there_are_name_the_cure_and_make_no_directory(tmp_path, n, cure):
    images(tmp_path / "images")
    with pytest.raises(
        UserError, match=rf"data.n_train={n}: .* has 16 training images .*{cure}"
    ) as e:
        train(asked(tmp_path, f"data.n_train={n}"))
    assert "(20 in all; 2 are for validation and 2 are for test)" in str(e.value)
    assert not (tmp_path / "runs").exists()


def test_images_that_cannot_be_used_leave_no_run(tmp_path):
    (images(tmp_path / "images") / "7.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(UserError, match=r"1 of 20 images.*\n.*7\.png"):
        train(asked(tmp_path))
    [directory] = (tmp_path / "runs/custom").iterdir()
    assert {p.name for p in directory.rglob("*")} <= {".lock", "checkpoints", "samples"}
    assert not read_runs(tmp_path / "runs/custom")


def test_a_missing_source_leaves_no_run(tmp_path, monkeypatch):
    """It is told when the directory is known."""
    monkeypatch.setattr("training.run.SMALL_GPU_HOURS", -1)
    places = [f"run.root={tmp_path}/runs", f"run.cache={tmp_path}/cache"]
    with pytest.raises(UserError, match="no finished run of it"):
        train(composed("train", ["+experiment=transfer_demo", *places]))
    assert not list(tmp_path.glob(f"runs/*/*/{IDENTITY}"))


def test_what_a_refused_start_found_there_stays(tmp_path):
    """A run that has begun, another's directory and a user's own files."""
    directory = tmp_path / "run"

    def refused(identity: dict) -> None:
        with pytest.raises(UserError), claimed(directory, identity):
            (directory / "images.png").touch()
            raise UserError("refused")

    directory.mkdir()
    (directory / "notes.txt").touch()
    refused({"seed": 0})
    assert [p.name for p in directory.iterdir()] == ["notes.txt"]
    claim(directory, {"seed": 0})
    refused({"seed": 1})  # by claim itself
    assert (directory / IDENTITY).exists()
    (directory / "metrics.jsonl").touch()
    refused({"seed": 0})
    assert (directory / IDENTITY).exists() and (directory / "images.png").exists()
