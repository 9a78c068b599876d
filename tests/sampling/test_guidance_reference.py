"""Guidance away from other weights (autoguidance): the formula, what the reference is told, which
weights go together, and that its images are told apart from others."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from config.overrides import composed
from config.run_config import RunConfig
from diffusion.generate import SamplerSettings
from diffusion.samplers import ddim
from diffusion.spacing import trailing_steps
from runtime import checkpoint
from runtime.checkpoint import EMA, Checkpoint, Progress, find
from runtime.errors import UserError
from runtime.seeds import derive
from sampling import load
from sampling.sample_to_folder import SampleSettings, sample_to_folder
from tests.helpers.defaults import defaults
from tests.helpers.transfers import denoiser_of

ANIMALS = ["cat", "dog", "eel"]
TINY = [
    "model.multipliers=[1,2]",
    "model.groups=4",
    "model.attention_levels=[1]",
    "data.size=8",
    "data.channels=3",
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved(name, step, classes, *settings): a run whose checkpoint has random weights, none near
    zero; of another seed for each name and step."""
    root = tmp_path_factory.mktemp("saved")

    def save(name: str, step: int, classes: list[str], *settings: str) -> Path:
        config = composed(
            "train",
            [*TINY, "model.channels=8", f"model.classes={len(classes)}", *settings],
        )
        torch.manual_seed(derive(0, name, step))
        network = RunConfig(config).build_denoiser().network
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.1)
        if classes:
            torch.nn.init.normal_(network.class_embedding.weight)
        path = root / name / f"checkpoints/step_{step}"
        found = Checkpoint(path, step, config, classes, {}, Progress(validation_loss=1.0))
        checkpoint.save(found, network.state_dict(), network.state_dict(), {})
        return path

    return save


@pytest.fixture(scope="module")
def model(saved) -> Path:
    return saved("model", 7, ANIMALS)


def denoiser(path: Path):
    found = find(path)
    return denoiser_of(RunConfig(found.config), found.weights(EMA))


def guided(model: Path, reference: Path, monkeypatch, label: str | None, guidance: float):
    """What the sampler was given."""
    caught = []

    def generate(denoise, schedule, *rest):
        caught.append(denoise)
        return torch.zeros(2, 3, 8, 8)

    monkeypatch.setattr("sampling.pipeline.generate", generate)
    load(str(model), "cpu").sample(2, label=label, guidance=guidance, reference=str(reference))
    return caught[0]


@pytest.mark.parametrize(
    ("name", "classes", "settings", "label", "theirs", "says"),
    [
        ("model", ANIMALS, [], "dog", 1, None),  # less trained
        ("smaller", ANIMALS, ["model.channels=4"], "dog", 1, None),
        ("other order", ["eel", "dog", "cat"], [], "cat", 2, None),
        ("numbered", ["0", "1", "2"], [], "eel", 2, "called 0, 1, 2, .* number by number"),
        ("two", ["a", "b"], [], "dog", None, "2 classes and this model 3, .* but its null class"),
        ("none", [], [], "dog", None, "0 classes and this model 3, so it is given no label\\."),
        ("x0", ANIMALS, ["parameterization=x0", "variance=fixed_small"], None, None, None),
    ],
)
def test_the_formula(
    saved, model, monkeypatch, caplog, name, classes, settings, label, theirs, says
):
    """D_ref + w (D - D_ref), Karras et al. 2024, eq. 3, of the same label."""
    caplog.set_level(logging.WARNING)
    reference = saved(name, 3, classes, *settings)
    found = guided(model, reference, monkeypatch, label, 2.5)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([300, 800])

    def told(label: int | None):
        return None if label is None else {"label": torch.full((2,), label)}

    good = denoiser(model)(x, t, told(label and ANIMALS.index(label)))
    bad = denoiser(reference)(x, t, told(theirs))
    for part in ("x0", "noise"):
        ours, lesser = (getattr(prediction, part).double() for prediction in (good, bad))
        expected = lesser + 2.5 * (ours - lesser)
        scale = expected.abs().max()
        torch.testing.assert_close(
            getattr(found(x, t), part).double() / scale, expected / scale, rtol=0, atol=1e-5
        )
        assert (expected - ours).abs().max() > 1e-3
    if says:
        assert len(caplog.messages) == 1 and caplog.records[0].levelname == "WARNING"
        assert re.search(says, caplog.messages[0]), caplog.messages
    else:
        assert not caplog.messages


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["schedule=cosine"], r"alpha_bar = 0\.\d+ at t = \d+, and that of this model 0\.\d+\. .*"),
        (["schedule.steps=500"], r"schedule has T = 500, and that of this model T = 1000\."),
        (["data.size=16"], r"3 channels of 16x16, and those of this model 3 channels of 8x8\."),
        (["data.channels=1"], r"1 channels of 8x8, and those of this model 3 channels of 8x8\."),
    ],
)
def test_other_images_and_schedules_are_refused_with_the_difference(saved, model, settings, says):
    other = saved("".join(settings), 1, ANIMALS, *settings)
    with pytest.raises(UserError, match=f"^reference=.*{says}"):
        load(str(model), "cpu").sample(1, label="dog", guidance=2, reference=str(other))


def test_what_is_no_reference_is_told(model):
    with pytest.raises(UserError, match="reference=sorce: neither null_class nor source, and no"):
        load(str(model), "cpu").sample(1, label="dog", guidance=2, reference="sorce")


def sample(model: Path, **given) -> Path:
    given = {"device": "cpu", "n": 1, "label": "dog", "guidance": 2.0} | given
    given |= {"sampler": SamplerSettings(ddim, trailing_steps, 1), "checkpoint": str(model)}
    said = composed("sample", ["checkpoint=any"])["sampler"]  # for the name of the folder
    return sample_to_folder(SampleSettings(**defaults("sample") | given), said)


def test_a_folder_is_of_one_reference(saved, model, tmp_path):
    """One step of DDIM from T to 0 gives the guided x0, clipped; another reference is other images,
    and the same command makes nothing again."""
    lesser, least = (saved("lesser", step, ANIMALS) for step in (3, 1))
    out = sample(model, reference=str(lesser))
    assert out.parent == model.parents[1] / "generated"
    assert "_label-dog_guidance-2_away-from-step_3-" in out.name
    good, bad = denoiser(model), denoiser(lesser)
    t, told = torch.tensor([good.schedule.steps]), {"label": torch.tensor([1])}
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(derive(0, "image", 0)))
    x0 = (bad(x, t, told).x0 + 2 * (good(x, t, told).x0 - bad(x, t, told).x0)).clamp(-1, 1)
    expected = ((x0 + 1) * 127.5).round()[0].permute(1, 2, 0).numpy()
    made = np.asarray(Image.open(out / "000000.png")).astype(int)
    assert np.abs(made - expected).max() <= 1 and expected.std() > 10
    before = (out / "000000.png").stat().st_mtime_ns
    assert sample(model, reference=f"{lesser}/") == out
    assert (out / "000000.png").stat().st_mtime_ns == before
    digest = find(lesser).digests[EMA]
    assert json.loads((out / "sampling.json").read_text())["reference"] == {"weights": digest}
    others = {sample(model, reference=str(least)), sample(model), out}
    assert len(others) == 3
    with pytest.raises(UserError, match=r"reference.weights: \w+ -> "):
        sample(model, reference=str(least), out=str(out))


def test_a_reference_without_guidance_does_nothing_and_is_refused(model):
    with pytest.raises(ValueError, match=r"reference=x needs a guidance other than 1"):
        sample(model, reference="x", guidance=1.0)
