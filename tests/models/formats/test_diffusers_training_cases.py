"""What diffusers' training scripts leave in mid-training (examples/unconditional_image_generation
with accelerate): output_dir/checkpoint-N with the network, its average, and states of torch's that
are nothing of ours."""

from __future__ import annotations

import json

import pytest
import torch

import runtime.torchvision  # noqa: F401  before anything that imports torchvision
from tests.helpers.trajectories import HO, SMALL, saved

# isort: split
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel

from models.formats.diffusers import names
from runtime.errors import UserError
from tests.helpers.networks import randomize
from transfer.trained_weights import load_weights

VELOCITY = {"prediction_type": "v_prediction"}


def checkpoint_of(output, step=500, average=True):
    """output/checkpoint-N as the script's save_model_hook writes it. Returns the network."""
    network = UNet2DModel(**SMALL | HO)
    randomize(network)
    folder = output / f"checkpoint-{step}"
    if average:
        ema = EMAModel(network.parameters(), model_cls=UNet2DModel, model_config=network.config)
        ema.shadow_params = [p + 1 for p in ema.shadow_params]
        ema.save_pretrained(folder / "unet_ema")
    network.save_pretrained(folder / "unet")
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        torch.save({}, folder / name)
    return network


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """(output_dir of a script, the network of its checkpoint-500)"""
    folder = tmp_path_factory.mktemp("output")
    saved(folder, SMALL | HO, VELOCITY)  # at the end of an epoch
    return folder, checkpoint_of(folder)


def assert_is(found, which, network, plus):
    """Every tensor of ours is theirs under its name."""
    ours, theirs = found.load(which), network.state_dict()
    for name, others in names(found.config.shape_network()).items():
        assert torch.equal(ours[name], torch.cat([theirs[other] for other in others]) + plus), name


def test_a_checkpoint_has_its_average_and_its_network(output, caplog):
    caplog.set_level("INFO")
    folder, network = output
    found = load_weights(str(folder / "checkpoint-500"))
    assert_is(found, "ema", network, plus=1)
    assert_is(found, "model", network, plus=0)
    assert found.digests["ema"] != found.digests["model"]
    [said] = [r.getMessage() for r in caplog.records]
    assert said.endswith("checkpoint-500: weights=ema is its unet_ema, weights=model its unet")
    assert found.config.raw["parameterization"]["_target_"].endswith("PredictVelocity")


@pytest.mark.parametrize(("part", "plus"), [("unet_ema", 1), ("unet", 0)])
def test_one_of_the_two_takes_the_scheduler_of_the_pipeline_around(output, caplog, part, plus):
    folder, network = output
    found = load_weights(str(folder / "checkpoint-500" / part))
    assert_is(found, "ema", network, plus)
    assert found.config.raw["parameterization"]["_target_"].endswith("PredictVelocity")
    assert not caplog.text


def test_before_the_first_pipeline_the_schedule_is_guessed_with_a_word(tmp_path, caplog):
    checkpoint_of(tmp_path)
    found = load_weights(str(tmp_path / "checkpoint-500"))
    assert found.config.raw["parameterization"]["_target_"].endswith("PredictNoise")
    assert "so the schedule is taken to be that of Ho et al. 2020" in caplog.text


def test_a_script_without_an_average(tmp_path, caplog):
    network = checkpoint_of(tmp_path, average=False)
    found = load_weights(str(tmp_path / "checkpoint-500"))
    assert_is(found, "ema", network, plus=0)
    assert "no unet_ema there, so that weights=ema is its unet too" in caplog.text


def test_the_unet_of_a_pipeline_on_latents_is_refused(tmp_path):
    """Its network alone has nothing that says so."""
    saved(tmp_path, SMALL | HO, VELOCITY)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["vqvae"] = ["diffusers", "VQModel"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model_index.json: the pipeline also has vqvae"):
        load_weights(str(tmp_path / "unet"))
