"""Transfers between class-conditional networks: new classes beside those of the source, which keep
their rows, names and meaning."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from config.run_config import RunConfig
from data.pixels import to_x0
from diffusion.generate import SamplerSettings
from diffusion.samplers import ddim
from diffusion.spacing import even_steps, trailing_steps
from runtime.checkpoint import EMA, find
from runtime.errors import UserError
from runtime.image_grid import TEXT
from runtime.seeds import derive
from sampling import sample_to_folder as sample
from tests.helpers import runs
from tests.helpers.defaults import defaults
from tests.helpers.transfers import Transfers, denoiser_of, folders, moved, weights
from training import export_weights as export
from transfer.class_names import tell_classes
from transfer.merge_adapters import merged
from transfer.trained_weights import load_weights, origin_of, source_of, start_of

TABLE = "class_embedding.weight"
REAL = [
    "transfer.replay.images._target_=transfer.source_images.real",
    "~transfer.replay.images.n",
    "~transfer.replay.images.steps",
    "~transfer.replay.images.batch_size",
]
COLORS = {"bright": (230, 200, 160), "dark": (20, 40, 60)}  # of the source's classes
NEW = {"green": (30, 200, 30), "red": (210, 20, 20)}
SAMPLER = SamplerSettings(ddim, even_steps, 3)


def painted(color: tuple[int, ...]):
    """Stripes of a color, no two images alike."""

    def image(k: int) -> Image.Image:
        pixels = np.full((8, 8, 3), color) + 20 * np.sin(np.arange(8) * (k + 1))[:, None, None]
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    return image


@pytest.fixture(scope="module")
def transfers(tmp_path_factory) -> Transfers:
    root = tmp_path_factory.mktemp("transfers")
    for name, classes in {"source": COLORS, "target": NEW}.items():
        folders(root / name, {label: painted(color) for label, color in classes.items()}, 12)
    return Transfers(
        root, ["data=folder", f"data.path={root}/source", "model.classes=2", "train.steps=120"]
    )


def run(transfers: Transfers, strategy: str, *more: str, steps: int = 10) -> Path:
    return transfers.run(
        "data=folder",
        f"data.path={transfers.root}/target",
        f"transfer={strategy}",
        f"train.steps={steps}",
        f"source.from={transfers.source}",
        *more,
    )


def started(transfers: Transfers) -> dict[str, Tensor]:
    """With the table that keeps the source's classes: two new rows at the mean of the source's,
    those, the null class."""
    source = transfers.started()
    bright, dark, null = source[TABLE]
    return source | {
        TABLE: torch.stack([(bright + dark) / 2, (bright + dark) / 2, bright, dark, null])
    }


def test_textual_inversion_moves_its_rows_and_nothing_else(transfers):
    directory = run(transfers, "textual_inversion")
    for file in ("model.safetensors", EMA):
        after = weights(directory, file=file)
        new = after.pop(f"{TABLE}.rows.new")
        assert after.keys() == started(transfers).keys() and not moved(started(transfers), after)
        assert new.shape == (2, 64) and all(
            not torch.equal(row, start) for row, start in zip(new, started(transfers)[TABLE])
        )
        plain = merged(RunConfig(find(directory).config), weights(directory, file=file))[TABLE]
        assert torch.equal(plain, torch.cat([new, started(transfers)[TABLE][2:]]))
    assert not torch.equal(new[0], new[1])  # each class learned its own
    assert find(directory).classes == ["green", "red", "source/bright", "source/dark"]


def test_class_embedding_moves_the_table_alone(transfers):
    source = transfers.started()
    bright, dark, null = source[TABLE]
    start = source | {TABLE: torch.stack([(bright + dark) / 2] * 2 + [null])}
    directory = run(transfers, "class_embedding", "train.label_dropout=0")
    after = weights(directory)
    # no label was dropped
    assert moved(start, after) == {TABLE} and torch.equal(after[TABLE][2], null)
    assert not torch.equal(after[TABLE][0], start[TABLE][0]) and not torch.equal(
        after[TABLE][1], start[TABLE][1]
    )
    assert find(directory).classes == ["green", "red"]


def test_dropped_labels_train_the_null_class_alone(transfers):
    """Classifier-free guidance needs it trained (Ho and Salimans 2022)."""
    start = transfers.started()[TABLE]
    table = weights(run(transfers, "class_embedding", "train.label_dropout=1"))[TABLE]
    assert torch.equal(table[:2], start[:2]) and not torch.equal(table[2], start[2])


def loss_of_kept(transfers: Transfers, directory: Path) -> float:
    """On the source's images under the labels that its classes have now."""
    denoiser = denoiser_of(RunConfig(find(directory).config), weights(directory))
    images = [painted(color)(k) for color in COLORS.values() for k in range(12)]
    x0 = to_x0(torch.from_numpy(np.stack([np.asarray(i) for i in images])))
    t = 1 + torch.arange(len(x0)) * 41 % 100
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([2] * 12 + [3] * 12)
    return F.mse_loss(
        denoiser(denoiser.schedule.add_noise(x0, noise, t), t, {"label": label}).noise, noise
    ).item()


