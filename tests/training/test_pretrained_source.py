"""From a source to a target by train.py: the source is found, trained when it is small, named when
it is large."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from config.overrides import composed
from config.run_config import RunConfig
from runtime import checkpoint
from runtime.errors import UserError
from runtime.files import sha256
from runtime.log import read_metrics
from tests.helpers import ROOT, runs
from training.pretrained_source import find_source
from training.start_from_source import start_from
from transfer.class_names import check_number_of_classes
from transfer.trained_weights import TrainedWeights, difference, origin_of, source_of

TINY = [
    "model.channels=8",
    "model.multipliers=[1,2]",
    "model.groups=4",
    "model.attention_levels=[1]",
    "data.size=8",
    "train.batch_size=4",
    "train.steps=3",
    "train.precision=fp32",
    "run.held_out_draws=8",
    "run.samples=1",
    "sampler.steps=2",
    "run.log_every=1",
]
SOURCE = "source.overrides=[" + ",".join(f'"{o}"' for o in [*TINY, "data.channels=1"]) + "]"


def train(*arguments: str, code: int = 0) -> str:
    done = runs.command("train.py", *arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def transfer(root: Path, *more: str, code: int = 0) -> str:
    return train(
        "+experiment=transfer_demo",
        *TINY,
        SOURCE,
        f"run.root={root}",
        f"run.cache={root}/cache",
        *more,
        code=code,
    )


def weights(directory: Path, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(directory / "checkpoints" / "step_3" / file)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """transfer_demo with freeze_encoder, its gray source trained on the way."""
    folder = tmp_path_factory.mktemp("runs")
    text = transfer(folder, "transfer=freeze_encoder")
    assert (
        "training it first" in text
        and "resized conv_in.weight: input channels repeated 1 -> 3" in text
    )
    return folder


def only(root: Path, pattern: str) -> Path:
    (found,) = root.glob(pattern)
    return found


def test_the_source_is_shared_and_not_trained_again(root):
    source = only(root, "pretrain_demo/*")
    before = (source / "checkpoints" / "step_3" / "state.json").read_bytes()
    text = transfer(root, "transfer=norm_bias", "seed=1")
    assert "training it first" not in text and str(source) in text
    assert (source / "checkpoints" / "step_3" / "state.json").read_bytes() == before
    only(root, "pretrain_demo/*")


def test_frozen_weights_are_the_source_to_the_bit_and_the_others_moved(root):
    source, target = (
        weights(only(root, "pretrain_demo/*"), "ema.safetensors"),
        only(root, "transfer_demo/freeze_encoder-*"),
    )
    for file in ("model.safetensors", "ema.safetensors"):
        for name, tensor in weights(target, file).items():
            if name.split(".")[0] in ("down", "time_mlp") or name == "conv_in.bias":
                assert torch.equal(tensor, source[name]), name
            elif tensor.shape == source[name].shape:
                assert not torch.equal(tensor, source[name]), name
    rgb, gray = weights(target)["conv_in.weight"], source["conv_in.weight"]
    # once fitted
    torch.testing.assert_close(rgb, gray.expand(-1, 3, -1, -1) / 3, rtol=0, atol=1e-3)
    # new channels train in any strategy
    assert not any(torch.equal(rgb[:, i], rgb[:, j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_a_run_says_what_it_did(root):
    target = only(root, "transfer_demo/freeze_encoder-*")
    names = {p.name for p in target.iterdir()}
    assert {
        "config.yaml",
        "environment.json",
        "log.txt",
        "metrics.jsonl",
        "samples",
        "plan.csv",
        "source.json",
        "checkpoints",
    } <= names
    source = json.loads((target / "source.json").read_text())
    assert {row["status"] for row in source["tensors"]} == {"loaded", "resized"} and len(
        source["sha256"]
    ) == 64
    rates = {
        row["parameter"]: float(row["learning_rate"])
        for row in csv.DictReader((target / "plan.csv").read_text().splitlines())
    }
    # whose channels are new
    frozen = {n for n in rates if n.split(".")[0] in ("down", "time_mlp", "conv_in")} - {
        "conv_in.weight"
    }
    assert {n for n, r in rates.items() if r == 0} == frozen
    rows = read_metrics(target / "metrics.jsonl")
    assert [r["step"] for r in rows if "loss" in r] == [1, 2, 3]
    assert {f"validation/loss_t{d}" for d in (0, 9)} <= rows[-1].keys()
    assert next(iter((target / "samples").glob("*_0000003.png")))


def test_a_run_directory_and_a_checkpoint_are_sources_too(root):
    """All three ways to name one source start from the same bits."""
    directory = only(root, "pretrain_demo/*")
    for origin in (directory, directory / "checkpoints" / "step_3"):
        text = transfer(
            root,
            "transfer=freeze_encoder",
            f"source.from={origin}",
            f"run.directory={root}/named/{origin.name}",
        )
        assert "source weights:" in text
        assert weights(root / "named" / origin.name).keys() == weights(directory).keys()
        expected = weights(only(root, "transfer_demo/freeze_encoder-*"))
        for name, tensor in weights(root / "named" / origin.name).items():
            assert torch.equal(tensor, expected[name]), name


def test_what_a_run_started_from_is_found_again_whatever_it_was(root, tmp_path):
    """A bare file, which only the run's config can read, and a difference, which is laid on its own
    source."""
    run = only(root, "transfer_demo/freeze_encoder-*")
    saved, bare, small = (
        checkpoint.find(str(run)),
        tmp_path / "bare.safetensors",
        tmp_path / "small.safetensors",
    )
    average = saved.weights(checkpoint.EMA)
    safetensors.torch.save_file(average, bare)
    trained = [
        name for name in average if not name.startswith(("time_mlp.", "conv_in.bias", "down."))
    ]
    small.write_bytes(difference(saved, origin_of(run), trained))
    for path in (bare, small):
        origin = {"path": str(path), "weights": checkpoint.EMA, "sha256": sha256(path)}
        found = source_of(origin, RunConfig(saved.config), None).load("ema")
        assert found.keys() == average.keys() and all(
            torch.equal(found[name], average[name]) for name in average
        )


def test_another_parameterization_than_the_source_is_named(root):
    same = transfer(root, "transfer=norm_bias", f"run.directory={root}/same")
    other = transfer(
        root,
        "transfer=norm_bias",
        "parameterization=noise",
        "schedule=linear",
        f"run.directory={root}/other",
    )
    for word in (
        "PredictVelocity -> diffusion.parameterization.PredictNoise",
        "diffusion.schedule.cosine -> diffusion.schedule.linear",
    ):
        assert word in other and word not in same


def test_another_kind_of_learned_variance_is_named(tmp_path, caplog):
    """The shapes agree, and the second half is a fraction in one and a log variance in the other.
    What is fixed says nothing of weights."""
    tiny = ["model.channels=8", "model.groups=4", "variance=learned", "loss=bound"]
    ours, theirs = (
        RunConfig(composed("train", [*tiny, *more])) for more in ([], ["variance=learned_range"])
    )
    denoiser = ours.build_denoiser()
    for source in (theirs, ours, RunConfig(composed("train", ["variance=fixed_small"]))):
        caplog.clear()
        found = TrainedWeights(
            tmp_path, source, [], 1, {"ema": ""}, lambda which: denoiser.network.state_dict()
        )
        start_from(found, denoiser, ours, tmp_path, [])
        assert ("another variance" in caplog.text) == (source is theirs)


def test_scratch_copies_nothing_and_needs_no_source(tmp_path):
    text = transfer(tmp_path, "transfer=scratch")
    assert "source" not in text
    assert not (tmp_path / "pretrain_demo").exists()


def test_include_is_apart_from_what_trains(root):
    transfer(
        root, "transfer=freeze_encoder", "source.include=[down.*]", f"run.directory={root}/include"
    )
    source = weights(only(root, "pretrain_demo/*"), "ema.safetensors")
    status = {
        r["name"]: r["status"]
        for r in json.loads((root / "include" / "source.json").read_text())["tensors"]
    }
    assert {n for n, s in status.items() if s == "loaded"} == {
        n for n in source if n.startswith("down.")
    }
    for name, tensor in weights(root / "include").items():
        if name.startswith("down."):
            assert torch.equal(tensor, source[name])


def test_a_large_source_is_named_with_its_command_and_hours(root):
    overrides = SOURCE[:-1] + ',"gpu_hours=40"]'
    text = train(
        "+experiment=transfer_demo",
        *TINY,
        overrides,
        f"run.root={root}/large",
        f"run.cache={root}/cache",
        code=2,
    )
    assert (
        "python train.py +experiment=pretrain_demo" in text
        and "40 GPU-hours" in text
        and "source.train=true" in text
    )
    train(
        "+experiment=transfer_demo",
        *TINY,
        overrides,
        f"run.root={root}/large",
        f"run.cache={root}/cache",
        "source.train=true",
    )
    assert list((root / "large" / "pretrain_demo").glob("*/checkpoints/step_3"))


def test_another_source_is_another_run(root):
    before = set((root / "transfer_demo").iterdir())
    other = SOURCE[:-1] + ',"seed=3"]'
    train(
        "+experiment=transfer_demo",
        *TINY,
        other,
        f"run.root={root}",
        f"run.cache={root}/cache",
        "transfer=freeze_encoder",
    )
    assert len(set((root / "transfer_demo").iterdir()) - before) == 1


def test_wandb_offline_has_the_same_content_and_opens_no_connection(root):
    """Sockets to anything but this machine are refused; the run does not notice."""
    touched = root / "touched"
    guard = f"""
