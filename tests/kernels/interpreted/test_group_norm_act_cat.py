"""group_norm_act_cat under the interpreter."""

import pytest
import torch

from kernels import group_norm as kernels
from kernels import reference
from tests.kernels.interpreted import norms

CASES = norms.cases(
    {
        **norms.MATRIX,
        "used": ["both", "cat", "y"],
        "residual": [False, True],
        "boundary": ["in a group", "between"],
    }
)


@pytest.mark.parametrize("case", CASES)
def test_against_float64(case, monkeypatch):
    """boundary: where x ends and skip begins."""
    random, groups, (N, C, H, W) = norms.begun(case, monkeypatch)
    left = groups // 2 * case["width"] + (
        case["width"] // 2 if case["boundary"] == "in a group" else 0
    )
    other = case["last"] != (case["dy"] == "other")
    inputs = {
        "x": norms.images((N, left, H, W), case["last"], random, case["offset"], case["slice"]),
        "skip": norms.images((N, C - left, H, W), other, random, case["offset"], case["slice"]),
        **norms.parameters(C, random),
    }
    if case["residual"]:
        inputs["residual"] = norms.images((N, left, H, W), other, random)
    inputs |= norms.row_bias(case, left, random)
    both = torch.cat([inputs["x"], inputs["skip"]], 1)
    given = [norms.gradient_like(both, case["dy"], random) for _ in range(2)]
    given = [None if case["used"] == "y" else given[0], None if case["used"] == "cat" else given[1]]
    norms.check_in_float32(
        kernels,
        reference,
        "group_norm_act_cat",
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
    norms.schedule(monkeypatch, split, 64)
    random = torch.Generator().manual_seed(0)
    x, skip, residual = (
        norms.images((2, C, 8, 9), True, random, dtype=dtype) for C in (16, 20, 16)
    )
    inputs = {
        "x": x,
        "skip": skip,
        "residual": residual,
        **norms.parameters(36, random),
        "row_bias": torch.randn(2, 16, generator=random).to(dtype),
    }
    given = [norms.images((2, 36, 8, 9), True, random, dtype=dtype) for _ in range(2)]
    norms.check_in_half(
        kernels,
        reference,
        "group_norm_act_cat",
        inputs,
        lambda i, y: given[i],
        groups=3,
        eps=norms.EPS,
    )
