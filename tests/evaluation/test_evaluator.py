"""evaluate.py on small real runs: each number against the same one by a route of its own, what is
missing, and what is made once."""

from __future__ import annotations

import copy
import json
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import report
from config.overrides import check_overrides, composed, options
from config.run_config import RunConfig
from data.dataset import Dataset
from data.pixels import to_x0
from diffusion.clipping import clip_x0
from diffusion.denoiser import Denoiser
from evaluation import along_training, evaluator
from evaluation.evaluator import evaluate_folder, evaluate_run, find_runs
from evaluation.protocol import reference_images
from evaluation.trained_run import TrainedRun, image_classes
from metrics.bits_per_dimension import bound
from metrics.features.random import RandomConvolutional
from metrics.kid import kid
from runtime.checkpoint import EMA, find
from runtime.environment import commit
from runtime.errors import UserError
from runtime.seeds import derive
from runtime.signals import INTERRUPTED, PREEMPTED
from tests.helpers.evaluations import few_evaluated
from tests.helpers.runs import snapshot
from tests.helpers.transfers import Transfers, folders
from transfer.trained_weights import of_checkpoint, start_of

NODE = {"function": "ddim", "steps": 2}


@pytest.fixture(scope="module")
def transfers(tmp_path_factory) -> Transfers:
    return Transfers(tmp_path_factory.mktemp("evaluated"), ["train.steps=20"])


def settings(transfers: Transfers, **given) -> evaluate.EvaluateSettings:
    """Of a run, where no images are given."""
    given = given if "images" in given else {"checkpoint": "RUN"} | given
    return few_evaluated(transfers.root, **given)


@pytest.fixture(scope="module")
def full(transfers) -> tuple[Path, dict]:
    """A run and its evaluation."""
    run = transfers.target("full", "train.steps=6")
    folder = evaluate_run(run, settings(transfers), NODE)
    return run, json.loads((folder / "evaluation.json").read_text())


def pictures(folder: Path) -> np.ndarray:
    return np.stack(
        [np.asarray(Image.open(p).convert("RGB")) for p in sorted(folder.glob("[0-9]*.png"))]
    )


def test_each_part_is_there_and_nothing_is_said_twice(full):
    _, record = full
    assert {
        "quality",
        "memorization",
        "loss",
        "bound",
        "forgetting",
        "baselines",
        "images",
        "features",
        "notes",
    } <= record.keys()
    assert record["images"]["n"] == 12 and record["images"]["train"] == 24
    assert set(record["baselines"]) == {
        "memoriser",
        "train against test",
        "half of test against the other half",
        "noise",
        "untouched source",
    }
    assert len(record["notes"]) == len(set(record["notes"]))
    assert not [note for note in record["notes"] if "rror" in note]
    assert "not FID" in record["features"]["name"] and "FID" not in record["features"]["frechet"]


def test_an_evaluation_says_what_it_was_made_by(full):
    _, record = full
    assert (
        record["packages"]["torch"] == torch.__version__
        and record["threads"] == torch.get_num_threads()
    )
    assert record["python"] == platform.python_version() and record["commit"] == commit()
    models = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    assert record["device"] == f"cpu ({models[0]}, {torch.backends.cpu.get_cpu_capability()})"
    assert (
        record["quality"]["test"]["kid"]["images"] == 12
        and record["memorization"]["pixels"]["copy_share_test"]["high"] > 0
    )


def test_the_report_reads_what_was_written(full, transfers, tmp_path, capsys):
    run, _ = full
    shutil.copytree(
        run, tmp_path / run.name, ignore=shutil.ignore_patterns("checkpoints", "generated")
    )
    report.main([str(tmp_path)])
    said, page = capsys.readouterr().out, (tmp_path / "report.md").read_text()
    assert "full has the lowest test loss: " in said and "One seed only" in said and "]°" in said
    assert page.count(f"torch {torch.__version__}") == 2  # trained by, evaluated by


def test_an_evaluation_of_an_older_format_is_made_again(full, transfers, tmp_path):
    run, _ = full
    given = settings(transfers, metrics=["loss"], out=str(tmp_path / "mine"))
    path = evaluate_run(run, given, NODE) / "evaluation.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"version": record["version"] - 1, "loss": {}}))
    evaluate_run(run, given, NODE)
    assert json.loads(path.read_text())["loss"] == record["loss"]


