"""What a run came to, wherever it goes: as a source, to sample.py, to a folder of diffusers and as
a small file on top of its source. The network with its injected parameters is the reference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from config.run_config import RunConfig
from diffusion.generate import SamplerSettings
from diffusion.samplers import ddim
from diffusion.spacing import even_steps
from runtime.checkpoint import EMA, find
from runtime.errors import UserError
from sampling import sample_to_folder as sample
from tests.helpers.defaults import defaults
from tests.helpers.transfers import TISSUE, Transfers, denoiser_of, weights
from training import export_weights as export
from transfer.adapters import inject, load
from transfer.trained_weights import load_weights, said_of_difference, source_of, start_of

STRATEGIES = ["full", "freeze_encoder", "lora", "svdiff", "textual_inversion"]
SAMPLER = SamplerSettings(ddim, even_steps, 3)


@pytest.fixture(scope="module")
def transfers(tmp_path_factory) -> Transfers:
    return Transfers(tmp_path_factory.mktemp("transfers"), ["train.steps=20"])


def run(transfers: Transfers, strategy: str) -> Path:
    return transfers.target(strategy, "train.steps=6")


def difference_of(transfers: Transfers, strategy: str) -> Path:
    path = transfers.root / f"{strategy}.safetensors"
    if not path.exists():
        export.export_difference(str(run(transfers, strategy)), path)
    return path


def said(config: dict, tensors: dict[str, Tensor]) -> list[Tensor]:
    """What a plain network with these weights says: of no label and of each."""
    denoiser = denoiser_of(config, tensors)
    return [
        denoiser(*given(), condition).noise for condition in conditions(denoiser.network.classes)
    ]


def given() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(
        [1, 40, 100]
    )


def conditions(classes: int) -> list[dict | None]:
    return [None, *({"label": torch.full((3,), k)} for k in range(classes))]


def reference(directory: Path) -> list[Tensor]:
    """What the network says that the run trained, as it trained it."""
    saved = find(directory)
    config = RunConfig(saved.config)
    denoiser = config.build_denoiser().eval().requires_grad_(False)
    plain = saved.weights(EMA)
    denoiser.network.load_state_dict({name: plain[name] for name in denoiser.network.state_dict()})
    inject(denoiser.network, config.transfer.inject)
    load(denoiser.network, plain)
    return [
        denoiser(*given(), condition).noise for condition in conditions(denoiser.network.classes)
    ]


def assert_says(config: RunConfig, tensors: dict[str, Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(said(config, tensors), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_everywhere_the_same_network(transfers, tmp_path, strategy):
    directory, file = run(transfers, strategy), difference_of(transfers, strategy)
    expected = reference(directory)
    source = said(RunConfig(find(transfers.source).config), transfers.started())
    assert not torch.equal(expected[0], source[0]) or strategy.startswith("text")
    opened = {"merged": load_weights(str(directory)), "laid on its source": load_weights(str(file))}
    if strategy != "textual_inversion":  # diffusers takes no classes here
        export.export_pipeline(load_weights(str(directory)), tmp_path / "of run")
        export.export_pipeline(load_weights(str(file)), tmp_path / "of file")
        opened |= {name: load_weights(str(tmp_path / name)) for name in ("of run", "of file")}
    for found in opened.values():
        assert_says(found.config, found.load("ema"), expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_as_a_source(transfers, strategy):
    """Of another run, by its directory and by its small file: a run of no step keeps it as it
    is."""
    expected, classes = (
        reference(run(transfers, strategy)),
        ["model.classes=1"] if strategy == "textual_inversion" else [],
    )
    for place in (run(transfers, strategy), difference_of(transfers, strategy)):
        target = transfers.run(
            "data=bundled_tissue",
            "data.n_train=24",
            "transfer=zero_shot",
            f"source.from={place}",
            *classes,
        )
        assert_says(RunConfig(find(target).config), weights(target, 0), expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_size_of_a_file_is_that_of_result_json(transfers, strategy):
    file = difference_of(transfers, strategy)
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert (
        file.stat().st_size - header
        == json.loads((run(transfers, strategy) / "result.json").read_text())["bytes_to_store"]
        > 0
    )


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


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_images(transfers, tmp_path, strategy):
    label = {"label": "new"} if strategy == "textual_inversion" else {}
    of_run = sampled(run(transfers, strategy), tmp_path / "run", **label)
    assert (
        of_run == sampled(difference_of(transfers, strategy), tmp_path / "file", **label)
        and len(set(of_run)) == 2
    )
    assert of_run != sampled(transfers.source, tmp_path / "source")


# --- where the source went ------------------------------------------------------------------------


@pytest.fixture
def moved(transfers, tmp_path) -> Path:
    """A place where a copy of the source is."""
    shutil.copytree(transfers.source, tmp_path / "moved")
    return tmp_path / "moved"


@pytest.fixture
def hidden(transfers):
    """The source is not where it was when these were made."""
    for strategy in ("lora", "freeze_encoder"):
        difference_of(transfers, strategy)
    aside = transfers.source.with_name("aside")
    transfers.source.rename(aside)
    yield
    aside.rename(transfers.source)


@pytest.mark.parametrize("strategy", ["lora", "freeze_encoder"])
def test_a_source_that_moved(transfers, tmp_path, moved, hidden, strategy):
    file = difference_of(transfers, strategy)
    with pytest.raises(
        UserError,
        match=f"the source of this run is needed, and was in {transfers.source}.*no checkpoint "
        "there(.|\n)*source=PATH",
    ):
        load_weights(str(file))
    found = load_weights(str(file), source=str(moved))
    assert_says(found.config, found.load("ema"), reference(run(transfers, strategy)))
    assert sampled(file, tmp_path / "file", source=str(moved)) == sampled(
        run(transfers, strategy), tmp_path / "run"
    )


def test_another_source_in_its_place(transfers):
    file, other = difference_of(transfers, "lora"), run(transfers, "full")
    with pytest.raises(
        UserError,
        match=f"{other} is not the source of this run: its weights have another sha256"
        ".*source=PATH",
    ):
        load_weights(str(file), source=str(other))


def damaged(content: bytes) -> dict[str, bytes]:
    """Cut off at the end and in the header; a bit of a weight turned over; nothing at all."""
    turned = bytearray(content)
    turned[-1] ^= 1
    return {"end": content[:-10], "header": content[:40], "weight": bytes(turned), "nothing": b""}


@pytest.mark.parametrize("how", ["end", "header", "weight", "nothing"])
def test_a_damaged_file(transfers, tmp_path, how):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(damaged(difference_of(transfers, "lora").read_bytes())[how])
    with pytest.raises(UserError, match="lora.safetensors: damaged"):
        sampled(path, tmp_path / "out")


def test_a_file_of_weights_is_no_difference(transfers):
    assert not said_of_difference(
        transfers.source / "checkpoints/step_20/ema.safetensors"
    ) and not said_of_difference(transfers.source)
    assert said_of_difference(difference_of(transfers, "lora"))


def test_only_a_run_with_a_source_has_a_difference(transfers, tmp_path):
    with pytest.raises(UserError, match="was not started from a source"):
        export.export_difference(str(transfers.source), tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", ["bare", "folder", "difference", "injected"])
def test_other_kinds_of_sources(transfers, tmp_path, kind):
    """A file on top of each of them, and the reference of domain guidance."""
    source = {
        "bare": tmp_path / "bare.safetensors",
        "folder": tmp_path / "folder",
        "difference": difference_of(transfers, "lora"),
        "injected": run(transfers, "lora"),
    }[kind]
    if kind == "bare":
        shutil.copy(transfers.source / "checkpoints/step_20/ema.safetensors", source)
    if kind == "folder":
        export.export_pipeline(load_weights(str(transfers.source)), source)
    target = transfers.run(
        *TISSUE, "transfer=freeze_encoder", f"source.from={source}", "train.steps=3"
    )
    file = tmp_path / "x.safetensors"
    export.export_difference(str(target), file)
    found = load_weights(str(file))
    assert_says(found.config, found.load("ema"), reference(target))
    config = found.config
    start = start_of(config, source_of(load_weights(str(target)).origin, config, None))
    begun = weights(transfers.run(*TISSUE, "transfer=zero_shot", f"source.from={source}"))
    assert start.keys() == begun.keys() and all(
        torch.equal(start[name], begun[name]) for name in start
    )


@pytest.mark.parametrize(
    "more",
    [
        ["source.include=[down.*,mid.*]"],
        ["source.depth=2"],
        ["copy=mean_and_variance"],
        ["model.classes=auto", "source.weights=model"],
    ],
    ids=["include", "depth", "copy", "classes"],
)
def test_the_start_of_a_run_is_made_again_to_the_bit(transfers, tmp_path, more):
    """With what was drawn at random, and so the whole of a run from its small file."""
    begun = weights(transfers.target("zero_shot", *more), 0)
    directory = transfers.target(
        "full", "train.steps=2", "transfer.rules=[{pattern: 'conv_out.*'}]", *more
    )
    opened = load_weights(str(directory))
    start = start_of(opened.config, source_of(opened.origin, opened.config, None))
    assert start.keys() == begun.keys() and all(
        torch.equal(start[name], begun[name]) for name in start
    )
    export.export_difference(str(directory), tmp_path / "x.safetensors")
    laid, expected = (
        load_weights(str(tmp_path / "x.safetensors")).load("ema"),
        weights(directory, file=EMA),
    )
    assert laid.keys() == expected.keys() and all(
        torch.equal(laid[name], expected[name]) for name in laid
    )
