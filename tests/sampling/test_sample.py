"""sample.py from a checkpoint: what it makes does not depend on how it is cut into batches."""

import json
import multiprocessing
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from config.overrides import composed
from config.run_config import RunConfig
from data.image_folder import open_images
from diffusion.generate import SamplerSettings
from diffusion.image_noise import NoisePerImage
from diffusion.samplers import ddim
from diffusion.spacing import log_snr_steps
from runtime import checkpoint
from runtime.checkpoint import Checkpoint, Progress
from runtime.seeds import derive
from sampling.pipeline import SampleRequest
from sampling.write_images import write_missing
from tests.helpers import ROOT
from transfer.trained_weights import TrainedWeights

TINY = [
    "model.channels=8",
    "model.multipliers=[1,2]",
    "model.groups=4",
    "model.attention_levels=[1]",
    "data.size=[8,12]",
    "data.channels=3",
]


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory) -> Path:
    """A checkpoint of a class-conditional network with random weights, none near zero: as good as a
    trained one here."""
    directory = tmp_path_factory.mktemp("run")
    config = composed("train", [*TINY, "model.classes=3"])
    torch.manual_seed(0)
    network = RunConfig(config).build_denoiser().network
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    torch.nn.init.normal_(network.class_embedding.weight)
    path, classes = directory / "checkpoints/step_7", ["cat", "dog", "eel"]
    saved = Checkpoint(path, 7, config, classes, {}, Progress(validation_loss=1.0))
    checkpoint.save(saved, network.state_dict(), network.state_dict(), {})
    return directory