def test_kid_is_that_of_the_kept_images(full):
    run, record = full
    generated = pictures(Path(record["images"]["folder"]))
    assert len(generated) == 12
    features = RandomConvolutional()
    tissue = find(run).config
    from tests.helpers.transfers import (
        TISSUE,  # the images by another way: the source itself, decoded here
    )

    assert TISSUE[0] == "data=bundled_tissue" and tissue["data"]["size"] == 8
    from data.resize import to_array
    from data.sources.bundled import Tissue

    source = Tissue(None)
    test = np.stack(
        [to_array(source.read_image(k), (8, 8), 3, False, "lanczos") for k in source.splits["test"]]
    )
    expected = kid(*(features(torch.from_numpy(images)).features for images in (generated, test)))
    assert record["quality"]["test"]["kid"]["value"] == pytest.approx(expected, rel=1e-6)


def test_losses_are_of_the_test_images_and_of_the_source_as_it_was(full, transfers):
    run, record = full
    loss = record["loss"]
    now, then = (loss[name]["loss"]["value"] for name in ("source", "source_start"))
    assert loss["source_change"]["value"] == pytest.approx(now - then, abs=1e-6)
    start = start_of(RunConfig(find(run).config), of_checkpoint(find(transfers.source)))
    denoiser = RunConfig(find(run).config).frozen_denoiser(start, torch.device("cpu"))
    faces = np.load(
        next(
            p
            for p in (transfers.root / "cache").glob("*.npy")
            if len(np.load(p, mmap_mode="r")) == 100
        )
    )
    x0 = to_x0(torch.from_numpy(faces[:90]))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    errors = []
    for t in range(1, 101, 3):
        times = torch.full((90,), t)
        prediction = denoiser(denoiser.schedule.add_noise(x0, noise, times), times)
        errors.append((prediction.noise - noise).square().mean().item())
    # other draws of t and noise
    assert np.mean(errors) == pytest.approx(loss["source_start"]["loss"]["value"], rel=0.35)
    assert any("fewer than 100 were held out" in note for note in record["notes"])


def test_what_did_not_train_did_not_change(transfers):
    run = transfers.target("freeze_encoder", "train.steps=6")
    folder = evaluate_run(run, settings(transfers, metrics=["forgetting"]), NODE)
    changed = json.loads((folder / "evaluation.json").read_text())["forgetting"]["weights"]
    assert changed["conv_in"] == changed["down.0"] == changed["time_mlp"] == 0
    now, start = (
        find(run).weights(EMA),
        start_of(RunConfig(find(run).config), of_checkpoint(find(transfers.source))),
    )
    assert (
        changed["mid"] == pytest.approx(change_of("mid.", now, start), rel=1e-6)
        and changed["mid"] > 0
    )


def test_an_untouched_source_stands_at_its_own_floor(transfers):
    """zero_shot is the source: its images are those of the floor, its loss and its weights have not
    changed."""
    run = transfers.target("zero_shot")
    record = json.loads(
        (evaluate_run(run, settings(transfers), NODE) / "evaluation.json").read_text()
    )
    ours, floor = (
        record["quality"]["test"]["kid"],
        record["baselines"]["untouched source"]["quality"]["test"]["kid"],
    )
    assert floor == ours
    assert record["baselines"]["untouched source"]["quality"]["intra"] == record["quality"]["intra"]
    assert record["loss"]["source_change"]["value"] == 0 and set(
        record["forgetting"]["weights"].values()
    ) == {0.0}


@pytest.mark.parametrize("start", ["source.include=['conv_in.*']", "copy=mean_and_variance"])
def test_what_was_forgotten_is_told_from_the_whole_source(full, transfers, start):
    """And not from the start of a run that copied some layers, or none of their values: it knew no
    source to forget."""
    run = transfers.target("full", "train.steps=6", start)
    record = json.loads(
        (
            evaluate_run(
                run, settings(transfers, metrics=["loss", "baselines", "forgetting"]), NODE
            )
            / "evaluation.json"
        ).read_text()
    )
    _, whole = full
    assert record["loss"]["source_start"] == whole["loss"]["source_start"]
    assert record["baselines"]["untouched source"] == whole["baselines"]["untouched source"]
    now, then = (record["loss"][name]["loss"]["value"] for name in ("source", "source_start"))
    assert (
        record["loss"]["source_change"]["value"] == pytest.approx(now - then, abs=1e-6)
        and now > then
    )
    now, began = (
        find(run).weights(EMA),
        start_of(RunConfig(find(run).config), of_checkpoint(find(transfers.source))),
    )
    assert record["forgetting"]["weights"]["mid"] == pytest.approx(
        change_of("mid.", now, began), rel=1e-6
    )


