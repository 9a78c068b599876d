"""The light set of an evaluation in training, and that training does not notice it."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch

from config.overrides import composed
from data.dataset import Dataset
from metrics.features import Embedding
from metrics.features.random import RandomConvolutional
from metrics.kid import kid
from runtime import checkpoint
from runtime.errors import UserError
from runtime.seeds import derive
from runtime.signals import PREEMPTED
from tests.helpers import runs
from tests.helpers.terms import images
from training import online_kid as light
from training.best_checkpoint import find_best_checkpoint
from training.config_checks import check_run_config
from training.online_kid import LightSet

KID = ["run.kid_images=12", "run.best_by=kid", "run.keep_last=1"]
CPU = torch.device("cpu")


class Means(torch.nn.Module):
    """The mean of each channel, in units of 0..1; counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, pictures):
        self.calls += 1
        return Embedding(pictures.float().mean((1, 2)) / 255)


def dataset(train=70, validation=20, pictures=None):
    pictures = images(100) if pictures is None else pictures
    rows = np.arange(len(pictures))
    splits = {
        "train": rows[:train],
        "validation": rows[train : train + validation],
        "test": rows[:0],
    }
    return Dataset(pictures, np.array([2, 0, 2, 5, 0] * 20)[: len(pictures)], splits, [])


