"""What a run came to, wherever it goes: as a source, to sample.py, to a folder of diffusers and as a small file on top of its source. The
network with its injected parameters is the reference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import export
import sample
from diffusion.generate import SamplerSettings
from diffusion.samplers import ddim, even_steps
from models.network import build_denoiser
from models.pretrained import open_pretrained
from runtime.checkpoint import EMA, find
from runtime.errors import UserError
from tests.transfers import Transfers, denoiser_of, weights
from training.parts import settings_of
from transfer.inject import inject, load
from transfer.trained import is_difference, open_difference, plain

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
    return [denoiser(*given(), condition).noise for condition in conditions(denoiser.network.classes)]


def given() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 40, 100])


def conditions(classes: int) -> list[dict | None]:
    return [None, *({"label": torch.full((3,), k)} for k in range(classes))]


def reference(directory: Path) -> list[Tensor]:
    """What the network says that the run trained, as it trained it."""
    saved = find(directory)
    config = saved.state["config"]
    denoiser = build_denoiser(config).eval().requires_grad_(False)
    plain = saved.weights(EMA)
    denoiser.network.load_state_dict({name: plain[name] for name in denoiser.network.state_dict()})
    inject(denoiser.network, settings_of(config, "transfer").inject)
    load(denoiser.network, plain)
    return [denoiser(*given(), condition).noise for condition in conditions(denoiser.network.classes)]


def assert_says(config: dict, tensors: dict[str, Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(said(config, tensors), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_everywhere_the_same_network(transfers, tmp_path, strategy):
    directory, file = run(transfers, strategy), difference_of(transfers, strategy)
    expected = reference(directory)
    assert not torch.equal(expected[0], said(find(transfers.source).state["config"], transfers.started())[0]) or strategy.startswith("text")
    opened = {"merged": plain(open_pretrained(str(directory))), "laid on its source": open_difference(str(file), None)}
    if strategy != "textual_inversion":  # diffusers takes no classes here
        export.export(plain(open_pretrained(str(directory))), tmp_path / "of run")
        export.export(open_difference(str(file), None), tmp_path / "of file")
        opened |= {name: open_pretrained(str(tmp_path / name)) for name in ("of run", "of file")}
    for found in opened.values():
        assert_says(found.state["config"], found.weights(EMA), expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_as_a_source(transfers, strategy):
    """Of another run, by its directory and by its small file: a run of no step keeps it as it is."""
    expected, classes = reference(run(transfers, strategy)), ["model.classes=1"] if strategy == "textual_inversion" else []
    for place in (run(transfers, strategy), difference_of(transfers, strategy)):
        target = transfers.run("data=bundled_tissue", "data.n_train=24", "transfer=zero_shot", f"source.from={place}", *classes)
        assert_says(find(target).state["config"], weights(target, 0), expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_size_of_a_file_is_that_of_result_json(transfers, strategy):
    file = difference_of(transfers, strategy)
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert file.stat().st_size - header == json.loads((run(transfers, strategy) / "result.json").read_text())["bytes_to_store"] > 0


def sampled(checkpoint: Path, out: Path, **other) -> list[bytes]:
    sample.sample(sample.SampleSettings(str(checkpoint), SAMPLER, n=2, out=str(out), device="cpu", **other), {})
    return [path.read_bytes() for path in sorted(out.glob("0*.png"))]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_images(transfers, tmp_path, strategy):
    label = {"label": "new"} if strategy == "textual_inversion" else {}
    of_run = sampled(run(transfers, strategy), tmp_path / "run", **label)
    assert of_run == sampled(difference_of(transfers, strategy), tmp_path / "file", **label) and len(set(of_run)) == 2
    assert of_run != sampled(transfers.source, tmp_path / "source")