def change_of(part: str, now: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    names = [n for n in start if n.startswith(part)]
    moved, size = (
        sum(f(n) for n in names) ** 0.5
        for f in (
            lambda n: (now[n] - start[n]).double().square().sum().item(),
            lambda n: start[n].double().square().sum().item(),
        )
    )
    return moved / size


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Transfers:
    """A target of twice as many green images as red ones, whose own rows alone train: its null
    class is the source's."""
    root = tmp_path_factory.mktemp("classes")
    folders(root / "images", {"green": lambda k: Image.new("RGB", (8, 8), (0, 200 + k, 0))}, n=20)
    folders(root / "images", {"red": lambda k: Image.new("RGB", (8, 8), (200 + k, 0, 0))}, n=10)
    return Transfers(root, ["train.steps=20", "model.classes=auto"])


@pytest.fixture(scope="module")
def conditional(classes) -> Path:
    return classes.run(
        "data=folder",
        f"data.path={classes.root}/images",
        "data.flip=false",
        "transfer=textual_inversion",
        f"source.from={classes.source}",
        "optimizer.lr=0.05",
        "train.steps=6",
    )


def test_images_are_of_the_classes_of_the_training_images(classes, conditional):
    """As often as these; and not of the null class, which textual_inversion and dreambooth leave to
    the source, nor of kept classes."""
    found = find(conditional)
    assert found.classes[:2] == ["green", "red"] and found.classes[2].startswith("source/")

    def made(label) -> list[bytes]:
        record = json.loads(
            (
                evaluate_run(conditional, settings(classes, metrics=["quality"], label=label), NODE)
                / "evaluation.json"
            ).read_text()
        )
        return [p.read_bytes() for p in sorted(Path(record["images"]["folder"]).glob("[0-9]*.png"))]

    green, red, null, every, as_trained = (
        made(label) for label in ("green", "red", "null_class", "all", None)
    )
    assert all(a != b for pair in ((green, red), (green, null), (red, null)) for a, b in zip(*pair))
    assert every == [(green, red)[k % 2][k] for k in range(12)]
    drawn = [
        "green" if image == g else "red" if image == r else None
        for image, g, r in zip(as_trained, green, red)
    ]
    assert None not in drawn and drawn.count("green") > drawn.count("red") > 0


def test_the_classes_are_drawn_in_their_shares():
    labels = np.array([0] * 300 + [1] * 100 + [2] * 100)
    dataset = Dataset(np.zeros((500, 1, 1, 1)), labels, {"train": np.arange(400)}, ["a", "b", "c"])
    drawn = image_classes(None, 3, dataset)
    assert sorted(drawn) == [0] * 300 + [1] * 100  # once through the training images
    assert 60 <= drawn[:100].count(0) <= 90 and image_classes(None, 0, dataset) is None
    assert image_classes("null_class", 3, dataset) is None and image_classes("b", 3, dataset) == "b"


def test_the_bound_is_of_an_image_of_its_class(classes, conditional):
    """As its loss is: of what the network knows of an image."""
    record = json.loads(
        (
            evaluate_run(conditional, settings(classes, metrics=["bound"], bound_steps=None), NODE)
            / "evaluation.json"
        ).read_text()
    )
    run = TrainedRun(find(conditional), "ema", [], None, classes.root / "cache")
    dataset, _ = run.images
    rows = dataset.splits["test"][[0, -1]]
    denoiser = run.build_denoiser(torch.device("cpu"))
    condition = {"label": torch.from_numpy(dataset.labels[rows])}
    denoise = clip_x0(lambda x, t: denoiser(x, t, condition), denoiser.schedule)
    expected = bound(
        denoise,
        denoiser.schedule,
        to_x0(torch.from_numpy(dataset.images[rows])),
        [derive("bound", k) for k in range(2)],
    )
    assert record["bound"]["bits"]["value"] == pytest.approx(expected.bits.mean().item(), rel=1e-6)


def test_the_bound_of_all_images_is_the_same_in_any_batches(full, transfers, monkeypatch, tmp_path):
    """Image k has the t and the noise of seed k, of whichever batch it is; and an evaluation that
    was made in other batches is the same one."""
    left = shutil.ignore_patterns("evaluation", "generated")
    run = shutil.copytree(full[0], tmp_path / full[0].name, ignore=left)
    sizes, forward = [], Denoiser.__call__

    def counted(denoiser, x_t, *rest, **named):
        sizes.append(len(x_t))
        return forward(denoiser, x_t, *rest, **named)

    monkeypatch.setattr(Denoiser, "__call__", counted)

    def bound_of(batch_size, images):
        sizes.clear()
        given = {"metrics": ["bound"], "bound_images": images, "batch_size": batch_size}
        path = evaluate_run(run, settings(transfers, **given), NODE) / "evaluation.json"
        return json.loads(path.read_text())["bound"]

    held_out = full[1]["images"]["test"]
    assert held_out % 100  # the last batch is a smaller one
    together = bound_of(1000, 10**6)
    assert set(sizes) == {held_out} and len(sizes) == 5
    parted = bound_of(100, None)
    assert max(sizes) == 100 and sum(sizes) == 5 * held_out
    assert parted["images"] == together["images"] == held_out
    assert parted["prior"] == pytest.approx(together["prior"], rel=1e-5)
    for key in ("value", "low", "high"):
        assert parted["bits"][key] == pytest.approx(together["bits"][key], rel=1e-5)
    for ours, theirs in zip(parted["terms"], together["terms"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-8)
    assert bound_of(1, None) == parted and not sizes  # evaluated before


def test_the_memoriser_among_the_floors_is_one(full):
    floors = full[1]["baselines"]
    memoriser = floors["memoriser"]
    assert (
        memoriser["memorization"]["features"]["rho"]["value"] == 0
        and memoriser["quality"]["intra"]["occupied"] == 0
    )
    assert memoriser["memorization"]["pixels"]["copy_share"]["value"] == 1
    assert (
        memoriser["memorization"]["features"]["c_t"] < -3
        and memoriser["quality"]["train"]["kid"]["value"] < 1e-6
    )
    noise, real = (
        floors[name]["quality"]["test"]["kid"]["value"] for name in ("noise", "train against test")
    )
    assert noise > 3 * abs(real)


def test_the_same_again_does_nothing_and_more_images_are_added(full, transfers):
    run, record = full
    before = snapshot(run)
    evaluate_run(run, settings(transfers), NODE)
    after = snapshot(run)
    assert {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)} <= {
        k for k in after if k.endswith(".lock")
    }
    folder = Path(record["images"]["folder"])
    first = (folder / "000003.png").stat().st_mtime_ns
    evaluate_run(run, settings(transfers, n=14, metrics=["quality"]), NODE)
    assert len(pictures(folder)) == 14 and (folder / "000003.png").stat().st_mtime_ns == first
    assert len(list(run.glob("evaluation/*/evaluation.json"))) == 2


def test_an_evaluation_that_calls_its_baselines_floors_is_not_made_again(transfers, full):
    given = settings(transfers, metrics=["baselines"])
    path = evaluate_run(full[0], given, NODE) / "evaluation.json"
    content = json.loads(path.read_text())
    assert content["protocol"]["metrics"] == ["floors"]  # as then: it is hashed
    path.write_text(json.dumps(content | {"floors": content.pop("baselines")}))
    before = path.stat().st_mtime_ns
    assert evaluate_run(full[0], given, NODE) == path.parent
    assert path.stat().st_mtime_ns == before


def test_every_finished_run_of_an_experiment(full, transfers, tmp_path):
    run, _ = full
    experiment = run.parent
    assert run in find_runs(experiment) and find_runs(run) == [run]
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "identity.json").write_text("{}")
    with pytest.raises(UserError, match="none of its 1 runs is finished"):
        find_runs(tmp_path)