class Painter:
    """Images that are a function of their seed; keeps what it is asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, seeds, label):
        self.asked.append((list(seeds), label.tolist()))
        return torch.stack(
            [torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )


def as_features(x):
    return torch.from_numpy(np.asarray(x)).float().mean((1, 2)) / 255


def test_the_numbers_are_those_of_the_images():
    painter = Painter()
    values = LightSet(dataset(), 30, 8, CPU, Means())(painter)
    drawn = torch.cat(
        [
            torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(derive("light", k)))
            for k in range(30)
        ]
    )
    made = as_features(((drawn.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1))
    train, validation = as_features(images(100)[:70]), as_features(images(100)[70:90])
    far = [
        np.median(np.linalg.norm(x.numpy()[:, None] - train.numpy()[None], axis=2).min(1))
        for x in (made, validation)
    ]
    assert values == {
        "kid": pytest.approx(kid(made, validation), rel=1e-9),
        "kid_train": pytest.approx(kid(made, train), rel=1e-9),
        "rho": pytest.approx(far[0] / far[1], rel=1e-5),
    }


def test_seeds_are_the_same_everywhere_and_the_classes_of_the_training_images_come_in_turn():
    painter = Painter()
    light_set = LightSet(dataset(), 20, 8, CPU, Means())
    assert light_set(painter) == light_set(painter)
    assert [len(seeds) for seeds, _ in painter.asked] == [8, 8, 4] * 2
    assert [seed for seeds, _ in painter.asked[:3] for seed in seeds] == [
        derive("light", k) for k in range(20)
    ]
    assert [each for _, label in painter.asked[:3] for each in label] == [0, 2, 5] * 6 + [0, 2]
    big = Painter()
    LightSet(dataset(), 150, 4096, CPU, Means())(big)
    assert [len(seeds) for seeds, _ in big.asked] == [64, 64, 22]


def test_the_reference_is_computed_once_and_of_so_many_images(monkeypatch):
    features = Means()
    light_set = LightSet(dataset(), 10, 8, CPU, features)
    assert features.calls == 0
    light_set(Painter())
    # 70 training images in two batches, 20 validation images, 10 generated
    assert features.calls == 2 + 1 + 1
    light_set(Painter())
    assert features.calls == 5
    monkeypatch.setattr(light, "MOST", 15)
    light_set = LightSet(dataset(), 10, 8, CPU, features)
    light_set(Painter())
    assert [
        len(part) for part in (light_set._reference.train, light_set._reference.validation)
    ] == [15, 15]


def test_it_stops_between_batches():
    calls = []
    light_set = LightSet(dataset(), 20, 8, CPU, Means())
    light_set.on_batch = lambda: calls.append(1)
    light_set(Painter())
    assert len(calls) == 2 + 1 + 3 + 1

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        light_set.on_batch = stop
        light_set(Painter())


def test_what_cannot_be_computed_is_absent():
    assert LightSet(dataset(train=1), 10, 8, CPU, Means())(Painter()).keys() == {"kid", "rho"}
    twice = np.concatenate([images(20), images(20)])
    assert LightSet(dataset(20, 20, twice), 10, 8, CPU, Means())(Painter()).keys() == {
        "kid",
        "kid_train",
    }


@pytest.mark.parametrize(("count", "word"), [(0, "are none"), (1, "is 1")])
def test_without_validation_images_it_is_refused(count, word):
    with pytest.raises(UserError, match=f"kid_images=10.*{word}"):
        LightSet(dataset(validation=count), 10, 8, CPU)


def test_images_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="NaN or infinity"):
        LightSet(dataset(), 10, 8, CPU, Means())(
            lambda seeds, label: torch.full((len(seeds), 3, 8, 8), torch.nan)
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["run.best_by=kid"], "set run.kid_images"),
        (["run.kid_images=9"], "at least 10"),
        (["run.kid_images=-1"], "at least 10"),
        (["run.best_by=fid", "run.kid_images=50"], "best_by"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(settings, message):
    with pytest.raises(UserError, match=message):
        check_run_config(composed("train", settings))


# In a run


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    return runs.finish(tmp_path_factory.mktemp("kid"), KID)


def test_training_does_not_notice_it(judged, undisturbed):
    runs.assert_same_weights(judged, undisturbed(), 12)
    more = ("validation/kid", "validation/kid_train", "validation/rho")
    assert [
        {k: v for k, v in row.items() if k not in more} for row in runs.rows(judged)
    ] == runs.rows(undisturbed())
    assert [row["step"] for row in runs.rows(judged) if set(more) <= row.keys()] == [4, 8, 12]


def test_the_best_by_kid_is_kept_and_said(judged, undisturbed):
    by_kid = {
        row["step"]: row["validation/kid"] for row in runs.rows(judged) if "validation/kid" in row
    }
    by_loss = {
        row["step"]: row["validation/loss"] for row in runs.rows(judged) if "validation/loss" in row
    }
    best = min(by_kid, key=by_kid.get)
    assert best != min(by_loss, key=by_loss.get) == 12  # or the test would tell nothing
    assert runs.steps_of(judged) == [best, 12] and find_best_checkpoint(judged).step == best
    assert find_best_checkpoint(judged).progress.validation_kid == by_kid[best]
    result = json.loads((judged / "result.json").read_text())
    assert (result["best_step"], result["best_by"], result["step"]) == (best, "kid", 12)
    plain = json.loads((undisturbed() / "result.json").read_text())
    assert (plain["best_step"], plain["best_by"]) == (12, "loss") and find_best_checkpoint(
        undisturbed()
    ).step == 12


def test_a_run_stopped_in_the_light_set_repeats_it(judged, tmp_path):
    run = runs.launch(tmp_path, [*KID, "run.kid_images=1000000"])
    run.until("step 4: held-out loss")
    os.kill(run.process.pid, signal.SIGTERM)
    code, text = run.wait()
    assert code == PREEMPTED, text
    directory = runs.directory_of(tmp_path)
    saved = checkpoint.find(directory)
    assert (
        saved.step,
        saved.progress.pending,
        saved.progress.validation_loss,
        saved.progress.validation_kid,
    ) == (4, True, None, None)
    runs.assert_same_run(runs.finish(tmp_path, KID), judged)


def test_its_features_are_random_convolutional_ones_unless_told():
    assert isinstance(LightSet(dataset(), 10, 8, CPU).features, RandomConvolutional)
