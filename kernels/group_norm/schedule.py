"""How the kernels of group norm are started: layouts, tile sizes, one launch or two."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.language import constexpr

from kernels import configs
from kernels.group_norm.tiles import Dropout, Norm, Strided, Tile
from kernels.launch import Launch, next_power_of_2
from kernels.reference import kept_share, threshold

LARGE = 64 * 64  # pixels from which the statistics of an image are shared out among programs
WAVE = 132  # programs under which they are as well: the multiprocessors of an H100
SHORT = 8  # tiles of rows that one program reads sooner than two kernels start


def channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 or x.shape[1] == 1


def layout(last: bool) -> torch.memory_format:
    return torch.channels_last if last else torch.contiguous_format


def empty(x: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """An image tensor like x, in its layout and without gaps."""
    N, _, H, W = x.shape
    size = (N, channels, H, W)
    return torch.empty(size, dtype=dtype, device=x.device, memory_format=layout(channels_last(x)))


def strided(x: Tensor | None, last: bool) -> Strided | None:
    """x as the kernels read it: as it lies where its pixels are one axis and its channels (last) or
    its pixels are adjacent, which a slice of the channels is; else a copy."""
    if x is None:
        return None
    _, C, H, W = x.shape
    image, channel, down, right = x.stride()
    pixel = right if W > 1 else down
    one_axis = H == 1 or W == 1 or down == W * right
    adjacent = (channel == 1 or C == 1) if last else (pixel == 1 or H * W == 1)
    if not (one_axis and adjacent):
        return strided(x.contiguous(memory_format=layout(last)), last)
    return Strided(x, image, 1, pixel) if last else Strided(x, image, channel, 1)


def _row(values: Tensor | None) -> Strided | None:
    """[N, C], or [1, C] for all images."""
    if values is None:
        return None
    return Strided(values, values.stride(0) if values.shape[0] > 1 else 0, values.stride(1))


class Schedule(NamedTuple):
    """The grid is (programs, chunks); a chunk has so many pixels."""

    programs: int
    chunks: int
    chunk: int
    tile: Tile
    options: dict[str, int]

    def partials(self, x: Tensor, quantities: int) -> Tensor | None:
        if self.chunks == 1:
            return None
        return torch.empty((quantities, x.shape[0], self.chunks, x.shape[1]), device=x.device)


def schedule(name: str, x: Tensor, groups: int, last: bool) -> Schedule:
    """Of a kernel for images [N, C, H, W] like x."""
    N, C, H, W = x.shape
    HW, group, itemsize = H * W, C // groups, x.element_size()
    config = configs.pick(name, channels=C, pixels=HW, group=group, itemsize=itemsize)
    slab = max(next_power_of_2(group), min(config["slab"], next_power_of_2(C)))
    rows = max(8, min(config["rows"], next_power_of_2(HW)))
    aligned = 16 // math.gcd(16, group * itemsize)  # groups whose channels fill loads of 128 bits
    fit = slab // group
    width = (fit // aligned * aligned or fit) * group
    programs, chunk = N * -(-C // width), HW
    if HW > LARGE or (programs < WAVE and SHORT * rows < HW):
        chunk = rows * max(1, min(config["chunk"], HW * programs // WAVE) // rows)
    sizes = (group, next_power_of_2(width // group), width, slab, rows, last)
    options = {key: config[key] for key in ("num_warps", "num_stages")}
    return Schedule(programs, -(-HW // chunk), chunk, Tile(*map(constexpr, sizes)), options)


def launch_stages(
    kernel: Any,
    plan: Schedule,
    x: Tensor,
    arguments: dict[str, Any],
    weight: Tensor,
    bias: Tensor,
    act: str,
    row_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> None:
    """One launch, or two if an image is in chunks: arguments, and those that both kernels have.
    What is None is a constant: the kernel is compiled without it. x: [N, C, H, W]."""
    N, C, H, W = x.shape
    drops = (
        Dropout(seed, constexpr(threshold(dropout)), 1 / kept_share(dropout)) if dropout else None
    )
    arguments |= {
        "norm": Norm(weight.contiguous(), bias.contiguous(), *map(_row, (row_bias, scale, shift))),
        "dropout": drops,
        "partials": plan.partials(x, 2),
        "N": N,
        "C": C,
        "HW": H * W,
        "chunk": plan.chunk,
    }
    for stage in (0,) if plan.chunks == 1 else (1, 2):
        constants = {"STAGE": stage, "SILU": act == "silu", "T": plan.tile}
        Launch(kernel, (plan.programs, plan.chunks), arguments, constants, plan.options).start()
