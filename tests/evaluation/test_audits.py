"""What membership and classification come to in an evaluation: of which images, beside which
source, and added to evaluations that were made without them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.pixels import to_uint8
from data.splits import spread
from evaluation import audits
from evaluation.audits import audit_membership
from evaluation.evaluator import EvaluateSettings, evaluate_run
from evaluation.network_metrics import NetworkMetrics
from evaluation.protocol import lacks_source, reference_images
from evaluation.settings import AUDITS, METRICS
from evaluation.suite import Notes
from evaluation.trained_run import TrainedRun
from metrics.membership import errors_at_times, loss_attack
from runtime.checkpoint import find
from sampling import load
from tests.helpers.evaluations import SAMPLER, few_evaluated
from tests.helpers.transfers import Transfers, folders

NODE = {"function": "ddim", "steps": 2}
BEFORE = [name for name in METRICS if name not in AUDITS]


@pytest.fixture(autouse=True, scope="module")
def fewer_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metrics.classification.STEPS", 40)
        yield


@pytest.fixture(scope="module")
def transfers(tmp_path_factory) -> Transfers:
    """Targets of more green images than red ones, and two blue ones."""
    root = tmp_path_factory.mktemp("audited")
    for name, colour, n in (("green", 1, 30), ("red", 0, 20), ("blue", 2, 2)):

        def image(k: int, colour: int = colour) -> Image.Image:
            pixels = np.random.default_rng(k).integers(0, 60, (8, 8, 3), dtype=np.uint8)
            pixels[..., colour] += 180
            return Image.fromarray(pixels)

        folders(root / "images", {name: image}, n=n)
    return Transfers(root, ["train.steps=20", "model.classes=auto"])


def target(transfers: Transfers, *more: str, strategy: str = "full") -> Path:
    return transfers.run(
        "data=folder",
        f"data.path={transfers.root}/images",
        "data.test=0.3",
        f"transfer={strategy}",
        f"source.from={transfers.source}",
        "train.steps=6",
        "model.classes=auto",
        *more,
    )


@pytest.fixture(scope="module")
def run(transfers) -> Path:
    """Of rows for its classes alone, which its images are then told apart by."""
    return target(transfers, "optimizer.lr=0.05", strategy="textual_inversion")


def settings(transfers: Transfers, **given) -> EvaluateSettings:
    return few_evaluated(transfers.root, **{"checkpoint": "RUN", "n": 24} | given)


def evaluated(run: Path, given: EvaluateSettings) -> dict:
    return json.loads((evaluate_run(run, given, NODE) / "evaluation.json").read_text())


def opened(transfers: Transfers, run: Path) -> TrainedRun:
    return TrainedRun(find(run), "ema", [], None, transfers.root / "cache")


@pytest.fixture(scope="module")
def full(transfers, run) -> dict:
    return evaluated(run, settings(transfers))


def test_membership_is_of_training_against_test_images_beside_the_untouched_source(
    full, transfers, run
):
    found, trained = full["membership"], opened(transfers, run)
    data, _ = trained.images
    rows = [spread(data.splits[split], 256, data.labels) for split in ("train", "test")]
    assert (found["members"], found["non_members"]) == tuple(map(len, rows))
    assert set(rows[0]) == set(data.splits["train"])
    network = trained.build_denoiser(torch.device("cpu"))
    source = trained.config.frozen_denoiser(trained.untouched_weights, torch.device("cpu"))
    ours, theirs = (
        loss_attack(*(errors_at_times(d, data.images, data.labels, part) for part in rows))
        for d in (network, source)
    )
    assert found["auc"] == ours and found["source"]["auc"] == theirs
    assert found["excess"]["value"] == pytest.approx(ours["value"] - theirs["value"])
    assert len(found["by_decile"]) == len(found["source"]["by_decile"]) == 10


def test_the_source_itself_tells_no_more_than_the_source(transfers):
    zero_shot = target(transfers, strategy="zero_shot")
    found = evaluated(zero_shot, settings(transfers, metrics=["membership"]))["membership"]
    assert found["source"]["auc"] == found["auc"] and found["excess"]["value"] == 0
    of_source = evaluated(transfers.source, settings(transfers, metrics=["membership"]))
    assert "source" not in of_source["membership"] and "auc" in of_source["membership"]
    assert "folder" not in of_source["images"]  # none were made


def test_a_classifier_is_given_each_generated_image_with_its_class(
    transfers, run, monkeypatch, tmp_path
):
    given, classify = {}, audits.classification

    def watched(*arguments):
        names = ("real", "synthetic", "test", "judged", "classes", "flip")
        given.update(zip(names, arguments))
        return classify(*arguments)

    monkeypatch.setattr(audits, "classification", watched)
    record = evaluated(
        run, settings(transfers, metrics=["classification"], out=str(tmp_path / "out"))
    )
    data, _ = opened(transfers, run).images
    assert list(given["real"].rows) == list(data.splits["train"]) and given["classes"] == 3
    assert [data.classes[k] for k in given["judged"]] == ["green", "red"]
    assert set(given["test"].labels[given["test"].rows]) == set(given["judged"])
    made, labels = given["synthetic"].images, given["synthetic"].labels
    assert len(made) == 24 and set(labels) >= set(given["judged"])
    model = load(str(run), device="cpu")
    for c in range(3):
        of_class = to_uint8(model.sample(24, label=c, sampler=SAMPLER)).numpy().astype(int)
        far = np.abs(of_class - made).reshape(24, -1).max(1)
        assert (far[labels == c] <= 1).all() and (far[labels != c] > 1).any()
    found = record["classification"]
    assert found["real"]["value"] > 0.95  # red and green are easily told
    assert found["images"] == {"real": len(given["real"].rows), "synthetic": 24, "test": 15}
    assert found["classes"] == ["green", "red"]
    assert any("not of blue" in note for note in record["notes"])


def test_an_evaluation_of_before_gets_what_it_lacks_and_keeps_the_rest(
    full, transfers, run, monkeypatch
):
    """As by the version before: without these metrics in its protocol, and asked for all."""
    folder = evaluate_run(run, settings(transfers), NODE)
    path = folder / "evaluation.json"
    assert full["protocol"]["metrics"] == [*BEFORE[:-1], "floors"]
    assert evaluate_run(run, settings(transfers, metrics=BEFORE), NODE) == folder
    old = {key: value for key, value in full.items() if key not in (*AUDITS, "sha256 of the rest")}
    path.write_text(json.dumps(old | {"commit": "of then"}))
    with monkeypatch.context() as patch:
        for name in ("losses", "bound", "forgetting"):
            patch.delattr(NetworkMetrics, name)
        patch.delattr("evaluation.evaluator.ImageEvaluator.compare")
        now = evaluated(run, settings(transfers))
        again = path.stat().st_mtime_ns
        evaluate_run(run, settings(transfers), NODE)
    assert path.stat().st_mtime_ns == again
    assert {name: now[name] for name in AUDITS} == {name: full[name] for name in AUDITS}
    unchanged = set(old) - {"commit", "notes"}
    assert {key: now[key] for key in unchanged} == {key: old[key] for key in unchanged}
    assert now["commit"] == "of then" and set(now["added_by"]) == set(AUDITS)
    assert sorted(now["notes"]) == sorted(full["notes"])


def test_what_is_not_asked_for_again_is_kept(full, transfers, run, tmp_path):
    """Where an evaluation is made anew, as its source is back."""
    given = settings(transfers, metrics=["forgetting", *AUDITS], out=str(tmp_path / "out"))
    path = evaluate_run(run, given, NODE) / "evaluation.json"
    there = json.loads(path.read_text())
    gone = {k: v for k, v in there.items() if k not in ("forgetting", "sha256 of the rest")}
    path.write_text(json.dumps(gone))
    less = settings(transfers, metrics=["forgetting"], out=str(tmp_path / "out"))
    now = evaluated(run, less)
    assert all(now[name] == there[name] for name in ("forgetting", *AUDITS))


def test_what_cannot_be_told_apart_is_left_out_and_said(transfers, run, tmp_path):
    told = target(transfers, "model.classes=0")
    record = evaluated(told, settings(transfers, metrics=["classification"]))
    assert record["classification"] == {} and "model.classes=auto" in "".join(record["notes"])
    record = evaluated(run, settings(transfers, metrics=["classification"], label="red"))
    assert record["classification"] == {} and "label=red" in "".join(record["notes"])
    alone = target(transfers, "data.include=['green/*','blue/*']")
    record = evaluated(alone, settings(transfers, metrics=["classification"]))
    assert record["classification"] == {} and "of 2 classes 1 have" in "".join(record["notes"])


def test_those_held_out_are_said_where_they_are_no_test(transfers, run):
    trained, said = opened(transfers, run), Notes()
    data, about = trained.images
    parts = {"train": data.splits["train"], "validation": data.splits["test"][:5]}
    reference = reference_images(data.images, parts, about)
    network = NetworkMetrics(trained, torch.device("cpu"), reference, 8, said)
    assert audit_membership(network)["non_members"] == 5 and "validation images" in said[0]
    nothing = reference_images(data.images, {"train": data.splits["train"]}, about)
    network = NetworkMetrics(trained, torch.device("cpu"), nothing, 8, said)
    assert audit_membership(network) == {} and "no held-out images" in said[-1]


def test_a_source_that_is_back_is_asked(full, transfers, run):
    """And not where nothing was held out, or membership was not asked for."""
    trained, given = opened(transfers, run), settings(transfers)
    lacking = {"auc": 0.5, "by_decile": []}
    assert lacks_source(full | {"membership": lacking}, trained, given)
    assert not lacks_source(full, trained, given)
    assert not lacks_source(full | {"membership": {}}, trained, given)
    assert not lacks_source(
        {key: value for key, value in full.items() if key != "membership"}, trained, given
    )