def sample(*arguments: str, fails: bool = False) -> str:
    """What the command prints. Forked from the server of tests/helpers/runs.py, which has imported
    torch."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.NamedTemporaryFile("r") as log:
        process = multiprocessing.get_context("forkserver").Process(
            target=_child, args=(arguments, log.name), daemon=True
        )
        process.start()
        process.join(120)
        text = log.read()
    assert process.exitcode == (2 if fails else 0), text
    assert "Traceback" not in text
    return text


def _child(arguments: tuple[str, ...], log: str) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    torch.set_num_threads(1)
    os.chdir(ROOT)
    sys.argv = ["sample.py", *arguments]
    runpy.run_path("sample.py", run_name="__main__")


def images(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(p)).astype(int) for p in sorted(folder.glob("[0-9]*.png"))]


def test_noise_of_image_k_is_the_same_in_any_batch():
    seeds = [derive(5, "image", k) for k in range(7)]
    like = torch.empty(7, 3, 8, 12)
    whole = NoisePerImage(seeds)
    first, second = whole(like), whole(like)
    for k, seed in enumerate(seeds):
        alone = NoisePerImage([seed])
        assert torch.equal(alone(like[:1])[0], first[k])
        assert torch.equal(alone(like[:1])[0], second[k])
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], second[0])


@pytest.mark.parametrize(
    "sampler",
    [
        ["sampler=ddim", "sampler.steps=5"],
        ["sampler=ancestral", "sampler.steps=6"],
        ["sampler=ddim", "sampler.steps=5", "sampler.function.eta=1", "spacing=quadratic"],
    ],
)
def test_an_image_is_within_one_gray_level_in_any_batch(run_directory, tmp_path, sampler):
    for batch in (1, 5):
        sample(
            f"checkpoint={run_directory}",
            "n=5",
            f"batch_size={batch}",
            f"out={tmp_path}/{batch}",
            *sampler,
        )
    alone, together = images(tmp_path / "1"), images(tmp_path / "5")
    assert len(alone) == len(together) == 5 and alone[0].shape == (8, 12, 3)
    assert max(np.abs(a - b).max() for a, b in zip(alone, together, strict=True)) <= 1
    assert np.abs(alone[0] - alone[1]).max() > 20


def test_more_images_are_added_to_those_that_are_there(run_directory, tmp_path):
    """Nothing is made twice: an interrupted command goes on where it stopped."""
    command = [f"checkpoint={run_directory}", f"out={tmp_path}", "sampler.steps=3"]
    sample(*command, "n=3")
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("[0-9]*.png")}
    (tmp_path / "000001.png").unlink()
    text = sample(*command, "n=5")
    assert "3 of them new" in text
    after = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("[0-9]*.png")}
    assert len(after) == 5 and after["000000.png"] == before["000000.png"]
    assert {"grid.png", "strip.png"} <= {p.name for p in tmp_path.iterdir()}


def test_the_strip_ends_in_the_images(run_directory, tmp_path):
    sample(f"checkpoint={run_directory}", f"out={tmp_path}", "n=2", "strip=3", "sampler.steps=6")
    strip = np.asarray(Image.open(tmp_path / "strip.png"))
    zoom, gap = 96 // 12, 1
    # 2 images, 3 moments and the end
    assert strip.shape == (
        (2 * 9 + gap) * zoom,
        (4 * 13 + gap) * zoom,
        3,
    )
    last = strip[::zoom, ::zoom][1:9, 3 * 13 + 1 : 4 * 13]
    assert np.array_equal(last, images(tmp_path)[0])


def test_classes_and_guidance(run_directory, tmp_path):
    """A label changes the image, guidance 1 is the label alone, guidance 0 the null class, and all
    takes them in turn."""
    made = {}
    for name, options in {
        "null": [],
        "dog": ["label=dog"],
        "one": ["label=1"],
        "cat": ["label=cat"],
        "all": ["label=all"],
        "zero": ["label=dog", "guidance=0"],
        "two": ["label=dog", "guidance=2"],
    }.items():
        sample(
            f"checkpoint={run_directory}",
            f"out={tmp_path}/{name}",
            "n=2",
            "sampler.steps=3",
            *options,
        )
        made[name] = images(tmp_path / name)
    assert np.array_equal(made["dog"], made["one"])
    assert np.abs(made["zero"][0] - made["null"][0]).max() <= 1
    assert np.array_equal(made["all"][0], made["cat"][0]) and np.array_equal(
        made["all"][1], made["dog"][1]
    )
    for a, b in [("null", "dog"), ("dog", "cat"), ("dog", "two")]:
        assert np.abs(made[a][0] - made[b][0]).max() > 1, (a, b)


def test_classes_in_turn_are_in_the_names_of_the_files_and_in_the_grid(tmp_path, capsys):
    """Below each image stands its class, as the font draws it; an image that an earlier version
    named without its class is not made again."""
    config = composed("train", [*TINY, "model.classes=3"])
    network = RunConfig(config).build_network()
    classes = ["cat", "d/o g", "eel"]
    weights = TrainedWeights(tmp_path, RunConfig(config), classes, 7, {}, lambda _: None)
    model = SimpleNamespace(
        weights=weights,
        classes=classes,
        denoiser=RunConfig(config).build_denoiser(),
        view=lambda images: images,
        batches=lambda request, numbers, on_step: [
            (numbers, torch.zeros(len(numbers), 3, 8, 12)) for _ in numbers[:1]
        ],
    )
    Image.new("RGB", (12, 8)).save(tmp_path / "000002.png")
    request = SampleRequest(SamplerSettings(ddim, log_snr_steps, 2), 4, label="all")
    assert network.classes == 3 and write_missing(tmp_path, request, model) == 3
    assert [p.name for p in sorted(tmp_path.glob("[0-9]*.png"))] == [
        "000000_cat.png",
        "000001_d-o-g.png",
        "000002.png",
        "000003_cat.png",
    ]
    assert "/3 images" in capsys.readouterr().err  # and no steps of them
    sheet = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    tile, below = 64, 14  # 8 pixels, 8 times as large; the text
    text = Image.new("L", (96, below), 255)
    ImageDraw.Draw(text).text((1, 0), "cat", 0, ImageFont.load_default(size=11))
    assert np.array_equal(sheet[1 + tile : 1 + tile + below, 1:97], np.asarray(text))
    assert len(open_images(tmp_path)) == 4  # the sheets are none of them


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["label=dgo"], "did you mean dog"),
        (["label=9"], "no such class"),
        (["label=Katzenjämmer"], "label=Katzenjämmer: no such class"),
        (["n=0"], "at least 1"),
        (["n=few"], "error: n='few'"),
        (["sampler.steps=2000"], "between 1 and the schedule's 1000"),
        (["weights=emma"], "one of ema, model"),
        (["sampler=dim"], "ddim"),
        (["sampler.function.eta=2"], "between 0 and 1"),
        (["guidance=2"], "label=all"),
    ],
)
def test_mistakes(run_directory, tmp_path, options, message):
    assert message in sample(
        f"checkpoint={run_directory}", f"out={tmp_path}/x", *options, fails=True
    )
    # refused before there is a folder, but for eta, which the sampler itself judges
    assert not [*tmp_path.iterdir()] or "eta" in options[0]


def test_a_folder_of_an_earlier_heun_is_not_added_to(run_directory, tmp_path):
    """Its images were others."""
    command = [
        f"checkpoint={run_directory}",
        f"out={tmp_path}",
        "sampler=heun",
        "sampler.steps=3",
        "n=1",
    ]
    sample(*command)
    kept = json.loads((tmp_path / "sampling.json").read_text())
    assert kept["sampler"].pop("revision") == 2
    (tmp_path / "sampling.json").write_text(json.dumps(kept))
    assert "sampler.revision: None -> 2" in sample(*command, fails=True)


def test_a_start_that_loses_brightness_is_told_before_the_images(run_directory, tmp_path):
    said = sample(
        f"checkpoint={run_directory}",
        f"out={tmp_path}",
        "sampler.steps=2",
        "spacing=even",
        "n=3",
        "batch_size=1",
    )
    assert said.count("spacing=log_snr begins at T") == 1


def test_images_made_otherwise_are_not_mixed(run_directory, tmp_path):
    command = [f"checkpoint={run_directory}", f"out={tmp_path}", "n=1"]
    sample(*command, "sampler.steps=3")
    assert "sampler.steps: 3 -> 4" in sample(*command, "sampler.steps=4", fails=True)
    assert json.loads((tmp_path / "sampling.json").read_text())["sampler"]["steps"] == 3


def test_a_mistake_leaves_no_claim_on_the_folder(run_directory, tmp_path):
    command = [f"checkpoint={run_directory}", f"out={tmp_path}", "n=1"]
    sample(*command, "sampler.steps=2000", fails=True)
    assert "1 of them new" in sample(*command, "sampler.steps=3")


def test_bare_weights_with_other_settings_are_other_images(run_directory, tmp_path):
    [weights] = run_directory.glob("checkpoints/step_7/ema.safetensors")
    shutil.copy(weights, tmp_path / "bare.safetensors")

    def command(*settings: str) -> list[str]:
        overrides = ",".join(f'"{setting}"' for setting in [*TINY, "model.classes=3", *settings])
        return [
            f"checkpoint={tmp_path}/bare.safetensors",
            f"overrides=[{overrides}]",
            f"out={tmp_path}/x",
            "sampler.steps=3",
        ]

    sample(*command(), "n=1")
    assert "1 of them new" in sample(*command("data.path=elsewhere", "data=npz"), "n=2")
    assert "network.data.size: [8, 12] -> 8" in sample(*command("data.size=8"), "n=3", fails=True)
    assert "network.schedule._target_" in sample(*command("schedule=cosine"), "n=3", fails=True)


def test_images_that_are_not_finite_are_refused_and_not_written(tmp_path):
    """As bytes they would look like any image."""
    config = composed("train", TINY)
    network = RunConfig(config).build_denoiser().network
    weights = network.state_dict() | {
        "conv_out.bias": torch.full_like(network.conv_out.bias, float("nan"))
    }
    path, progress = tmp_path / "checkpoints/step_7", Progress(validation_loss=1.0)
    checkpoint.save(Checkpoint(path, 7, config, [], {}, progress), weights, weights, {})
    said = sample(
        f"checkpoint={tmp_path}", "n=3", "sampler.steps=2", f"out={tmp_path}/out", fails=True
    )
    assert "3 of 3 images are not finite (NaN or infinite), image 0 first" in said
    assert not images(tmp_path / "out")
