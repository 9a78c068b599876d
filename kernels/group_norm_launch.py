"""How the kernels of kernels/group_norm_kernels.py are started: layouts, tile sizes, one kernel or two."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kernels import configs, group_norm_kernels
from kernels.launch import launch
from kernels.reference import threshold

LARGE = 64 * 64  # pixels from which the statistics of an image are shared out among programs
WAVE = 132  # programs under which they are as well: the multiprocessors of an H100
SHORT = 8  # tiles of rows that one program reads sooner than two kernels start


def channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 or x.shape[1] == 1


def empty(x: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """An image tensor like x, in its layout and without gaps."""
    N, _, H, W = x.shape
    return torch.empty((N, channels, H, W), dtype=dtype, device=x.device,
                       memory_format=torch.channels_last if channels_last(x) else torch.contiguous_format)


def image(name: str, x: Tensor | None, last: bool) -> dict[str, Any]:
    """x with its strides as the kernels read it: as it lies where its pixels are one axis and its channels (last) or its pixels are
    adjacent, which a slice of the channels is; else a copy."""
    if x is None:
        return {name: None, f"{name}_step": 0, f"{name}_pitch": 0}
    if not _lies(x, last):
        x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    return {name: x, f"{name}_step": x.stride(0), f"{name}_pitch": _pixel_stride(x) if last else x.stride(1)}


def _lies(x: Tensor, last: bool) -> bool:
    _, C, H, W = x.shape
    one_axis = H == 1 or W == 1 or x.stride(2) == W * x.stride(3)
    return one_axis and ((x.stride(1) == 1 or C == 1) if last else (_pixel_stride(x) == 1 or H * W == 1))


def _pixel_stride(x: Tensor) -> int:
    return x.stride(3) if x.shape[3] > 1 else x.stride(2)


def row(name: str, values: Tensor | None) -> dict[str, Any]:
    """[N, C] or [1, C] with its strides."""
    prefix = name.removesuffix("_bias")
    if values is None:
        return {name: None, f"{prefix}_step": 0, f"{prefix}_pitch": 0}
    return {name: values, f"{prefix}_step": values.stride(0) if values.shape[0] > 1 else 0, f"{prefix}_pitch": values.stride(1)}


def drop(dropout: float, seed: Tensor | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments and the constants of dropout."""
    if not dropout:
        return {"seed": None, "keep_scale": 1.0}, {"THRESHOLD": 0}
    assert seed is not None, "dropout draws from a seed"
    return {"seed": seed, "keep_scale": 1 / (1 - dropout)}, {"THRESHOLD": threshold(dropout)}


def schedule(name: str, like: Tensor, groups: int) -> tuple[int, int, int, dict[str, int], dict[str, int]]:
    """programs, chunks, pixels of a chunk, constants and options of a kernel for images like this one."""
    N, C, H, W = like.shape
    HW, group = H * W, C // groups
    config = configs.pick(name, channels=C, pixels=HW, group=group, itemsize=like.element_size())
    slab = max(power_of_2(group), min(config["slab"], power_of_2(C)))
    rows = max(4, min(config["rows"], power_of_2(HW)))
    aligned = 16 // math.gcd(16, group * like.element_size())  # groups whose channels fill loads of 128 bits
    fit = slab // group
    width = (fit // aligned * aligned or fit) * group
    programs, chunk = N * -(-C // width), HW
    if HW > LARGE or (programs < WAVE and SHORT * rows < HW):
        chunk = rows * max(1, min(config["chunk"], HW * programs // WAVE) // rows)
    constants = {"GROUP": group, "GROUPS": power_of_2(width // group), "WIDTH": width, "SLAB": slab, "ROWS": rows}
    return programs, -(-HW // chunk), chunk, constants, {key: config[key] for key in ("num_warps", "num_stages")}


def power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def start(kernel: Any, programs: int, chunks: int, arguments: dict[str, Any], constants: dict[str, Any], options: dict[str, int]) -> None:
    """One kernel, or two if an image is in chunks. What is None is a constant: the kernel is compiled without it."""
    given = {name: value for name, value in arguments.items() if value is not None}
    constants |= {name: None for name, value in arguments.items() if value is None}
    for stage in (0,) if chunks == 1 else (1, 2):
        launch(kernel, (programs, chunks), given, {**constants, "STAGE": stage}, options)


def forward(h: Tensor, residual: Tensor | None, skip: Tensor | None, row_bias: Tensor | None, weight: Tensor, bias: Tensor, groups: int,
            eps: float, act: str, scale: Tensor | None, shift: Tensor | None, dropout: float, seed: Tensor | None, total: Tensor | None,
            y: Tensor, moments: Tensor) -> None:
    """Fills total, y and moments."""
    N, C, H, W = y.shape
    last = channels_last(h)
    programs, chunks, chunk, constants, options = schedule("group_norm_forward", y, groups)
    dropped, how = drop(dropout, seed)
    arguments = {
        **image("h", h, last), **image("residual", residual, last), **image("skip", skip, last), **row("row_bias", row_bias),
        "weight": weight.contiguous(), "bias": bias.contiguous(), **row("scale", scale), **row("shift", shift), **dropped,
        "partials": _partials(y, 2, chunks), "total": total, "y": y, "moments": moments,
        "N": N, "C": C, "H_C": h.shape[1], "HW": H * W, "chunk": chunk, "eps": eps,
    }
    start(group_norm_kernels.forward, programs, chunks, arguments, {**constants, **how, "LAST": last, "SILU": act == "silu"}, options)


def backward(dy: Tensor, dtotal: Tensor | None, x: Tensor, row_bias: Tensor | None, weight: Tensor, bias: Tensor, moments: Tensor,
             act: str, scale: Tensor | None, shift: Tensor | None, dropout: float, seed: Tensor | None, dx: Tensor, dskip: Tensor | None,
             sums: Tensor) -> None:
    """Fills dx, dskip and sums: A, B and, where there is room for it, the sum over hw of the gradient of x'."""
    N, C, H, W = x.shape
    last = channels_last(x)
    programs, chunks, chunk, constants, options = schedule("group_norm_backward", x, moments.shape[2])
    dropped, how = drop(dropout, seed)
    row_sums = None if len(sums) == 2 else sums[2] if chunks == 1 else _partials(x, 1, chunks)
    arguments = {
        **image("x", x, last), **image("dy", dy, last), **image("dtotal", dtotal, last), **row("row_bias", row_bias),
        "weight": weight.contiguous(), "bias": bias.contiguous(), **row("scale", scale), **row("shift", shift), **dropped,
        "moments": moments, "partials": _partials(x, 2, chunks), "dx": dx, "dskip": dskip, "sums": sums, "row_sums": row_sums,
        "N": N, "C": C, "H_C": dx.shape[1], "HW": H * W, "chunk": chunk,
    }
    start(group_norm_kernels.backward, programs, chunks, arguments, {**constants, **how, "LAST": last, "SILU": act == "silu"}, options)
    if row_sums is not None and chunks > 1:
        torch.sum(row_sums[0], 1, out=sums[2])


def _partials(x: Tensor, quantities: int, chunks: int) -> Tensor | None:
    return torch.empty((quantities, x.shape[0], chunks, x.shape[1]), device=x.device) if chunks > 1 else None
