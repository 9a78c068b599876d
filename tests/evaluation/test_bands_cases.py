"""Images of 13 bands and of four contrasts through the whole program, from a source of RGB:
trained, sampled, exported, evaluated and reported."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import evaluate
import report
from data.image_folder import open_images
from evaluation.evaluator import evaluate_folder, evaluate_run
from runtime.checkpoint import EMA, find
from runtime.errors import UserError
from sampling import load
from sampling.sample_to_folder import SampleSettings, sample_to_folder
from tests.helpers.defaults import defaults
from tests.helpers.evaluations import SAMPLER, few_evaluated
from tests.helpers.transfers import Transfers
from training.export_weights import export_pipeline
from transfer.trained_weights import load_weights, origin_of, source_of, start_of

NODE = {"function": "ddim", "steps": 2}
SHOWN = [4, 3, 2]
FEW = ["train.steps=2", "run.sample_every=2", "run.samples=4", "data.flip=false"]


def satellite(folder: Path) -> list[str]:
    folder.mkdir()
    for k in range(24):
        values = np.random.default_rng(k).integers(0, 4000, (8, 8, 13)).astype(np.uint16)
        tifffile.imwrite(
            folder / f"{k}.tif", values, photometric="minisblack", planarconfig="contig"
        )
    return ["data=folder", f"data.path={folder}", "data.channels=13", "data.shown=[4,3,2]"]


def heads(folder: Path) -> list[str]:
    for k in range(6):
        (folder / f"p{k}").mkdir(parents=True)
        for name in ("flair", "t1", "t1ce", "t2", "seg"):
            values = np.random.default_rng(len(name) + k).uniform(0, 900, (8, 8, 4))
            image = nibabel.Nifti1Image(values.astype(np.float32), np.eye(4))
            nibabel.save(image, folder / f"p{k}/p{k}_{name}.nii.gz")
    return [
        "data=nifti",
        f"data.path={folder}",
        "data.contrasts=[t1,t1ce,t2,flair]",
        "data.channels=4",
        "data.shown=[4,3,2]",
    ]


@pytest.fixture(scope="module")
def transfers(tmp_path_factory) -> Transfers:
    made = Transfers(tmp_path_factory.mktemp("bands"), ["train.steps=2"])
    made.data = {13: satellite(made.root / "satellite"), 4: heads(made.root / "heads")}
    return made


def trained(transfers: Transfers, channels: int) -> Path:
    return transfers.run(*transfers.data[channels], f"source.from={transfers.source}", *FEW)


def sampled(run: Path, out: Path, **given) -> Path:
    chosen = {"checkpoint": str(run), "out": str(out), "n": 3, "sampler": SAMPLER, "device": "cpu"}
    return sample_to_folder(SampleSettings(**defaults("sample") | chosen | given), NODE)


def settings(transfers: Transfers, **given) -> evaluate.EvaluateSettings:
    return few_evaluated(transfers.root, **given)


CHANNELS = pytest.mark.parametrize("channels", [13, 4])


@CHANNELS
def test_a_source_of_rgb_is_fitted_to_its_channels_and_pictures_show_three(transfers, channels):
    """The weights by formula: each input channel has the sum over the source's, divided by their
    number; each output channel the mean."""
    run = trained(transfers, channels)
    source = find(transfers.source).weights(EMA)
    table = json.loads((run / "source.json").read_text())["tensors"]
    told = {row["name"]: row["how"] for row in table if row["status"] == "resized"}
    assert f"the sum over 3 input channels, times 1/{channels}" in told["conv_in.weight"]
    assert f"mean over 3 output channels, for each of {channels}" in told["conv_out.bias"]
    trained_weights = load_weights(str(run))
    start = start_of(
        trained_weights.config, source_of(origin_of(run), trained_weights.config, None)
    )
    for k in range(channels):
        torch.testing.assert_close(
            start["conv_in.weight"][:, k], source["conv_in.weight"].sum(1) / channels
        )
        torch.testing.assert_close(start["conv_out.weight"][k], source["conv_out.weight"].mean(0))
    for picture in ("images.png", "samples/samples_0000002.png"):
        assert Image.open(run / picture).mode == "RGB"


@CHANNELS
def test_samples_have_all_channels_and_are_made_once(transfers, tmp_path, channels):
    run = trained(transfers, channels)
    out = sampled(run, tmp_path / "out")
    model = load(str(run), device="cpu")
    expected = model.sample(3, sampler=SAMPLER)
    pixels = ((expected.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    files = sorted(out.glob("[0-9]*"))
    assert [file.name for file in files] == [f"00000{k}.tif" for k in range(3)]
    assert np.array_equal(np.stack([tifffile.imread(file) for file in files]), pixels)
    assert np.array_equal(open_images(out), pixels)
    grid = np.asarray(Image.open(out / "grid.png"))
    zoom = 96 // 8
    first = grid[zoom : 9 * zoom : zoom, zoom : 9 * zoom : zoom]
    assert np.array_equal(first, pixels[0][..., [3, 2, 1]])
    assert Image.open(out / "strip.png").mode == "RGB"
    assert [np.asarray(p).shape for p in model.to_pil(expected)] == [(8, 8, 3)] * 3
    times = {file: file.stat().st_mtime_ns for file in files}
    files[1].unlink()
    sampled(run, out)
    assert np.array_equal(tifffile.imread(files[1]), pixels[1])
    assert files[0].stat().st_mtime_ns == times[files[0]]
    files[1].write_bytes(files[1].read_bytes()[:40])
    with pytest.raises(UserError, match=r"000001\.tif is damaged"):
        sampled(run, out)


def test_what_pictures_show_can_be_chosen_later(transfers, tmp_path):
    run = trained(transfers, 13)
    out = sampled(run, tmp_path / "out", shown=[8, 8, 1])
    pixels = tifffile.imread(out / "000000.tif")
    grid = np.asarray(Image.open(out / "grid.png"))[12:108:12, 12:108:12]
    assert np.array_equal(grid, pixels[..., [7, 7, 0]])
    with pytest.raises(UserError, match="shown=.*14.*counted from 1"):
        sampled(run, tmp_path / "other", shown=[14, 1, 2])


@pytest.mark.slow
@CHANNELS
def test_it_is_evaluated_and_reported(transfers, channels, capsys):
    """Features see the channels that are shown, and say so; pixels are all of them."""
    run = trained(transfers, channels)
    folder = evaluate_run(run, settings(transfers, checkpoint="RUN"), NODE)
    record = json.loads((folder / "evaluation.json").read_text())
    assert record["protocol"]["shown"] == SHOWN
    assert {"quality", "memorization", "loss", "bound", "forgetting", "baselines"} <= record.keys()
    assert {"kid_source", "weights"} <= record["forgetting"].keys()
    assert "source_change" in record["loss"] and "untouched source" in record["baselines"]
    assert not [note for note in record["notes"] if "rror" in note or "channels" in note]
    assert Image.open(folder / "closest.png").mode == "RGB"
    report.main([str(run.parent)])
    capsys.readouterr()
    page = (run.parent / "report.md").read_text()
    assert "image features of channels 4, 3, 2" in page


def test_features_see_what_the_channels_that_are_shown_make_of_the_images(transfers, tmp_path):
    """Folders of TIFFs of 13 channels, judged as their three channels are."""
    values = np.random.default_rng(0).integers(0, 256, (3, 12, 8, 8, 13)).astype(np.uint8)
    for part, images in zip(("made", "train", "test"), values):
        for kind in ("bands", "colour"):
            (tmp_path / kind / part).mkdir(parents=True)
        for k, image in enumerate(images):
            tifffile.imwrite(
                tmp_path / f"bands/{part}/{k}.tif",
                image,
                photometric="minisblack",
                planarconfig="contig",
            )
            Image.fromarray(image[..., [3, 2, 1]]).save(tmp_path / f"colour/{part}/{k}.png")
    found = []
    for kind, shown in (("bands", SHOWN), ("colour", None)):
        parts = {
            f: str(tmp_path / kind / p)
            for f, p in (("images", "made"), ("train", "train"), ("test", "test"))
        }
        asked = settings(transfers, metrics=["quality"], shown=shown, **parts)
        found.append(json.loads((evaluate_folder(asked) / "evaluation.json").read_text()))
    bands, colour = found
    assert bands["quality"] == colour["quality"]
    assert bands["protocol"]["shown"] == SHOWN and "shown" not in colour["protocol"]


@CHANNELS
def test_it_is_exported_and_a_source_again(transfers, tmp_path, caplog, channels):
    run = trained(transfers, channels)
    with caplog.at_level("INFO"):
        export_pipeline(load_weights(str(run)), tmp_path / "exported")
    assert caplog.text.count('output_type="np"') == 2 and ".save(" not in caplog.text
    ours, theirs = load_weights(str(run)).load("ema"), load_weights(str(tmp_path / "exported"))
    assert theirs.config.image_shape == (channels, 8, 8)
    for name, tensor in theirs.load("ema").items():
        assert torch.equal(tensor, ours[name]), name
    again = transfers.run(
        *transfers.data[channels], f"source.from={tmp_path}/exported", *FEW, "seed=3"
    )
    statuses = json.loads((again / "source.json").read_text())["tensors"]
    assert {row["status"] for row in statuses} == {"loaded"}


@pytest.mark.slow
def test_a_source_of_bands_teaches_gray(transfers):
    """From 13 bands to 1 and to 3: images of the source are the mean of its bands."""
    run = trained(transfers, 13)
    for target in (["data.channels=1"], ["data=bundled_tissue", "data.n_train=24"]):
        made = transfers.run(
            *target,
            f"source.from={run}",
            *FEW,
            "transfer=ewc",
            *[
                "transfer.penalties.0.n=4",
                "transfer.penalties.0.images.n=4",
                "transfer.penalties.0.images.steps=2",
            ],
        )
        table = json.loads((made / "source.json").read_text())["tensors"]
        assert "13 input channels" in str(table)