def test_dreambooth_keeps_what_the_sources_classes_mean(transfers):
    """Their rows start as the source's, and images of them are replayed under them."""
    without = [
        "model.classes=auto",
        "source.keep_classes=true",
        "train.label_dropout=0",
        "transfer.rules=[{pattern: '*'}, {pattern: 'class_embedding.*', learning_rate_scale: 10}]",
    ]
    directory, other = run(transfers, "dreambooth", *REAL), run(transfers, "full", *without)
    assert loss_of_kept(transfers, directory) < 0.9 * loss_of_kept(transfers, other)
    kept = slice(2, 4)
    # which nothing else trains
    assert torch.equal(weights(other)[TABLE][kept], started(transfers)[TABLE][kept])
    assert not torch.equal(weights(directory)[TABLE][kept], started(transfers)[TABLE][kept])
    assert torch.equal(weights(directory)[TABLE][4], started(transfers)[TABLE][4])
    runs.assert_same_weights(run(transfers, "dreambooth", "transfer.replay=null"), other, 10)


def losses_on_new(directory: Path) -> tuple[float, float, float]:
    """On the target's images under their labels, under those of the other class, and under none."""
    denoiser = denoiser_of(RunConfig(find(directory).config), weights(directory))
    images = [painted(color)(k) for color in NEW.values() for k in range(12)]
    x0 = to_x0(torch.from_numpy(np.stack([np.asarray(i) for i in images])))
    t = 1 + torch.arange(len(x0)) * 41 % 100
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0] * 12 + [1] * 12)
    x_t = denoiser.schedule.add_noise(x0, noise, t)
    return tuple(
        F.mse_loss(denoiser(x_t, t, given).noise, noise).item()
        for given in ({"label": label}, {"label": 1 - label}, None)
    )


def test_dreambooth_tells_its_new_classes_from_each_other_and_from_none_in_few_steps(transfers):
    """The rows begin equal. At the rate of the rest (asked for beside it) they are hardly told
    apart when the images already changed."""
    own, other, none = losses_on_new(run(transfers, "dreambooth", *REAL, steps=40))
    slow = losses_on_new(
        run(transfers, "dreambooth", *REAL, "transfer.rules=[{pattern: '*'}]", steps=40)
    )
    assert other - own > 0.01 > 5 * abs(slow[1] - slow[0])
    assert none - own > slow[2] - slow[0] > 0


def sampled(checkpoint: Path, out: Path, **other) -> list[bytes]:
    sample.sample_to_folder(
        sample.SampleSettings(
            **defaults("sample")
            | {"sampler": SAMPLER, "n": 2, "checkpoint": str(checkpoint), "out": str(out)}
            | {"device": "cpu"}
            | other
        ),
        {},
    )
    return [path.read_bytes() for path in sorted(out.glob("0*.png"))]


def test_labels_by_name(transfers, tmp_path):
    """A class of the source that is kept looks as in the source, whose network this still is."""
    directory = run(transfers, "textual_inversion")
    of_source = sampled(transfers.source, tmp_path / "source", label="bright")
    assert (
        of_source
        == sampled(directory, tmp_path / "kept", label="source/bright")
        == sampled(directory, tmp_path / "2", label=2)
    )
    assert (
        sampled(directory, tmp_path / "red", label="red")
        == sampled(directory, tmp_path / "1", label=1)
        != of_source
    )
    assert len(sampled(directory, tmp_path / "all", label="all")) == 2
    with pytest.raises(UserError, match="label=bright: no such class; did you mean source/bright"):
        sampled(directory, tmp_path / "x", label="bright")


