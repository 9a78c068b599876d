"""Whatever looks at some of many images looks at all classes of them, though files are read class
folder by class folder."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from config.overrides import composed
from config.run_config import RunConfig
from data.dataset import Dataset
from data.splits import spread
from diffusion.denoiser import Denoiser
from diffusion.parameterization import PredictNoise
from evaluation import network_metrics, trained_run
from evaluation.protocol import reference_images
from metrics.features import Embedding
from tests.helpers.terms import SCHEDULE
from training import online_kid as light
from training import run
from transfer import ant

SIZES = [40, 25, 60, 10, 33, 52]
LABELS = np.repeat(np.arange(6), SIZES)
# the class can be seen
IMAGES = (
    np.zeros((220, 8, 8, 3), np.uint8) + (20 + 40 * LABELS).astype(np.uint8)[:, None, None, None]
)
DATA = Dataset(
    IMAGES,
    LABELS,
    {split: np.arange(220) for split in ("train", "validation", "test")},
    list("ABCDEF"),
)
COUNT = 37


def check_shares(values) -> None:
    """values: COUNT gray levels of images."""
    found = np.bincount((np.asarray(values).round().astype(int) - 20) // 40, minlength=6)
    assert found.sum() == COUNT
    assert (np.abs(found - COUNT * np.array(SIZES) / 220) < 1).all(), found


@pytest.mark.parametrize("count", [1, 2, 37, 219, 220, 400])
@pytest.mark.parametrize("shuffled", [False, True])
def test_every_class_has_its_share(count, shuffled):
    """By hand: n images of a class of size m among 220 are floor or ceiling of n m / 220; no image
    comes twice."""
    rows = np.random.default_rng(0).permutation(220) if shuffled else np.arange(220)
    chosen = spread(rows, count, LABELS)
    taken = min(count, 220)
    assert len(set(chosen.tolist())) == len(chosen) == taken
    for c, size in enumerate(SIZES):
        assert (
            np.floor(taken * size / 220)
            <= (LABELS[chosen] == c).sum()
            <= np.ceil(taken * size / 220)
        )
    # nobody says the classes, and they lie one after the other
    folders = LABELS[spread(np.arange(220), count)]
    assert all(abs((folders == c).sum() - taken * size / 220) < 2 for c, size in enumerate(SIZES))


def test_a_regular_order_is_not_met_in_step():
    """One image of each of 128 volumes of ten slices: not the same slice of all; of 256 pairs not
    the same side."""
    for period in (10, 2):
        place = np.bincount(spread(np.arange(128 * period), 128) % period, minlength=period)
        assert np.abs(place - 128 / period).max() < 5 * (128 / period * (1 - 1 / period)) ** 0.5, (
            place
        )


def test_folders_inside_classes_are_all_seen():
    """Ten hospitals, each with two images of twenty classes: taken class by class, in the order of
    paths, every hospital has about its share; an even step through each class would meet the same
    five everywhere."""
    hospital, label = np.repeat(np.arange(10), 40), np.tile(np.repeat(np.arange(20), 2), 10)
    found = np.bincount(hospital[spread(np.arange(400), 100, label)], minlength=10)
    assert np.abs(found - 10).max() < 5 * 9**0.5 and np.abs(found - 10).mean() < 4, found


def test_no_rows_are_no_rows():
    assert len(spread(np.arange(0), 5)) == 0


def test_source_images(monkeypatch):
    monkeypatch.setattr(trained_run, "MOST", COUNT)
    monkeypatch.setattr(trained_run, "own_images", lambda *_: DATA)
    plain = RunConfig(
        {"source": composed("train", ["+experiment=transfer_demo"])["source"], "model": {}}
    )
    run = SimpleNamespace(source=SimpleNamespace(config=plain), data=None, cache=None, config=plain)
    images, labels, rows, split, _ = trained_run.TrainedRun.source_images(run)
    assert labels is None and split == "test"
    check_shares(images[rows, 0, 0, 0])


def test_light_set(monkeypatch):
    monkeypatch.setattr(light, "MOST", COUNT)
    seen = []

    class Watching(torch.nn.Module):
        def forward(self, pictures):
            seen.append(pictures)
            return Embedding(
                pictures.float().mean((1, 2))
                + torch.randn(len(pictures), 3, generator=torch.Generator().manual_seed(0))
            )

    light.LightSet(DATA, 12, 64, torch.device("cpu"), Watching())._reference  # noqa: B018
    for part in torch.cat(seen).split(COUNT):
        check_shares(part.float().mean((1, 2, 3)))


def test_accuracy_of_ants_classifier(monkeypatch):
    """Untrained, at one t: which images of either side it is measured on."""
    monkeypatch.setattr(ant, "JUDGED", COUNT)
    monkeypatch.setattr(ant, "_levels", lambda steps: [5])
    seen, to_x0 = [], ant.to_x0
    monkeypatch.setattr(ant, "to_x0", lambda images: seen.append(to_x0(images)) or seen[-1])
    start = SimpleNamespace(seed=0, target=DATA, denoiser=SimpleNamespace(schedule=SCHEDULE))
    ant._train(start, DATA, 0)
    sides = torch.cat(seen).split(COUNT)
    assert len(sides) == 2
    for side in sides:
        check_shares((side.mean((1, 2, 3)) + 1) * 127.5)


def test_sheet_of_training_images(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(run, "grid", lambda images: seen.append(images) or images[0])
    run.show_images(DATA, COUNT, tmp_path / "images.png")
    check_shares(seen[0][:, 0, 0, 0])


def test_bound(monkeypatch):
    seen = []
    monkeypatch.setattr(network_metrics, "bound", lambda denoise, schedule, x0, *_: seen.append(x0))
    network = network_metrics.NetworkMetrics(
        SimpleNamespace(
            images=(DATA, []),
            build_denoiser=lambda device: Denoiser(torch.nn.Identity(), SCHEDULE, PredictNoise()),
        ),
        torch.device("cpu"),
        reference_images(IMAGES, DATA.splits, []),
        0,
        [],
    )
    monkeypatch.setattr(network_metrics, "_bound", lambda batches, *_: list(batches))
    network.bound(COUNT, None, False, batch_size=COUNT // 3)
    assert len(seen) >= 3
    check_shares((torch.cat(seen).mean((1, 2, 3)) + 1) * 127.5)
