"""The door for notebooks: what README's three lines give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from runtime.errors import UserError
from sampling import load
from sampling.pipeline import class_labels
from tests.helpers import runs


@pytest.fixture(scope="module")
def run_directory(undisturbed) -> Path:
    return undisturbed()


def test_a_run_gives_the_images_that_sample_writes(run_directory, tmp_path):
    done = runs.command(
        "sample.py",
        f"checkpoint={run_directory}",
        "n=3",
        "seed=5",
        "sampler.steps=4",
        f"out={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    model = load(str(run_directory), device="cpu")
    images = model.sample(3, seed=5, steps=4)
    assert images.shape == (3, 1, 8, 8) and images.dtype == torch.float32
    for k, picture in enumerate(model.to_pil(images)):
        assert np.array_equal(
            np.asarray(picture), np.asarray(Image.open(tmp_path / f"{k:06d}.png"))
        )


def test_an_image_does_not_depend_on_how_many_are_made(run_directory):
    model = load(str(run_directory), device="cpu")
    torch.testing.assert_close(
        model.sample(3, steps=2, batch_size=2)[:1], model.sample(1, steps=2), rtol=0, atol=1e-5
    )


def test_a_label_of_a_model_that_was_not_told_its_classes_names_them():
    with pytest.raises(UserError) as error:
        class_labels("cat", [], [0], untold=["cat", "dog"])
    assert "label=cat: this model has no classes, as its model.classes is 0" in str(error.value)
    assert "trained with model.classes=auto has those of its images, cat, dog." in str(error.value)


def test_mistakes_are_one_message(run_directory):
    with pytest.raises(UserError, match="no checkpoint there"):
        load("runs/nothing/here")
    model = load(str(run_directory), device="cpu")
    with pytest.raises(UserError, match="this model has no classes"):
        model.sample(1, label="cat")
    with pytest.raises(UserError, match="was not started from a source"):
        model.sample(1, guidance=1.5, reference="source")