def test_a_wrong_number_of_classes_is_told(transfers):
    with pytest.raises(
        UserError,
        match=r"model.classes=3, but .* has 2 classes and 2 of the source are kept: .*auto",
    ):
        run(transfers, "full", "model.classes=3", "source.keep_classes=true")


# --- a target without classes ---------------------------------------------------------------------


def null_class(transfers: Transfers, x: Tensor, t: Tensor) -> Tensor:
    """What the source says without a label, by its own network and config."""
    return denoiser_of(RunConfig(find(transfers.source).config), transfers.started())(x, t).noise


def noisy() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor(
        [1, 30, 60, 100]
    )


def test_zero_shot_is_the_null_class_of_its_source(transfers, tmp_path):
    directory = run(transfers, "zero_shot", "model.classes=0")
    config = RunConfig(find(directory).config)
    for tensors in (weights(directory, 0), weights(directory, 0, EMA)):
        torch.testing.assert_close(
            denoiser_of(config, tensors)(*noisy()).noise,
            null_class(transfers, *noisy()),
            rtol=0,
            atol=1e-6,
        )
    without = denoiser_of(
        config, {name: w for name, w in transfers.started().items() if name != TABLE}
    )
    assert (without(*noisy()).noise - null_class(transfers, *noisy())).abs().max() > 1e-3
    said = json.loads((directory / "source.json").read_text())
    rows = {row["name"]: row for row in said["tensors"]}
    assert (
        said["null_row"] == "folded"
        and rows[TABLE]["status"] == "folded"
        and "time_mlp.2.bias" in rows[TABLE]["how"]
    )
    assert (
        said.keys() - {"null_row"}
        == json.loads((run(transfers, "textual_inversion") / "source.json").read_text()).keys()
    )


@pytest.mark.parametrize("strategy", ["freeze_encoder", "lora"])
def test_a_small_file_without_classes_is_laid_on_the_null_class(transfers, tmp_path, strategy):
    """Both freeze the bias that the null row is added to, so that the file does not have it."""
    directory = run(transfers, strategy, "model.classes=0")
    export.export_difference(str(directory), tmp_path / "x.safetensors")
    laid = load_weights(str(tmp_path / "x.safetensors"))
    expected = merged(RunConfig(find(directory).config), weights(directory, file=EMA))
    assert laid.load("ema").keys() == expected.keys() and all(
        torch.equal(w, expected[n]) for n, w in laid.load("ema").items()
    )
    config = RunConfig(find(directory).config)
    start = denoiser_of(config, start_of(config, source_of(laid.origin, config, None)))
    torch.testing.assert_close(
        start(*noisy()).noise, null_class(transfers, *noisy()), rtol=0, atol=1e-6
    )


def test_a_start_of_an_older_version_is_not_made_again_otherwise(transfers):
    """Its run dropped the null row, and what was trained on that belongs to no other start."""
    directory = run(transfers, "freeze_encoder", "model.classes=0")
    config, origin = RunConfig(find(directory).config), origin_of(directory)
    assert source_of(origin, config, None).path == find(transfers.source).path
    with pytest.raises(UserError, match="without the null row of its class table.*train it anew"):
        source_of({key: value for key, value in origin.items() if key != "null_row"}, config, None)


def test_a_run_without_its_sources_classes_is_another_one(transfers):
    """Its numbers changed when the null row was first folded; those of a run with classes did
    not."""

    def changed(directory: Path) -> list[str] | None:
        return json.loads((directory / "identity.json").read_text()).get("changed")

    assert changed(run(transfers, "zero_shot", "model.classes=0")) == [
        "the null row of the source's classes is folded"
    ]
    assert changed(run(transfers, "textual_inversion")) is None


# --- domain guidance ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "label"), [("textual_inversion", "red"), ("full", None), ("lora", None)]
)
def test_domain_guidance_by_hand(transfers, tmp_path, monkeypatch, strategy, label):
    """eps_source(none) + w (eps_target(label) - eps_source(none)), Zhong et al. 2025, of the two
    networks, and not of the null class."""
    caught = []

    def generate(denoise, schedule, *rest):
        caught.append(denoise)
        return torch.zeros(2, 3, 8, 8)

    directory = run(transfers, strategy, *([] if label else ["model.classes=0"]))
    monkeypatch.setattr("sampling.pipeline.generate", generate)
    sampled(directory, tmp_path, guidance=1.5, reference="source", label=label)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([30, 80])
    config = RunConfig(find(directory).config)
    target = denoiser_of(config, merged(config, weights(directory, file=EMA)))
    source = denoiser_of(RunConfig(find(transfers.source).config), transfers.started())
    without = source(x, t).noise.double()  # of the null class, also where the target has no classes
    with_label = target(x, t, {"label": torch.tensor([1, 1])} if label else None).noise.double()
    expected = without + 1.5 * (with_label - without)
    torch.testing.assert_close(caught[0](x, t).noise.double(), expected, rtol=1e-5, atol=1e-5)
    assert (expected - with_label).abs().max() > 1e-3