def test_images_of_a_folder(transfers, tmp_path):
    """Any generator's images: here the training images themselves, which is found out."""

    def noisy(seed):
        return lambda k: Image.fromarray(
            np.random.default_rng([seed, k]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        )

    for seed, name in enumerate(("train", "test")):
        folders(tmp_path, {name: noisy(seed)}, n=40)
    shutil.copytree(tmp_path / "train", tmp_path / "generated")
    given = settings(
        transfers,
        images=str(tmp_path / "generated"),
        train=str(tmp_path / "train"),
        test=str(tmp_path / "test"),
    )
    record = json.loads((evaluate_folder(given) / "evaluation.json").read_text())
    assert (
        record["memorization"]["features"]["rho"]["value"] == 0
        and record["memorization"]["pixels"]["copy_share"]["value"] == 1
    )
    assert abs(record["quality"]["train"]["frechet"]) < 1e-6 < record["quality"]["test"]["frechet"]
    assert "loss" not in record and "untouched source" not in record["baselines"]
    assert (tmp_path / "generated_evaluation" / "closest.png").exists()


def test_few_images_are_said_and_not_guessed(transfers, tmp_path):
    one = Image.new("RGB", (8, 8), "gray")
    for name, n in (("generated", 3), ("train", 2), ("test", 1)):
        folders(tmp_path, {name: lambda k: one}, n=n)
    given = settings(
        transfers,
        images=str(tmp_path / "generated"),
        train=str(tmp_path / "train"),
        test=str(tmp_path / "test"),
    )
    record = json.loads((evaluate_folder(given) / "evaluation.json").read_text())
    said = "\n".join(record["notes"])
    assert "frechet" not in record["quality"]["train"] and "left out" in said
    assert (
        "precision" not in record["quality"]["test"]
        and "precision, recall, density and coverage of the held-out images" in said
    )
    for number in json.dumps(record).replace("[", ",").split(","):
        assert "NaN" not in number and "Infinity" not in number


def test_validation_images_in_place_of_a_test_are_said(transfers, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    reference = reference_images(
        images, {"train": np.arange(10), "validation": np.arange(10, 20), "test": np.arange(0)}, []
    )
    given = settings(transfers, metrics=["quality"], cache=str(tmp_path))
    judge = evaluator.ImageEvaluator(given, tmp_path, reference, None)
    judge.compare(tmp_path, images[:2], {})
    assert any(
        "no test split" in note and "by which the checkpoint was chosen" in note
        for note in judge.notes
    )


@pytest.mark.parametrize("features", options("features"))
def test_every_choice_of_features_composes_in_both_places(features):
    keys = ["name=resnet18"] * (features == "timm") + ["path=FILE"] * (
        features in ("timm", "torchscript")
    )
    arguments = [
        f"features={features}",
        f"features@perceptual={features}",
        *(f"{place}.{key}" for place in ("features", "perceptual") for key in keys),
    ]
    check_overrides("evaluate", arguments)
    config = composed("evaluate", arguments)
    assert config["features"] == config["perceptual"] and config["features"]["_target_"].startswith(
        "metrics.features."
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"checkpoint": None}, "checkpoint=RUN, or images=DIR"),
        ({"checkpoint": "x", "train": "y"}, "images= alone"),
        ({"checkpoint": "x", "metrics": ["qualty"]}, "did you mean quality"),
        ({"checkpoint": "x", "n": 0}, "n must be at least 1"),
        ({"checkpoint": "x", "bound_steps": 1}, "bound_steps must be at least 2"),
        ({"checkpoint": "x", "bound_images": 0}, "bound_images must be at least 1, or null"),
        ({"checkpoint": "x", "metrics": []}, "nothing is asked for"),
        ({"images": "x", "checkpoint": "y", "metrics": "loss"}, "nothing is asked for"),
        ({"images": "x", "checkpoint": "y", "select": "every"}, "with images= or weights=average"),
        ({"checkpoint": "y", "weights": "average", "select": "every"}, "leave it out"),
    ],
)
def test_wrong_settings_are_refused(transfers, given, expected):
    with pytest.raises(ValueError, match=expected):
        settings(transfers, **given)


