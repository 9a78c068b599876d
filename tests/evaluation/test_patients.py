"""A folder of patients, from the run to its report: patients are drawn and not their images, which
evaluation.json and the page say, and nothing is paired with draws of images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import report
from config.overrides import composed
from data.splits import spread
from evaluation.evaluator import evaluate_run
from evaluation.trained_run import TrainedRun
from metrics.held_out_loss import about_the_curve, held_out_errors
from metrics.membership import errors_at_times, loss_attack
from reporting.runs import read_evaluations
from runtime.checkpoint import find
from runtime.files import write_sealed
from runtime.seeds import generator
from tests.helpers.evaluations import few_evaluated
from tests.helpers.transfers import Transfers

NODE = {"function": "ddim", "steps": 2}
PATIENTS, EACH = 12, 5


@pytest.fixture(autouse=True, scope="module")
def fewer_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metrics.classification.STEPS", 10)
        yield


def slices(folder: Path) -> Path:
    """Of patients who differ more than their slices do, each of one of two classes."""
    for p in range(PATIENTS):
        place = folder / "ab"[p % 2]
        place.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(p)
        level = rng.integers(60, 180, 3)
        for k in range(EACH):
            pixels = (level + rng.integers(0, 30, (8, 8, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"P{p}_{k}.png")
    return folder


@pytest.fixture(scope="module")
def transfers(tmp_path_factory) -> Transfers:
    """Source and target are of patients."""
    root = tmp_path_factory.mktemp("patients")
    slices(root / "images")
    return Transfers(root, ["train.steps=20", *of(root)])


def of(root: Path, *more: str) -> list[str]:
    patient = 'data.patient="(P\\d+)_"'
    return ["data=folder", f"data.path={root}/images", "data.test=0.34", patient, *more]


@pytest.fixture(scope="module")
def run(transfers) -> Path:
    start = [f"source.from={transfers.source}", "transfer=full", "train.steps=6"]
    return transfers.run(*of(transfers.root), *start, "model.classes=auto")


@pytest.fixture(scope="module")
def record(transfers, run) -> dict:
    few = ["n=60", "held_out_draws=400", "bound_images=null", "bound_steps=5", "device=cpu"]
    given = [f"checkpoint={run}", *few, "sampler.steps=2", f"cache={transfers.root}/cache"]
    evaluate.main(composed("evaluate", given))
    [found] = read_evaluations(run)
    return found.content


def owners(transfers: Transfers, run: Path):
    """(the run opened, of each of its images the patient by its name)"""
    opened = TrainedRun(find(run), "ema", [], None, transfers.root / "cache")
    data, _ = opened.images
    names = [opened.reader.item_name(k) for k in range(len(data.images))]
    return opened, data, np.array([Path(name).name.split("_")[0] for name in names])


def test_it_says_how_many_patients_judge(record, transfers, run):
    _, data, whose = owners(transfers, run)
    n, count = len(data.splits["test"]), len(set(whose[data.splits["test"]]))
    assert n == EACH * count and 2 <= count < PATIENTS
    assert (record["images"]["test"], record["images"]["test_patients"]) == (n, count)
    assert record["protocol"]["drawn_by"] == "patient"
    told = f"{n} test images of {count} patients: intervals are over patients"
    assert [note for note in record["notes"] if note.startswith(told)]
    assert [note for note in record["notes"] if "KID" in note and f"of {count} patients" in note]
    rho = record["memorization"]["features"]["rho"]
    found = [record["loss"]["target"]["loss"], record["bound"]["bits"], rho]
    for one in found:
        assert (one["images"], one["of_images"]) == (count, n)
    assert record["bound"]["images"] == n
    kid = record["quality"]["test"]["kid"]
    assert kid["images"] == n and "of_images" not in kid
    for name in ("real", "synthetic", "both", "gain"):
        one = record["classification"][name]
        of_class = [
            set(whose[data.splits["test"]][data.labels[data.splits["test"]] == c]) for c in (0, 1)
        ]
        assert one["images"] == min(map(len, of_class)) and one["of_images"] == EACH * one["images"]


def test_the_losses_draw_patients(record, transfers, run):
    """By hand, of the target and of the source's images, which are of patients too."""
    opened, data, whose = owners(transfers, run)
    denoiser = opened.build_denoiser(torch.device("cpu"))
    rows, draws = data.splits["test"], 400
    held = held_out_errors(denoiser, data.images, data.labels, rows, draws)
    residual = about_the_curve(held.errors, held.t).numpy()
    image = held.image.numpy()
    drawn_of = spread(rows, len(set(image.tolist())), data.labels)
    who = list(dict.fromkeys(whose[drawn_of]))
    whose_error = whose[drawn_of][image]
    for k, found in enumerate(record["loss"]["target"]["loss"]["replicates"]):
        drawn = torch.randint(len(who), (len(who),), generator=generator("held-out", k)).tolist()
        mean = np.mean(np.concatenate([residual[whose_error == who[p]] for p in drawn]))
        expected = held.errors.mean().item() + mean - residual.mean()
        assert found == pytest.approx(expected, rel=1e-5)
    for name in ("source", "source_start"):
        of_source = record["loss"][name]["loss"]
        assert of_source["images"] * EACH == of_source["of_images"]
    change = record["loss"]["source_change"]
    now, then = (record["loss"][n]["loss"]["replicates"] for n in ("source", "source_start"))
    assert change["replicates"] == pytest.approx(np.subtract(now, then), abs=3e-6)


