"""What a run says of where it came from and what it costs, against counts made by hand, and what it
refuses to go on with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from runtime import checkpoint
from runtime.checkpoint import EMA, MODEL, OPTIMIZER, find
from runtime.errors import UserError
from tests.helpers import runs
from tests.helpers.transfers import TINY, Transfers, weights
from training.result import Result


@pytest.fixture(scope="module")
def transfers(tmp_path_factory) -> Transfers:
    return Transfers(tmp_path_factory.mktemp("transfers"), ["train.steps=4"])


def size(tensors: dict[str, torch.Tensor], *parts: str) -> int:
    """Values of the tensors that have one of these in their names; without any, of all."""
    return sum(
        w.numel() for name, w in tensors.items() if not parts or any(part in name for part in parts)
    )


def lora_by_hand(source: dict[str, torch.Tensor], rank: int = 8) -> int:
    """rank (in + out) for each of q, k, v and for out."""
    qkv = [w for name, w in source.items() if name.endswith("qkv.weight")]
    out = [w for name, w in source.items() if name.endswith(".out.weight")]
    return sum(3 * rank * (w.shape[0] // 3 + w.shape[1]) for w in qkv) + sum(
        rank * sum(w.shape) for w in out
    )


def test_what_result_json_counts(transfers):
    source = transfers.started()
    everything = size(source)
    frozen = size(
        {n: w for n, w in source.items() if n.split(".")[0] in ("time_mlp", "conv_in", "down")}
    )
    expected = {
        "full": (everything, everything),
        "freeze_encoder": (everything - frozen,) * 2,
        "lora": (lora_by_hand(source),) * 2,
        "zero_shot": (0, 0),
        "scratch": (everything, everything),
        # a table that the source lacks follows from nothing, so its new row (which trains alone) is
        # stored with it
        "textual_inversion": (64, 64 + 2 * 64),
    }
    for name, (trained, stored) in expected.items():
        result = json.loads((transfers.target(name, "train.steps=2") / "result.json").read_text())
        table = 2 * 64 if name == "textual_inversion" else 0
        assert result["trained_parameters"] == trained and result["bytes_to_store"] == 4 * stored, (
            name
        )
        assert result["parameters"] == everything + table and result[
            "trained_share"
        ] == pytest.approx(trained / result["parameters"])
        digest = runs.sha256(transfers.source / "checkpoints/step_4" / EMA)
        assert result["source_sha256"] == (None if name == "scratch" else digest)
        assert result["step"] == (0 if name == "zero_shot" else 2) and math.isfinite(
            result["held_out_loss"]
        )


def test_the_last_iterate_as_the_source(transfers):
    directory = transfers.target("zero_shot", "source.weights=model")
    digest = runs.sha256(transfers.source / "checkpoints/step_4" / MODEL)
    assert json.loads((directory / "result.json").read_text())["source_sha256"] == digest
    ours, theirs = weights(directory, 0), weights(transfers.source, 4)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def said(directory: Path) -> str:
    return (directory / "log.txt").read_text()


def test_random_and_frozen(transfers):
    """The middle trains and only the encoder came from the source: the rest stays as it was
    drawn."""
    directory = transfers.target("middle_only", "source.include=[down.*]", "train.steps=2")
    stuck = [n for n in transfers.started() if n.split(".")[0] not in ("down", "mid")]
    assert f"{len(stuck)} tensors are random and frozen" in said(
        directory
    ) and "(time_mlp.0.weight, " in said(directory)
    # a class table that the source lacks is zero, and not random
    for name, more in {
        "middle_only": [],
        "full": ["source.include=[down.*]"],
        "lora": [],
        "norm_only": ["model.classes=auto"],
        "scratch": [],
    }.items():
        assert "random and frozen" not in said(transfers.target(name, "train.steps=2", *more)), name


def test_random_and_frozen_without_a_source(transfers):
    directory = transfers.run("transfer=middle_only", "train.steps=2")
    assert (
        f"{len([n for n in transfers.started() if not n.startswith('mid.')])} tensors are "
        "random and frozen"
    ) in said(directory)


def retrain(directory: Path) -> None:
    """The same run with other weights, as one of another machine or of an older version of this
    code would leave it."""
    saved = find(directory)
    tensors = {
        file: {name: w + 1e-3 for name, w in saved.weights(file).items()} for file in (MODEL, EMA)
    }
    optimizer = torch.load(saved.path / OPTIMIZER, weights_only=True)
    checkpoint.save(
        saved,
        tensors[MODEL],
        tensors[EMA],
        optimizer,
    )


def test_a_source_that_was_trained_anew_in_between(tmp_path):
    """The experiment is the same and its weights are not: what still asks the source refuses, the
    rest goes on as it was."""
    transfers = Transfers(tmp_path, ["train.steps=2"])
    overrides = ",".join(f'"{s}"' for s in [*TINY, "train.steps=2", "data.flip=false"])
    common = [
        "data=bundled_tissue",
        "data.n_train=24",
        "source.from=pretrain_demo",
        f"source.overrides=[{overrides}]",
    ]
    for name in ("l2_sp", "full"):
        transfers.run(*common, f"transfer={name}", "train.steps=4")
    [source] = tmp_path.glob("runs/pretrain_demo/*")
    before = runs.sha256(source / "checkpoints/step_2" / EMA)
    retrain(source)
    assert runs.sha256(source / "checkpoints/step_2" / EMA) != before
    with pytest.raises(
        UserError,
        match=f"started from {source}/checkpoints/step_2, and .* holds other weights "
        "now.*run.directory",
    ):
        transfers.run(*common, "transfer=l2_sp", "train.steps=6")
    directory = transfers.run(*common, "transfer=full", "train.steps=6")
    assert (
        find(directory).step == 6
        and json.loads((directory / "source.json").read_text())["sha256"] == before
    )


def test_hours_are_called_by_their_device_as_a_report_calls_them():
    for device, named in (("cpu (x86_64)", "0.01 CPU-hours"), ("NVIDIA H100", "0.01 GPU-hours")):
        assert Result(Path(), {}, {"hours": 0.01, "device": device}).cells()["hours"] == named
    assert Result(Path(), {}, {}).cells()["hours"] == "-"
