"""Augmentation in a run: told while it trains and at no other time, so that samples are of images
as they are; stopped and resumed to the bit; what the log, the report and the run's name say."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from config.identity import digest, identity
from config.overrides import composed
from config.run_config import RunConfig
from data.augmentation import Augmentation
from data.batches import Batches
from data.dataset import Dataset
from diffusion import schedule as schedules
from diffusion.denoiser import Denoiser
from diffusion.losses import simple_loss
from diffusion.parameterization import PredictX0
from diffusion.samplers import ddim
from models.unet import UNet
from runtime.checkpoint import MODEL, find
from tests.helpers import runs
from tests.helpers.transfers import TINY
from training.result import read_result, varied
from training.run import tell_augmentation, train

TURNED = ["augmentation=edm", "augmentation.probability=0.9"]
SHORT = ["data=bundled_tissue", "data.n_train=24", "train.steps=4", "run.checkpoint_every=2"]


def trained(root: Path, *settings: str) -> Path:
    places = [f"run.root={root}/runs", f"run.cache={root}/cache"]
    return train(composed("train", [*TINY, *SHORT, *places, *settings]))


def test_a_network_is_told_while_it_trains_and_at_no_other_time(tmp_path, monkeypatch):
    """Not in the held-out loss, the light set or the samples; and the map trains."""
    seen, terms = [], UNet.time_terms

    def watched(self, timestep, condition):
        seen.append((self.training, "augmentation" in condition))
        return terms(self, timestep, condition)

    monkeypatch.setattr(UNet, "time_terms", watched)
    directory = trained(tmp_path, *TURNED, "run.sample_every=2", "run.kid_images=10")
    assert set(seen) == {(True, True), (False, False)}
    assert sum(training for training, _ in seen) == 4
    table = find(directory).weights(MODEL)["augmentation_embedding.weight"]
    assert table[:, :9].any(0).all() and not table[:, 9:].any()
    assert (directory / "augmented.png").is_file()


def test_before_its_first_step_a_run_with_augmentation_is_one_without(tmp_path):
    """The same weights, held-out loss and pictures, to the bit."""
    plain, augmented = (trained(tmp_path, "train.steps=0", *more) for more in ([], TURNED))
    assert plain != augmented
    results = [json.loads((d / "result.json").read_text()) for d in (plain, augmented)]
    assert results[0]["held_out_loss"] == results[1]["held_out_loss"]
    pictures = [sorted(d.glob("samples/*")) for d in (plain, augmented)]
    assert [p.read_bytes() for p in pictures[0]] == [p.read_bytes() for p in pictures[1]]
    assert pictures[0]


def test_killed_and_started_again_the_same_bits(undisturbed, tmp_path):
    command = [*TURNED, "train.accumulation=2"]
    expected = undisturbed(*command)
    operations = runs.operations(expected.parents[2])
    at = next(line for line in operations if "write .step_8/optimizer.pt" in line).split()[0]
    code, text = runs.train(tmp_path, command, at)
    assert code == -9, text
    runs.assert_same_run(runs.finish(tmp_path, command), expected)


def left_bright() -> Dataset:
    """One image, bright on its left, three times."""
    row = np.linspace(230, 25, 8).astype(np.uint8)
    images = np.broadcast_to(row[None, None, :, None], (3, 8, 8, 1)).copy()
    return Dataset(images, np.zeros(3, np.int64), {"train": np.arange(3)}, [])


def told_nothing(batches: Batches) -> np.ndarray:
    """What the best linear network, of what it is told and a bias, takes for an image [8, 8] where
    it is told zeros, by least squares over 640 images."""
    x0, told = zip(*(batches.as_trained_on(batches.batch(k)) for k in range(40)), strict=True)
    told = torch.cat([t.get("augmentation", torch.zeros(16, 0)) for t in told]).double()
    inputs = torch.cat([torch.ones(len(told), 1), told], dim=1)
    found = torch.linalg.lstsq(inputs, torch.cat(x0).double().flatten(1), driver="gelsd")
    return found.solution[0].view(8, 8).numpy()


def test_what_is_told_does_not_leak():
    """Mirrored images that it is told of leave the image as it is; mirrored ones that it is not
    told of are images too, and the mean of both has no side."""
    image = np.broadcast_to(np.linspace(230, 25, 8).astype(np.uint8) / 127.5 - 1, (8, 8))
    told = told_nothing(Batches(left_bright(), 16, False, 0, Augmentation(mirror=True)))
    untold = told_nothing(Batches(left_bright(), 16, True, 0))
    np.testing.assert_allclose(told, image, atol=1e-6)
    assert abs(untold - image.mean()).max() < 0.1 and np.ptp(image) > 1.5


@pytest.mark.slow
@pytest.mark.parametrize("told", [True, False])
def test_samples_lie_as_the_images_lie(told):
    """Of a small network that learned one image, mirrored in half of the steps, from noise."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    augmentation = Augmentation(mirror=told)
    batches = Batches(left_bright(), 16, not told, 0, augmentation)
    network = UNet(16, (1, 2), 1, (), 1, 1, groups=4, augmentations=12)
    denoiser = Denoiser(network, schedules.cosine(50), PredictX0())
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    draw = torch.Generator().manual_seed(1)
    for k in range(250):
        x0, condition = batches.as_trained_on(batches.batch(k))
        t, noise = (
            torch.randint(1, 51, (16,), generator=draw),
            torch.randn(x0.shape, generator=draw),
        )
        optimizer.zero_grad()
        simple_loss(denoiser.forward_pass(x0, t, noise, condition)).mean().backward()
        optimizer.step()
    x_T, steps = torch.randn(32, 1, 8, 8, generator=draw), [50, 40, 30, 20, 10, 5, 0]
    with torch.no_grad():
        samples = ddim(denoiser.eval(), denoiser.schedule, x_T, steps, None)
    left_is_brighter = samples[..., :4].mean((1, 2, 3)) > samples[..., 4:].mean((1, 2, 3))
    assert left_is_brighter.all() if told else 0.2 < left_is_brighter.float().mean() < 0.8


