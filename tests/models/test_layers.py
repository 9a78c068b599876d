"""The norm where what lies below it is frozen, and sums that are not added up yet."""

import inspect
import subprocess
import sys

import torch

from models.layers import Sum

CODE = """
from itertools import product
import torch
from models.layers import GroupNorm

def gradients(norm, x):
    norm(x).square().sum().backward()
    return norm.weight.grad, norm.bias.grad

for weight, bias, inputs, layout in product([True, False], [True, False], [True, False],
                                            [torch.channels_last, torch.contiguous_format]):
    if not (weight or bias):
        continue
    norm, x = GroupNorm(4, 8, act='identity'), torch.randn(2, 8, 6, 5)
    torch.nn.init.normal_(norm.weight)
    true = torch.nn.GroupNorm(4, 8, 1e-6).double()
    true.load_state_dict(norm.state_dict())
    expected = gradients(true, x.double())
    norm.weight.requires_grad_(weight)
    norm.bias.requires_grad_(bias)
    found = gradients(norm, x.contiguous(memory_format=layout).requires_grad_(inputs))
    for trains, ours, theirs in zip([weight, bias], found, expected, strict=True):
        assert (ours is not None) == trains
        if trains:
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-4)
"""


def test_gradients_of_a_norm_with_and_without_one_of_its_input():
    """In a process of its own: torch's CPU kernel ends it where a channels_last input needs no
    gradient."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_bias_in_fp32_leaves_an_image_of_autocast_as_narrow_as_it_was():
    """Else every skip connection from there, and the norms that read it, have twice the width."""
    x, branch = (torch.randn(2, 8, 4, 4).bfloat16() for _ in range(2))
    bias = torch.randn(8)
    total = Sum(x, branch, bias).total()
    assert total.dtype == torch.bfloat16
    torch.testing.assert_close(
        total.double(),
        x.double() + branch.double() + bias.double()[:, None, None],
        rtol=2e-2,
        atol=3e-2,
    )


def test_a_sum_is_added_up_by_a_function():
    """Which every torch traces on a NamedTuple: its compiler for long took fields and functions of
    one, and a property broke the graph."""
    assert inspect.isfunction(inspect.getattr_static(Sum, "total"))