def test_a_checkpoint_by_its_name_is_no_best_one(transfers):
    """Its evaluation neither replaces that of the best checkpoint nor passes for it."""
    run = transfers.run("train.steps=8", "run.checkpoint_every=4", "seed=5")
    given = settings(transfers, metrics=["loss"])
    best = evaluate_run(run, given, NODE)
    named = evaluate_run(run / "checkpoints/step_4", given, NODE)
    assert best != named and named.name.startswith("step_4_n12")
    assert json.loads((named / "evaluation.json").read_text())["protocol"]["select"] == "step_4"
    assert json.loads((best / "evaluation.json").read_text())["checkpoint"]["step"] == 8


def test_every_checkpoint_is_an_evaluation_of_its_own(transfers, caplog):
    """The same as of each by its name, made once; at the end the lowest of each number."""
    caplog.set_level("INFO")
    run = transfers.run("train.steps=12", "run.checkpoint_every=4", "seed=6", "optimizer.lr=0.02")
    small = ["n=30", "sampler.steps=2", "held_out_draws=32", "device=cpu"]
    small += ["metrics=[quality,loss]", f"cache={transfers.root}/cache"]
    given = composed("evaluate", [f"checkpoint={run}", "select=every", *small])

    def every() -> tuple[list[Path], str]:
        caplog.clear()
        evaluate.main(copy.deepcopy(given))
        return sorted(run.glob("evaluation/*")), caplog.messages[-1]

    evaluate.main(composed("evaluate", [f"checkpoint={run}/checkpoints/step_8", *small]))
    [named] = run.glob("evaluation/*")
    before = (named / "evaluation.json").stat().st_mtime_ns
    folders, said = every()
    assert [folder.name.split("_n30")[0] for folder in folders] == ["step_12", "step_4", "step_8"]
    assert named in folders and (named / "evaluation.json").stat().st_mtime_ns == before
    records = {}
    for folder in folders:
        content = json.loads((folder / "evaluation.json").read_text())
        records[content["checkpoint"]["step"]] = content
        assert content["protocol"]["select"] == f"step_{content['checkpoint']['step']}"
    lines = said.splitlines()
    assert lines[0] == str(run) and lines[1] == "lowest of 3 checkpoints, step 4 to 12:"
    for line, of in zip(
        lines[2:-1],
        (
            lambda r: r["quality"]["test"]["kid"]["value"],
            lambda r: r["quality"]["train"]["kid"]["value"],
            lambda r: r["quality"]["train"]["frechet"],
            lambda r: r["loss"]["target"]["loss"]["value"],
        ),
        strict=True,  # to five test images there is no Fréchet distance
    ):
        values = {step: of(record) for step, record in records.items()}
        step = min(values, key=values.get)
        assert re.search(rf" step {step} +{values[step]:.4g}$", line), (line, values)
    assert "too low" in lines[-1]
    assert every()[1] == said and snapshot(named)["evaluation.json"][0] == before
    with pytest.raises(UserError, match="one folder cannot hold 3 checkpoints' evaluations"):
        evaluate.main(copy.deepcopy(given) | {"out": "x"})
    # one that is damaged stops no other
    (run / "checkpoints/step_8/ema.safetensors").write_bytes(b"")
    given["seed"] = 1
    with pytest.raises(UserError, match="1 of 3 checkpoints could not be evaluated:\n.*step_8"):
        every()
    assert "lowest of 2 checkpoints, step 4 to 12:" in caplog.text


