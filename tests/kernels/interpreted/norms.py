"""The fused norms against kernels.reference in float64: cases, a run with all gradients, the
comparison."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import configs
from kernels.group_norm import schedule as schedule_module

EPS = 1e-5
# of each width, so that there are few programs, and more than one
GROUPS = {1: 6, 2: 6, 3: 6, 4: 6, 8: 2, 12: 2, 16: 2, 24: 2, 32: 2}
SIZES = {
    "1": (1, 1),
    "4x4": (4, 4),
    "5x7": (5, 7),
    "16x16": (16, 16),
    "32x32": (32, 32),
    "split": (9, 10),
}
# the interpreter adds up the rows of a tile one by one
ROWS = {"1": 4, "4x4": 16, "5x7": 16, "16x16": 64, "32x32": 128, "split": 32}
MATRIX = {
    "width": list(GROUPS),
    "size": list(SIZES),
    "N": [1, 3],
    "offset": [0, 3, 100],
    "row_bias": [None, "N", "1"],
    "last": [True, False],
    "act": ["silu", "identity"],
    "dy": ["like", "other", "expanded"],
    "slice": [False, True],
    "slab": [64, 16],
}
IN_FLOAT32 = {"y": 1e-6, "gradient": 2e-6, "offset 100": 2e-5}
FLOOR = 2e-5  # of an absolute error, where the truth is 0 but for rounding


def pairwise(factors: dict[str, list]) -> list[dict[str, Any]]:
    """Rows in which every two values of two factors meet: each row is the best of 40 random ones
    that hold a pair not met yet. Not one image, one pixel and one channel in a group at once, the
    first of each: torch refuses that."""
    draw, names = random.Random(0), list(factors)
    left = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(names, 2)
        for i in range(len(factors[a]))
        for j in range(len(factors[b]))
    }
    rows = []

    def met(row: dict[str, int]) -> set:
        return {((a, row[a]), (b, row[b])) for a, b in itertools.combinations(names, 2)}

    while left:
        pair = min(left)
        drawn = (
            {name: draw.randrange(len(factors[name])) for name in names} | dict(pair)
            for _ in range(40)
        )
        best = max(
            (row for row in drawn if row["width"] or row["size"] or row["N"]),
            key=lambda row: len(met(row) & left),
        )
        left -= met(best)
        rows.append({name: factors[name][i] for name, i in best.items()})
    return rows


def cases(factors: dict[str, list]) -> list:
    """The rows of pairwise() as parameters of a test. Those few in which every value of every
    factor comes are run by `make test`; the others are marked slow."""
    rows, left = (
        pairwise(factors),
        {(name, i): 1 for name in factors for i in range(len(factors[name]))},
    )
    quick: list[dict[str, Any]] = []

    def values(row: dict[str, Any]) -> list[tuple[str, int]]:
        return [(name, factors[name].index(value)) for name, value in row.items()]

    def gain(row: dict[str, Any]) -> int:
        return sum(left[value] > 0 for value in values(row))

    while any(n > 0 for n in left.values()) and (rest := [row for row in rows if row not in quick]):
        quick.append(max(rest, key=gain))
        for value in values(quick[-1]):
            left[value] -= 1
    return [
        pytest.param(row, id=name_of(row), marks=[] if row in quick else pytest.mark.slow)
        for row in rows
    ]


def name_of(case: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in case.items())


def schedule(monkeypatch, split: bool, rows: int, slab: int = 64) -> None:
    """Small tiles, as the interpreter needs many more operations for many programs than for large
    ones; in chunks or not."""
    config = {"slab": slab, "rows": rows, "chunk": 2 * rows, "num_warps": 4, "num_stages": 1}
    monkeypatch.setattr(configs, "pick", lambda kernel, **shape: config)
    monkeypatch.setattr(schedule_module, "WAVE", 10**9 if split else 0)
    monkeypatch.setattr(schedule_module, "LARGE", 0 if split else 10**9)


def begun(
    case: dict[str, Any], monkeypatch
) -> tuple[torch.Generator, int, tuple[int, int, int, int]]:
    """What every case of a matrix begins with: its tiles, its random numbers, its groups and its
    shape [N, C, H, W]."""
    schedule(monkeypatch, case["size"] == "split", ROWS[case["size"]], case["slab"])
    groups = GROUPS[case["width"]]
    return (
        torch.Generator().manual_seed(0),
        groups,
        (case["N"], groups * case["width"], *SIZES[case["size"]]),
    )


def row_bias(case: dict[str, Any], C: int, random: torch.Generator) -> dict[str, Tensor]:
    """[N, C] or [1, C], where the case has one."""
    return (
        {"row_bias": torch.randn(case["N"] if case["row_bias"] == "N" else 1, C, generator=random)}
        if case["row_bias"]
        else {}
    )


def images(
    shape: tuple[int, ...],
    last: bool,
    random: torch.Generator,
    offset: float = 0.0,
    sliced: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Normal numbers, each channel about an offset of its own. sliced: channels of a wider
    tensor."""
    N, C, H, W = shape
    margin = 16 if sliced else 0
    x = torch.randn(N, C + margin, H, W, generator=random) + offset * (
        1 + 0.01 * torch.randn(C + margin, 1, 1, generator=random)
    )
    x = x.to(dtype, memory_format=torch.channels_last if last else torch.contiguous_format)
    return x[:, margin // 2 : margin // 2 + C]


def gradient_like(y: Tensor, kind: str, random: torch.Generator) -> Tensor:
    """A dy in y's layout, in the other one, or the same number at all pixels, with strides of 0."""
    if kind == "expanded":
        return torch.randn(*y.shape[:2], 1, 1, generator=random).to(y.dtype).expand(y.shape)
    last = y.is_contiguous(memory_format=torch.channels_last) == (kind == "like")
    return images(tuple(y.shape), last, random, dtype=y.dtype)


def parameters(C: int, random: torch.Generator) -> dict[str, Tensor]:
    """Far from 1 and 0: a backward that forgets them would be wrong."""
    return {
        "weight": 0.5 + torch.randn(C, generator=random),
        "bias": 0.7 * torch.randn(C, generator=random),
    }


def run(
    module: ModuleType,
    name: str,
    inputs: dict[str, Tensor],
    gradients: Callable[[int, Tensor], Tensor | None],
    dtype: torch.dtype | None = None,
    **options: Any,
) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """The outputs, and the gradient of each input. dtype: what the inputs are computed in, if not
    their own."""
    leaves = {
        key: value.detach().to(dtype or value.dtype).requires_grad_()
        for key, value in inputs.items()
    }
    outputs = getattr(module, name)(**leaves, **options)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    given = [(y, gradients(i, y)) for i, y in enumerate(outputs)]
    used = [(y, dy.to(y.dtype)) for y, dy in given if dy is not None]
    found = torch.autograd.grad(
        [y for y, _ in used], list(leaves.values()), [dy for _, dy in used], allow_unused=True
    )
    return [y.detach() for y in outputs], dict(zip(leaves, found))


def error(found: Tensor | None, true: Tensor | None) -> tuple[float, float]:
    """The largest error, and the largest true number."""
    if true is None:
        return (0.0 if found is None else found.abs().max().item()), 0.0
    assert found is not None and found.shape == true.shape
    return (found.double() - true).abs().max().item(), true.abs().max().item()


def check_in_float32(
    kernels: ModuleType,
    reference: ModuleType,
    name: str,
    inputs: dict[str, Tensor],
    gradients: Callable[[int, Tensor], Tensor | None],
    offset: float,
    **options: Any,
) -> None:
    """The table's tolerances, and no more than twice torch's own error. gradients(i, y): that of
    output i, or None."""
    ours, theirs = (
        run(kernels, name, inputs, gradients, **options),
        run(reference, name, inputs, gradients, **options),
    )
    outputs, derivatives = run(reference, name, inputs, gradients, dtype=torch.float64, **options)
    for i, true in enumerate(outputs):
        within(
            f"output {i}",
            ours[0][i],
            theirs[0][i],
            true,
            IN_FLOAT32["offset 100" if offset == 100 else "y"],
        )
    for key, true in derivatives.items():
        assert ours[1][key] is None or ours[1][key].dtype == inputs[key].dtype
        within(
            f"d {key}",
            ours[1][key],
            theirs[1][key],
            true,
            IN_FLOAT32["offset 100" if offset == 100 else "gradient"],
        )


def within(
    what: str, ours: Tensor | None, theirs: Tensor | None, true: Tensor | None, tolerance: float
) -> None:
    """Half of torch's error will do where the case is ill-conditioned, such as one of two numbers
    about 100 that hardly differ."""
    (mine, largest), (torchs, _) = error(ours, true), error(theirs, true)
    if largest > 1e-3:
        limit = min(max(tolerance * largest, torchs / 2), max(2 * torchs, tolerance / 2 * largest))
    else:
        limit = max(2 * torchs, FLOOR)
    assert mine <= limit, f"{what}: {mine:.2e} of {largest:.2e}, torch {torchs:.2e}"


def check_in_half(
    kernels: ModuleType,
    reference: ModuleType,
    name: str,
    inputs: dict[str, Tensor],
    gradients: Callable[[int, Tensor], Tensor | None],
    **options: Any,
) -> None:
    """1e-2 of an output, 1.5e-2 of a gradient: the interpreter cuts off what a GPU would round."""
    outputs, derivatives = run(kernels, name, inputs, gradients, **options)
    true_outputs, true_derivatives = run(
        reference, name, inputs, gradients, dtype=torch.float64, **options
    )
    for y, true in zip(outputs, true_outputs):
        off, largest = error(y, true)
        assert y.dtype == next(iter(inputs.values())).dtype and off <= 1e-2 * largest
    for key, true in true_derivatives.items():
        off, largest = error(derivatives[key], true)
        assert derivatives[key].dtype == inputs[key].dtype and off <= 1.5e-2 * largest, key
