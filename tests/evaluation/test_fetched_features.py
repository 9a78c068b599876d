"""evaluate.py with features whose weights are fetched by name. The weights are random ones, from a
server on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import evaluate
from config.overrides import composed
from runtime.download import published
from tests.helpers import runs
from tests.helpers.features import node_of, write_inception
from tests.helpers.file_server import publish, serving, table_row
from tests.helpers.runs import snapshot
from tests.helpers.transfers import Transfers, folders

NAME = node_of("inception")["path"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Of few images, as Inception takes its time."""
    root = tmp_path_factory.mktemp("evaluated")
    folders(root, {"images": lambda k: Image.new("RGB", (8, 8), (12 * k, 99, 0))}, n=20)
    return Transfers(root, ["train.steps=2"]).run(
        "data=folder",
        f"data.path={root}/images",
        "data.classes=false",
        "data.flip=false",
        "train.steps=2",
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write_inception(tmp_path_factory.mktemp("weights") / "given.pth")


@pytest.fixture
def server(file, tmp_path, monkeypatch):
    with serving({f"/{NAME}": file.read_bytes()}) as running:
        publish(monkeypatch, tmp_path, {NAME: table_row(running, f"/{NAME}")})
        yield running


def cache_of(run: Path) -> Path:
    return run.parents[2] / "cache"


def arguments(run: Path, n: int) -> list[str]:
    return [
        f"checkpoint={run}",
        f"cache={cache_of(run)}",
        f"n={n}",
        "features=inception",
        "metrics=[quality]",
        "sampler.steps=2",
        "device=cpu",
    ]


def test_inception_from_a_machine_with_nothing(run, server, tmp_path):
    evaluate.main(composed("evaluate", arguments(run, 2)))
    assert (tmp_path / "torch/hub/checkpoints" / NAME).is_file() and len(server.asked) == 1
    (path,) = run.glob("evaluation/best_n2_inception_*/evaluation.json")
    record = json.loads(path.read_text())
    assert record["features"]["frechet"] == "FID" and record["quality"]["test"]["kid"]["value"]


def test_an_evaluation_with_the_file_is_found_with_the_fetched_one(run, file, server):
    """And so are the features of the run's images in the cache."""
    evaluate.main(composed("evaluate", [*arguments(run, 3), f"features.path={file}"]))
    before, cached = snapshot(run), snapshot(cache_of(run) / "features")
    assert cached and not server.asked
    evaluate.main(composed("evaluate", arguments(run, 3)))
    assert len(server.asked) == 1 and snapshot(run) == before
    (path,) = run.glob("evaluation/best_n3_*/evaluation.json")
    record = json.loads(path.read_text())
    path.unlink()
    evaluate.main(composed("evaluate", arguments(run, 3)))
    assert json.loads(path.read_text())["quality"] == record["quality"]
    assert snapshot(cache_of(run) / "features") == cached


def test_weights_that_cannot_be_had_are_told_before_any_work(run):
    before, known = snapshot(run), published()[NAME]
    done = runs.command("evaluate.py", *arguments(run, 4))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for word in (
        known.url,
        f"(96 MB, sha256 {known.sha256})",
        "put it at /",
        f"hub/checkpoints/{NAME}.",
    ):
        assert word in done.stderr
    assert snapshot(run) == before