def test_the_first_of_equals_is_the_lowest_step():
    def record(step: int, loss: float) -> dict:
        named = {"protocol": {"held_out": "validation"}, "features": {"frechet": "FID"}}
        of = {"quality": {"train": {"frechet": 7.0}}, "loss": {"target": {"loss": {"value": loss}}}}
        return {**named, **of, "checkpoint": {"step": step}}

    lines = along_training.lowest_of([record(5, 0.3), record(900, 0.2), record(1000, 0.2)])
    assert [line.split() for line in lines.splitlines()[1:-1]] == [
        ["FID", "to", "training", "images", "step", "5", "7"],
        ["loss", "on", "validation", "images", "step", "900", "0.2"],
    ]


def test_a_folder_given_keeps_what_is_in_it(full, transfers, tmp_path):
    run, _ = full
    given = settings(transfers, metrics="loss", out=str(tmp_path / "mine"))
    evaluate_run(run, given, NODE)
    for other, what in (
        (run, settings(transfers, metrics="loss", out=given.out, seed=1)),
        (transfers.source, given),
    ):
        with pytest.raises(UserError, match=r"holds another evaluation(.|\n)*(seed: 0 -> 1|run: )"):
            evaluate_run(other, what, NODE)
    path = tmp_path / "mine" / "evaluation.json"
    whole = json.loads(path.read_text())
    for damaged in ('{"half": ', "[]", path.read_text().replace('"value": 0', '"value": 9')):
        path.write_text(damaged)
        assert (
            json.loads((evaluate_run(run, given, NODE) / "evaluation.json").read_text())["loss"]
            == whole["loss"]
        )


