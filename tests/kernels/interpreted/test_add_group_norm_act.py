"""add_group_norm_act under the interpreter."""

import pytest
import torch

from kernels import group_norm as kernels
from kernels import reference
from tests.kernels.interpreted import norms

CASES = norms.cases({**norms.MATRIX, "used": ["both", "sum", "y"]})


@pytest.mark.parametrize("case", CASES)
def test_against_float64(case, monkeypatch):
    """used: the outputs that have a gradient."""
    random, groups, (N, C, H, W) = norms.begun(case, monkeypatch)
    inputs = {
        "x": norms.images((N, C, H, W), case["last"], random, case["offset"], case["slice"]),
        "residual": norms.images(
            (N, C, H, W), case["last"] != (case["dy"] == "other"), random, -2 * case["offset"]
        ),
        **norms.parameters(C, random),
        **norms.row_bias(case, C, random),
    }
    given = [
        norms.gradient_like(torch.empty_like(inputs["x"]), case["dy"], random) for _ in range(2)
    ]
    given = [None if case["used"] == "y" else given[0], None if case["used"] == "sum" else given[1]]
    norms.check_in_float32(
        kernels,
        reference,
        "add_group_norm_act",
        inputs,
        lambda i, y: given[i],
        case["offset"],
        groups=groups,
        eps=norms.EPS,
        act=case["act"],
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("split", [False, True])
def test_in_half_precision(dtype, split, monkeypatch):
    """y and its backward see the sum as it is stored: where it is about 100, a bfloat16 has two
    digits."""
    norms.schedule(monkeypatch, split, 64)
    random = torch.Generator().manual_seed(0)
    x, residual = (norms.images((2, 24, 8, 9), True, random, dtype=dtype) for _ in range(2))
    inputs = {
        "x": x,
        "residual": residual,
        **norms.parameters(24, random),
        "row_bias": torch.randn(2, 24, generator=random).to(dtype),
    }
    given = [norms.images((2, 24, 8, 9), True, random, dtype=dtype) for _ in range(2)]
    norms.check_in_half(
        kernels,
        reference,
        "add_group_norm_act",
        inputs,
        lambda i, y: given[i],
        groups=4,
        eps=norms.EPS,
    )


def test_y_is_the_norm_of_the_sum_that_is_stored(monkeypatch):
    norms.schedule(monkeypatch, False, 32)
    random = torch.Generator().manual_seed(0)
    x, residual = (
        norms.images((1, 8, 4, 4), True, random, 100.0, dtype=torch.bfloat16) for _ in range(2)
    )
    weight, bias = norms.parameters(8, random).values()
    total, y = kernels.add_group_norm_act(x, residual, weight, bias, 2, norms.EPS)
    true = reference.group_norm_act(total.double(), weight.double(), bias.double(), 2, norms.EPS)
    assert norms.error(y, true)[0] <= 1e-2 * true.abs().max()


def test_types_are_promoted_as_torch_does(monkeypatch):
    """A bfloat16 convolution beside a float32 residual, as under autocast: each gets a gradient of
    its own type."""
    norms.schedule(monkeypatch, False, 32)
    random = torch.Generator().manual_seed(0)
    x, residual = (
        norms.images((1, 8, 4, 4), True, random, dtype=torch.bfloat16),
        norms.images((1, 8, 4, 4), True, random),
    )
    inputs = {"x": x, "residual": residual, **norms.parameters(8, random)}
    given = norms.images((1, 8, 4, 4), True, random)
    outputs, gradients = norms.run(
        kernels, "add_group_norm_act", inputs, lambda i, y: given, groups=2, eps=norms.EPS
    )
    true_outputs, true = norms.run(
        reference,
        "add_group_norm_act",
        inputs,
        lambda i, y: given,
        dtype=torch.float64,
        groups=2,
        eps=norms.EPS,
    )
    assert [y.dtype for y in outputs] == [torch.float32] * 2
    assert gradients["x"].dtype == torch.bfloat16 and gradients["residual"].dtype == torch.float32
    assert norms.error(outputs[1], true_outputs[1])[0] < 1e-5
    assert norms.error(gradients["residual"], true["residual"])[0] < 1e-5