def test_membership_draws_patients_of_either_kind(record, transfers, run):
    opened, data, whose = owners(transfers, run)
    denoiser = opened.build_denoiser(torch.device("cpu"))
    rows = [spread(data.splits[split], 256, data.labels) for split in ("train", "test")]
    errors = [errors_at_times(denoiser, data.images, data.labels, part) for part in rows]
    found = record["membership"]["auc"]
    assert found == loss_attack(*errors, tuple(whose[part] for part in rows))
    assert found != loss_attack(*errors)
    assert record["membership"]["excess"]["of_images"] == found["of_images"]


def older(content: dict) -> dict:
    """As an earlier version wrote it: image by image, and nothing says so."""
    before = json.loads(json.dumps(content))
    del before["protocol"]["drawn_by"], before["images"]["test_patients"]
    loss = before["loss"]["target"]["loss"]
    loss["images"] = loss.pop("of_images")
    return before


@pytest.mark.slow
def test_an_evaluation_of_before_is_read_and_stands_apart(record, transfers, run, tmp_path, capsys):
    """The report compares those of one kind and says of the other why it does not."""
    for seed in range(2):
        to = tmp_path / f"{run.name}-{seed}"
        shutil.copytree(run, to, ignore=shutil.ignore_patterns("checkpoints", "generated"))
        [there] = (to / "evaluation").iterdir()
        place = to / "evaluation/before"
        place.mkdir()
        kept = {k: v for k, v in record.items() if k != "sha256 of the rest"}
        write_sealed(place / "evaluation.json", older(kept))
        if seed:
            shutil.rmtree(there)
    report.main([str(tmp_path)])
    said, page = capsys.readouterr().out, (tmp_path / "report.md").read_text()
    assert "is left out, under another protocol (the images of a patient drawn one by one" in said
    shutil.rmtree(to)
    report.main([str(tmp_path)])
    page = (tmp_path / "report.md").read_text()
    count = record["images"]["test_patients"]
    assert f"{EACH * count} test images of {count} patients" in page
    assert "intervals are over patients" in page
    html = (tmp_path / "report.html").read_text()
    assert "95% bootstrap interval over its patients" in html


def test_the_same_command_evaluates_anew_what_was_drawn_by_images(record, transfers, run):
    """And keeps what there was."""
    given = few_evaluated(transfers.root, checkpoint="RUN", metrics=["loss"])
    path = evaluate_run(run, given, NODE) / "evaluation.json"
    content = {k: v for k, v in json.loads(path.read_text()).items() if k != "sha256 of the rest"}
    before = path.parent.with_name("before")
    before.mkdir()
    write_sealed(before / "evaluation.json", older(content))
    shutil.rmtree(path.parent)
    assert evaluate_run(run, given, NODE) == path.parent and before.is_dir()
    assert json.loads(path.read_text())["loss"] == content["loss"]


def test_images_that_are_alone_are_evaluated_as_before(transfers):
    """The same folder without the patients: no word of them, and the protocol has no new key."""
    run = transfers.run(*of(transfers.root)[:3], "train.steps=6")
    given = few_evaluated(transfers.root, checkpoint="RUN", metrics=["loss", "membership"])
    path = evaluate_run(run, given, NODE) / "evaluation.json"
    assert "patient" not in path.read_text().replace(str(transfers.root), "")
    assert "of_images" not in path.read_text() and "drawn_by" not in path.read_text()