import runpy, socket, sys
real = socket.socket.connect
def connect(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
        open({str(touched)!r}, "a").write(str(address))
        raise OSError("no network")
    return real(self, address)
socket.socket.connect = connect
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            guard,
            *TINY,
            "wandb=offline",
            f"run.root={root}",
            f"run.cache={root}/cache",
            f"run.directory={root}/wandb",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert not touched.exists()
    (record,) = (root / "wandb").glob("wandb/offline-run-*/*.wandb")
    content = record.read_bytes()
    for key in ("grad_norm", "validation/loss_t0", "images_per_second", "samples"):
        assert key.encode() in content


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes of plain color but for a corner, not square."""
    root = tmp_path_factory.mktemp("images")
    for name, color in {"bright": (220, 200, 180), "dark": (30, 20, 10)}.items():
        (root / name).mkdir()
        for k in range(12):
            image = Image.new("RGB", (12, 8), tuple(c + k for c in color))
            image.putpixel((0, 0), (0, 0, 0))
            image.save(root / name / f"{k}.png")
    return root


def test_classes_of_a_folder(folder, tmp_path):
    """A class-conditional run on images that are not square, sampled by the name of a class."""
    wide = [o for o in TINY if not o.startswith("data.size")] + ["data.size=[8,12]"]
    train(
        *wide,
        "data=folder",
        f"data.path={folder}",
        "model.classes=2",
        f"run.root={tmp_path}",
        f"run.cache={tmp_path}/cache",
        f"run.directory={tmp_path}/run",
    )
    done = runs.command(
        "sample.py",
        f"checkpoint={tmp_path}/run",
        "n=1",
        "label=dark",
        "guidance=2",
        "sampler.steps=2",
        f"out={tmp_path}/out",
    )
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out" / "000000.png").size == (12, 8)


def test_a_wrong_number_of_classes(folder, tmp_path):
    text = train(
        *TINY,
        "data=folder",
        f"data.path={folder}",
        "model.classes=3",
        f"run.root={tmp_path}",
        f"run.cache={tmp_path}",
        code=2,
    )
    assert "model.classes=3" in text and "has 2 classes: set model.classes to 2, or to auto" in text
    # before hours of decoding
    assert not list(tmp_path.rglob("*.npy")) and not (tmp_path / "custom").exists()


def test_classes_that_no_table_can_keep():
    config = RunConfig(composed("train", ["source.keep_classes=true", "source.from=x"]))
    images = SimpleNamespace(name="folder", classes=["a", "b"])
    source = RunConfig({"model": {"classes": 4}})
    with pytest.raises(UserError, match="model.classes=0 has none"):
        check_number_of_classes(config, images, source)
    config = config.with_sections(model=config.raw["model"] | {"classes": 5})
    with pytest.raises(
        UserError, match="4 of the source are kept: set model.classes to 6, or to auto"
    ):
        check_number_of_classes(config, images, source)
    config = config.with_sections(model=config.raw["model"] | {"classes": 6})
    check_number_of_classes(config, images, source)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_precisions_agree_with_fp32(root, tmp_path, precision):
    """Three steps from the same start: the losses differ by what the precision loses, and no
    more."""
    losses = {}
    for name in ("fp32", precision):
        train(
            *TINY,
            f"train.precision={name}",
            f"run.root={tmp_path}",
            f"run.cache={root}/cache",
            f"run.directory={tmp_path}/{name}",
        )
        losses[name] = [
            r["loss"] for r in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in r
        ]
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.02)
    environment = json.loads((tmp_path / precision / "environment.json").read_text())
    assert environment["precision"] == precision


def test_a_run_shows_its_training_images(undisturbed):
    """Two of them, one from each half of the training split, as they lie in the memory map."""
    directory = undisturbed()
    sheet = np.asarray(Image.open(directory / "images.png"))[::12, ::12]  # enlarged 12 times
    images = np.load(next((directory.parents[2] / "cache").glob("*.npy")))[..., 0]
    shown = [
        [k for k in range(90) if (tile == images[k]).all()]
        for tile in (sheet[1:9, 1:9], sheet[1:9, 10:18])
    ]
    assert shown[0] and shown[1] and shown[0][0] < 45 <= shown[1][-1]


def test_the_log_of_a_run_says_what_was_found_of_its_images(tmp_path):
    """Also at the second start, when nothing is measured any more: the range that 12 bits in 16
    were shown in."""
    folder, wide = (
        tmp_path / "images",
        np.random.default_rng(0).integers(0, 4096, (20, 8, 8), dtype=np.uint16),
    )
    folder.mkdir()
    for k, image in enumerate(wide):
        Image.fromarray(image).save(folder / f"{k}.png")
    (folder / "notes.txt").write_text("not an image")
    for seed in (0, 1):
        train(
            *TINY,
            "data=folder",
            f"data.path={folder}",
            "data.channels=1",
            f"seed={seed}",
            f"run.root={tmp_path}/runs",
            f"run.cache={tmp_path}/cache",
        )
    for log in tmp_path.glob("runs/custom/*/log.txt"):
        text = log.read_text()
        assert (
            "left out 1 file" in text
            and ".txt 1" in text
            and "data.range" in text
            and "held-out loss" in text
        )
        assert (
            "train.warmup=500 is longer than train.steps=3: the rate ends at 1% of optimizer.lr"
            in text
        )
    assert (
        len(list(tmp_path.glob("runs/custom/*/log.txt"))) == 2
        and len(list(tmp_path.glob("cache/*.npy"))) == 1
    )


def test_a_missing_source_is_trained_as_the_target_would_be(tmp_path):
    """On its device, by its kernels, compiled or not, with its folders."""
    where = {
        "root": str(tmp_path),
        "cache": str(tmp_path / "cache"),
        "device": "cpu",
        "kernels": "reference",
        "compile": True,
    }
    config = composed(
        "train",
        ["+experiment=transfer_demo", *(f"run.{key}={value}" for key, value in where.items())],
    )
    assert find_source(RunConfig(config)).config.raw["run"].items() >= where.items()