def test_images_that_were_made_anew_are_judged_anew(full, transfers, tmp_path):
    run, record = full
    generated = shutil.copytree(record["images"]["folder"], tmp_path / "given")
    given = settings(transfers, images=f"{generated}/", checkpoint=str(run), metrics="quality")
    first = json.loads((evaluate_run(run, given, NODE) / "evaluation.json").read_text())
    (generated / "000000.png").unlink()
    second = json.loads((evaluate_run(run, given, NODE) / "evaluation.json").read_text())
    assert second["images"]["n"] == first["images"]["n"] - 1 and "n" not in second["protocol"]
    assert first["quality"] != second["quality"]


def test_what_only_the_source_tells_is_made_up_when_it_is_back(transfers, tmp_path):
    """The way out that the note names, source=PATH, must lead out."""
    run = shutil.copytree(transfers.target("full", "train.steps=6"), tmp_path / "run")
    shutil.rmtree(run / "evaluation", ignore_errors=True)
    origin = json.loads((run / "source.json").read_text())
    (run / "source.json").write_text(json.dumps(origin | {"path": str(tmp_path / "gone")}))
    given = settings(transfers, metrics=["forgetting"])
    first = json.loads((evaluate_run(run, given, NODE) / "evaluation.json").read_text())
    assert "forgetting" not in first and "source=PATH" in "\n".join(first["notes"])
    found = settings(transfers, metrics=["forgetting"], source=str(transfers.source))
    path = evaluate_run(run, found, NODE) / "evaluation.json"
    assert "weights" in json.loads(path.read_text())["forgetting"]
    before = path.stat().st_mtime_ns
    evaluate_run(run, found, NODE)
    evaluate_run(run, given, NODE)
    assert path.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="not the source of this run"):
        evaluate_run(run, settings(transfers, metrics=["forgetting"], source=str(run)), NODE)


def test_no_images_are_made_for_what_needs_none(transfers):
    """Thousands of images take hours, and the loss minutes."""
    run = transfers.target("full", "train.steps=4", "seed=8")
    folder = evaluate_run(run, settings(transfers, metrics=["bound", "loss"]), NODE)
    record = json.loads((folder / "evaluation.json").read_text())
    assert (
        record["loss"]["source_change"]
        and record["bound"]["bits"]
        and record["features"]["short"] == "random"
    )
    assert not (run / "generated").exists() and record["images"] == {"train": 24, "test": 413}