def test_guidance_of_a_step(transfers, tmp_path):
    """One step of DDIM from T to 0 gives the guided x0, clipped, and a reference changes the
    image."""
    directory = run(transfers, "full", "model.classes=0")
    one = SamplerSettings(ddim, trailing_steps, 1)
    sample.sample_to_folder(
        sample.SampleSettings(
            **defaults("sample")
            | {
                "sampler": one,
                "n": 1,
                "checkpoint": str(directory),
                "out": str(tmp_path / "a"),
                "device": "cpu",
                "guidance": 1.5,
                "reference": "source",
            }
        ),
        {},
    )
    config = RunConfig(find(directory).config)
    target = denoiser_of(config, weights(directory, file=EMA))
    source = denoiser_of(RunConfig(find(transfers.source).config), transfers.started())
    t, x = torch.tensor([target.schedule.steps]), torch.empty(1, 3, 8, 8)
    x = torch.randn(x.shape, generator=torch.Generator().manual_seed(derive(0, "image", 0)))
    guided = source(x, t).noise + 1.5 * (target(x, t).noise - source(x, t).noise)
    alpha, sigma = (c.item() for c in target.schedule.alpha_sigma(t))
    expected = (
        ((((x - sigma * guided) / alpha).clamp(-1, 1) + 1) * 127.5).round()[0].permute(1, 2, 0)
    )
    made = np.asarray(Image.open(tmp_path / "a" / "000000.png")).astype(int)
    assert np.abs(made - expected.numpy()).max() <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": "source"}, "reference=source needs a guidance other than 1"),
        ({"guidance": 1.5}, "reference=source"),
    ],
)
def test_settings_of_guidance(transfers, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        sampled(transfers.source, tmp_path, **settings)


def test_guidance_away_from_a_source_that_is_not_there(transfers, tmp_path):
    with pytest.raises(UserError, match="was not started from a source"):
        sampled(transfers.source, tmp_path / "a", guidance=1.5, reference="source")
    with pytest.raises(UserError, match="nowhere: no checkpoint there(.|\n)*source=PATH"):
        sampled(
            run(transfers, "textual_inversion"),
            tmp_path / "b",
            guidance=1.5,
            reference="source",
            source=str(tmp_path / "nowhere"),
        )
    with pytest.raises(UserError, match="is not the source of this run"):
        sampled(
            run(transfers, "textual_inversion"),
            tmp_path / "c",
            guidance=1.5,
            reference="source",
            source=str(run(transfers, "class_embedding", "train.label_dropout=0")),
        )


def test_classes_that_the_network_is_not_told_of_are_a_warning_with_the_cure(caplog):
    caplog.set_level(logging.INFO)
    labels = np.array([0, 1, 1])
    dataset = SimpleNamespace(classes=["cat", "dog"], labels=labels, splits={"train": [0, 1, 2]})
    tell_classes(dataset, 2)
    tell_classes(dataset, 0)
    told, untold = caplog.records
    assert (told.levelname, told.getMessage()) == ("INFO", "2 classes: cat (1), dog (2)")
    assert untold.levelname == "WARNING" and "model.classes=auto tells it" in untold.getMessage()


def test_pictures_of_a_run_name_the_class_below_each_image(transfers):
    """Of one image each, of the first class."""
    strip = Image.new("L", (96, TEXT), 255)
    ImageDraw.Draw(strip).text((1, 0), "bright", 0, ImageFont.load_default(size=TEXT - 3))
    untold = transfers.run("train.steps=0", "model.classes=0")
    for picture in ("images.png", "samples/samples_0000120.png"):
        sheet = np.asarray(Image.open(transfers.source / picture).convert("L"))
        assert np.array_equal(sheet[97 : 97 + TEXT, 1:97], np.asarray(strip))
    assert Image.open(untold / "images.png").size == (120, 120)  # 8x8 and a line around, times 12
