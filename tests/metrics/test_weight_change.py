"""Weight change by part, by hand."""

from __future__ import annotations

import pytest
import torch

from metrics.weight_change import unmatched, weight_change
from runtime.errors import UserError
from tests.helpers.terms import unet


def test_the_change_of_a_part_is_that_of_all_its_tensors_together():
    start = {
        "down.0.block.0.conv1.weight": torch.tensor([3.0, 0.0]),
        "down.0.attention.0.qkv.bias": torch.tensor([4.0]),
        "down.1.block.0.conv1.weight": torch.tensor([2.0]),
    }
    now = {
        "down.0.block.0.conv1.weight": torch.tensor([3.0, 5.0]),
        "down.0.attention.0.qkv.bias": torch.tensor([16.0]),
        "down.1.block.0.conv1.weight": torch.tensor([2.0]),
    }
    # sqrt(5^2 + 12^2) / sqrt(3^2 + 4^2)
    assert weight_change(now, start) == {
        "down.0": pytest.approx(13 / 5),
        "down.1": 0.0,
    }


def test_the_parts_come_as_the_network_runs_whatever_the_order_of_the_file():
    names = [
        "conv_in",
        "time_mlp",
        "class_embedding",
        "down.0",
        "down.1",
        "mid",
        "up.1",
        "up.0",
        "norm_out",
        "conv_out",
    ]
    start = dict(sorted(unet(classes=3).state_dict().items()))
    now = {name: 1.5 * w for name, w in start.items()}
    change = weight_change(now, start)
    assert list(change) == names
    assert list(change.values()) == pytest.approx([0.5] * len(names), rel=1e-6)
    ten = {f"{side}.{k}.weight": torch.ones(1) for side in ("down", "up") for k in (10, 2)}
    assert list(weight_change(ten, ten)) == ["down.2", "down.10", "up.10", "up.2"]


def test_tensors_without_a_counterpart_are_left_out_and_named():
    start = {
        "conv_in.weight": torch.ones(2),
        "class_embedding.weight": torch.ones(3, 4),
        "mid.gone": torch.ones(2),
    }
    now = {
        "conv_in.weight": torch.full((2,), 3.0),
        "class_embedding.weight": torch.ones(5, 4),
        "mid.block.0.lora.a": torch.ones(2),
    }
    assert unmatched(now, start) == ["class_embedding.weight", "mid.block.0.lora.a"]
    assert weight_change(now, start) == {"conv_in": 2.0}


def test_a_part_that_was_zero_has_no_relative_change():
    assert weight_change(
        {"conv_out.weight": torch.ones(2), "mid.weight": torch.ones(2)},
        {"conv_out.weight": torch.zeros(2), "mid.weight": torch.ones(2)},
    ) == {"mid": 0.0}


def test_tiny_weights_of_any_precision_do_not_underflow():
    for dtype in (torch.float32, torch.bfloat16):
        start = {"mid.weight": torch.tensor([2.0**-100], dtype=dtype)}
        assert weight_change({"mid.weight": 3 * start["mid.weight"]}, start) == {"mid": 2.0}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad):
    good, broken = {"mid.weight": torch.ones(2)}, {"mid.weight": torch.tensor([1.0, bad])}
    for now, start in ((good, broken), (broken, good)):
        with pytest.raises(UserError, match="mid.weight"):
            weight_change(now, start)