def test_damaged_files_are_named_or_made_again(full, transfers, tmp_path, caplog):
    run = shutil.copytree(full[0], tmp_path / "run")
    given = settings(transfers, metrics=["quality"], cache=str(tmp_path / "cache"))
    whole = json.loads((evaluate_run(run, given, NODE) / "evaluation.json").read_text())

    def again() -> dict:
        return json.loads((evaluate_run(run, given, NODE) / "evaluation.json").read_text())

    max(run.glob("evaluation/*/evaluation.json"), key=lambda p: p.stat().st_mtime_ns).unlink()
    for cut, path in enumerate(sorted((tmp_path / "cache/features").glob("*.npy"))):
        content = bytearray(path.read_bytes())
        content[-60] ^= 64  # in the last number before the checksum
        path.write_bytes(content[:200] if cut else content)
    assert again()["quality"] == whole["quality"] and caplog.text.count("is damaged") == 2
    for path in run.glob("evaluation/*/evaluation.json"):
        path.unlink()
    (folder,) = (run / "generated").iterdir()
    for name, message in (
        ("000003.png", "delete it, and the same command makes it again"),
        ("sampling.json", "unknown origin"),
    ):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before[: len(before) // 2])
        with pytest.raises(UserError, match=message):
            again()
        (folder / name).write_bytes(before)
    (run / "source.json").write_text("x")
    with pytest.raises(UserError, match=r"source.json is damaged"):
        again()


def test_images_of_a_run_that_may_only_be_read_go_out(transfers, tmp_path, monkeypatch):
    run = transfers.target("full", "train.steps=4", "seed=8")
    before = snapshot(run.parent)
    monkeypatch.setattr(
        evaluator.os, "access", lambda path, mode: str(path).startswith(str(tmp_path))
    )
    given = settings(transfers, metrics=["baselines"], out=str(tmp_path / "out"))
    record = json.loads((evaluate_run(run, given, NODE) / "evaluation.json").read_text())
    assert (
        record["baselines"]["untouched source"]
        and Path(record["images"]["folder"]).parent == tmp_path / "out"
    )
    assert snapshot(run.parent) == before


def test_what_the_label_makes_of_the_comparison_is_said(transfers, tmp_path):
    classes = folders(
        tmp_path / "classes",
        {
            name: lambda k, shade=shade: Image.new("RGB", (8, 8), (shade + k, k, 0))
            for name, shade in (("a", 50), ("b", 150))
        },
    )
    run = transfers.run(
        "data=folder", f"data.path={classes}", "model.classes=2", "train.steps=2", "data.flip=false"
    )

    def notes(label) -> str:
        folder = evaluate_run(run, settings(transfers, metrics=["quality"], label=label), NODE)
        return "\n".join(json.loads((folder / "evaluation.json").read_text())["notes"])

    assert "of class b alone" in notes("b") and "null class" in notes("null_class")
    assert "class" not in notes("all") + notes(None)


def test_images_that_are_not_those_of_the_run_are_refused(transfers, tmp_path):
    """With one image less the split is another, and trained images are among the held-out ones."""
    images = (
        folders(tmp_path, {"images": lambda k: Image.new("RGB", (8, 8), (9 * k, 99, 0))}, n=20)
        / "images"
    )
    run = transfers.run(
        "data=folder",
        f"data.path={images}",
        "train.steps=2",
        "data.flip=false",
        "data.classes=false",
    )
    moved, given = images.rename(tmp_path / "moved"), settings(transfers, metrics=["loss"])
    with pytest.raises(UserError, match=r"'overrides=\[\"data.path=DIR\"\]'"):
        evaluate_run(run, given, NODE)
    given = settings(transfers, metrics=["loss"], overrides=[f"data.path={moved}"])
    assert evaluate_run(run, given, NODE).exists()
    (moved / "3.png").unlink()
    with pytest.raises(UserError, match="not the images that it was trained on"):
        evaluate_run(run, given, NODE)
    with pytest.raises(UserError, match="of the run's images"):
        evaluate_run(run, settings(transfers, overrides=["data.size=16"]), NODE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, PREEMPTED)]
)
def test_an_evaluation_that_is_stopped_says_that_it_can_go_on(transfers, number, code):
    """And neither shows a traceback nor loses an image."""
    run = transfers.target("full", "train.steps=4", "seed=9")
    command = [
        sys.executable,
        "evaluate.py",
        f"checkpoint={run}",
        f"cache={transfers.root}/cache",
        "n=4000",
        "batch_size=2",
        "device=cpu",
    ]
    process = subprocess.Popen(
        command, cwd=Path(evaluate.__file__).parent, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and len(list(run.glob("generated/*/0*.png"))) < 4:
        time.sleep(0.05)
    process.send_signal(number)
    said = process.communicate()[1]
    assert (
        process.returncode == code
        and "the same command continues" in said
        and "Traceback" not in said
    )
    assert len(list(run.glob("generated/*/0*.png"))) >= 4
    shutil.rmtree(run / "generated")


def test_copies_by_pixels_are_found_without_held_out_images(transfers, tmp_path):
    def noisy(k: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8))

    folders(tmp_path, {"train": noisy}, n=10)
    shutil.copytree(tmp_path / "train", tmp_path / "generated")
    given = settings(transfers, images=str(tmp_path / "generated"), train=str(tmp_path / "train"))
    record = json.loads((evaluate_folder(given) / "evaluation.json").read_text())
    assert (
        record["memorization"]["pixels"]["copy_share"]["value"] == 1
        and "rho" not in record["memorization"]["pixels"]
    )
    assert any("rho and C_T are left out" in note for note in record["notes"])


def test_images_of_another_size_are_scaled_and_that_is_said(transfers, tmp_path):
    for name, side in (("train", 8), ("same", 8), ("larger", 16)):
        folders(
            tmp_path,
            {name: lambda k, side=side: Image.new("RGB", (side, side), (9 * k, 99, 0))},
            n=8,
        )
    run = transfers.target("full", "train.steps=6")
    for name, scaled in (("same", False), ("larger", True)):
        folder = evaluate_run(
            run,
            settings(
                transfers, images=str(tmp_path / name), checkpoint=str(run), metrics=["quality"]
            ),
            NODE,
        )
        notes = json.loads((folder / "evaluation.json").read_text())["notes"]
        assert any("not all 8 high and 8 wide" in note for note in notes) == scaled
