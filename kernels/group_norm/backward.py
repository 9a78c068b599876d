"""Group norm + activation, backward: the Triton kernel and its launch."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.group_norm.schedule import channels_last, empty, launch_stages, schedule, strided
from kernels.group_norm.tiles import (
    added_row,
    affine,
    at,
    dropped,
    membership,
    packed,
    per_channel,
    per_group,
    pixels,
    place,
    read,
    read_chunks,
    slots,
    write,
    write_chunk,
    zeros,
)


@triton.jit
def coefficients(norm, moments, N, p, T):
    """added, mu, mu_low, r, a and e, each [SLAB], of xh = (x + added - mu - mu_low) r and
    u = a xh + e."""
    added = added_row(norm, p, p.real, T)
    groups, g = p.C // T.GROUP, p.c // T.GROUP
    mu = read(moments + p.n * groups + g, p.real)
    mu_low = read(moments + (N + p.n) * groups + g, p.real)
    r = read(moments + (2 * N + p.n) * groups + g, p.real)
    a, e = affine(norm, p)
    return added, mu, mu_low, r, a, e


@triton.jit
def upstream(x, dy, of, dropout, p, start, SILU: tl.constexpr, T):
    """xh and du [ROWS, SLAB], du = 0 outside."""
    added, mu, mu_low, r, a, e = of
    hw, inside = pixels(p, start, T)
    x_row = read(at(x, p.n, p.c, hw), inside) + added[None, :]
    xh = (x_row - mu[None, :] - mu_low[None, :]) * r[None, :]
    du = dropped(read(at(dy, p.n, p.c, hw), inside), dropout, p, start, T)
    if SILU:
        u = xh * a[None, :] + e[None, :]
        sg = tl.sigmoid(u)
        du *= sg * (1.0 + u * (1.0 - sg))
    return xh, du


@triton.jit
def summed(x, dy, of, dropout, p, SILU: tl.constexpr, T):
    """A and B [SLAB] over the program's pixels."""
    As, Bs = zeros(T), zeros(T)
    for start in range(p.first, p.last, T.ROWS):
        xh, du = upstream(x, dy, of, dropout, p, start, SILU, T)
        As += du * xh
        Bs += du
    return tl.sum(As, 0), tl.sum(Bs, 0)


@triton.jit
def combined(partials, p, N, T):
    """A and B [SLAB] over all pixels from those over the chunks."""
    As, Bs = zeros(T), zeros(T)
    for start in range(0, tl.num_programs(1), T.ROWS):
        _, A, B = read_chunks(partials, p, N, start, T)
        As += A
        Bs += B
    return tl.sum(As, 0), tl.sum(Bs, 0)


@triton.jit
def group_norm_backward_kernel(
    x,
    dy,
    dtotal,
    norm,
    dropout,
    moments,
    partials,
    dx,
    dskip,
    sums,
    row_sums,
    N,
    C,
    H_C,
    HW,
    chunk,
    STAGE: tl.constexpr,
    SILU: tl.constexpr,
    T,
):
    """A = sum_hw du xh, B = sum_hw du; then dx = r (a du - c2 - xh c1) + dtotal, with c1, c2 the
    means of a A, a B over a group."""
    p = place(C, HW, chunk, T)
    of = coefficients(norm, moments, N, p, T)
    if STAGE == 2:
        A, B = combined(partials, p, N, T)
    else:
        A, B = summed(x, dy, of, dropout, p, SILU, T)

    if STAGE == 1:
        write_chunk(partials, p, N, A, B)
    else:
        one = p.real & (tl.program_id(1) == 0)
        tl.store(sums + p.n * C + p.c, A, mask=one)
        tl.store(sums + (N + p.n) * C + p.c, B, mask=one)
        _, _, _, r, a, _ = of
        member = membership(p.real, T)
        c1 = per_channel(member, per_group(member, a * A) / (HW * T.GROUP))
        c2 = per_channel(member, per_group(member, a * B) / (HW * T.GROUP))
        into_row = zeros(T)
        for start in range(p.first, p.last, T.ROWS):
            hw, inside = pixels(p, start, T)
            xh, du = upstream(x, dy, of, dropout, p, start, SILU, T)
            d = r[None, :] * (a[None, :] * du - c2[None, :] - xh * c1[None, :])
            if dtotal is not None:
                d += read(at(dtotal, p.n, p.c, hw), inside)
            if row_sums is not None:
                into_row += tl.where(inside, d, 0.0)
            left, right = inside & (p.c < H_C)[None, :], inside & (p.c >= H_C)[None, :]
            write(dx + packed(p, p.c, H_C, hw, HW, T), d, left)
            if dskip is not None:
                write(dskip + packed(p, p.c - H_C, C - H_C, hw, HW, T), d, right)
        if row_sums is not None:
            tl.store(slots(row_sums, p, tl.program_id(1)), tl.sum(into_row, 0), mask=p.real)


def backward_outputs(
    x: Tensor, row_bias: Tensor | None, channels: int, **_: Any
) -> tuple[Tensor, ...]:
    """(dx, dskip, sums): dx of the first channels of x, dskip of the others, and sums
    [2 or 3, N, C]: A, B and, for row_bias, the sums over hw of the gradient of x'."""
    N, C = x.shape[:2]
    dx, dskip = (empty(x, size, x.dtype) for size in (channels, C - channels))
    return dx, dskip, x.new_empty((2 if row_bias is None else 3, N, C), dtype=torch.float32)


def group_norm_backward(
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    moments: Tensor,
    weight: Tensor,
    bias: Tensor,
    row_bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    seed: Tensor | None,
    joined: bool,
    channels: int,
    act: str,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """x: what the norm saw, if not joined but for row_bias; dtotal: the gradient of it that is not
    through dy. Returns backward_outputs()."""
    dx, dskip, sums = backward_outputs(x, row_bias, channels)
    last = channels_last(x)
    plan = schedule("group_norm_backward", x, moments.shape[2], last)
    chunk_sums = None if row_bias is None else plan.partials(x, 1)
    arguments = {
        "x": strided(x, last),
        "dy": strided(dy, last),
        "dtotal": strided(dtotal, last),
        "moments": moments,
        "dx": dx,
        "dskip": dskip if dskip.shape[1] else None,
        "sums": sums,
        "row_sums": chunk_sums if row_bias is None or plan.chunks > 1 else sums[2],
        "H_C": channels,
    }
    norm = (weight, bias, act, None if joined else row_bias, scale, shift, dropout, seed)
    launch_stages(group_norm_backward_kernel, plan, x, arguments, *norm)
    if chunk_sums is not None:
        torch.sum(chunk_sums[0], 1, out=sums[2])
    return dx, dskip, sums