# What is said of it


@pytest.mark.parametrize(
    ("flip", "augmentation", "says"),
    [
        (False, Augmentation(), ""),
        (True, Augmentation(), "half of them mirrored (data.flip=true)"),
        (
            False,
            Augmentation(0.3, rotation=10, zoom=0.1),
            "zoom 0.1, rotation 10, each in 30% of the images; the network is told, so that "
            "samples are of images as they are: {path}",
        ),
        (
            True,
            Augmentation(mirror=True),
            "half of them mirrored (data.flip=true); mirror; the network is told, so that samples "
            "are of images as they are: {path}",
        ),
    ],
)
def test_one_line_of_what_is_on(tmp_path, caplog, flip, augmentation, says):
    caplog.set_level(logging.INFO)
    path = tmp_path / "augmented.png"
    tell_augmentation(Batches(left_bright(), 4, flip, 0, augmentation), 4, path)
    expected = [f"training images are augmented: {says.format(path=path)}"] if says else []
    assert [r.getMessage() for r in caplog.records] == expected
    assert path.is_file() == augmentation.on


def test_a_name_counts_what_is_on():
    """By what changes numbers: what is off is no part of it."""

    def name(*settings: str) -> str:
        return digest(identity(RunConfig(composed("train", settings)).completed, "images"))

    plain = name()
    assert name("augmentation=none") == name("augmentation.probability=0.2") == plain
    of_before = composed("train", [])
    del of_before["augmentation"]
    assert digest(identity(RunConfig(of_before).completed, "images")) == plain
    others = [
        name("augmentation.rotation=10"),
        name("augmentation.rotation=20"),
        name("augmentation.rotation=10", "augmentation.probability=0.2"),
        name("augmentation=radiograph"),
        name("augmentation=edm"),
    ]
    assert len({plain, *others}) == 6
    assert name("augmentation.rotation=10") == name("augmentation.rotation=10.0")
    untrained = ["transfer=zero_shot", "source.from=x"]
    assert name(*untrained, "augmentation=edm") == name(*untrained)


def test_a_report_names_it_in_one_setting(tmp_path):
    found = [read_result(trained(tmp_path, "train.steps=0", *m)) for m in ([], TURNED)]
    assert varied(found) == ["augmentation"]
    assert [result.settings()["augmentation"] for result in found] == [
        "none",
        "mirror, upside_down, zoom 0.2, rotation 180, stretch 0.2, translation 0.125, each in 90% "
        "of the images",
    ]
