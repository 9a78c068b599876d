"""Group norm + activation, backward: the Triton kernel and its launch."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.group_norm.schedule import channels_last, empty, image, launch_stages, schedule
from kernels.group_norm.tiles import (
    affine,
    at,
    kept,
    membership,
    per_channel,
    per_group,
    place,
    row,
    tile,
)


@triton.jit
def upstream(
    x,
    x_pitch,
    dy,
    dy_pitch,
    seed,
    keep_scale,
    added,
    mu,
    mu_low,
    r,
    a,
    e,
    n,
    c,
    C,
    start,
    hw,
    inside,
    SILU: tl.constexpr,
    LAST: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ROWS: tl.constexpr,
    SLAB: tl.constexpr,
):
    """xh and du [ROWS, SLAB], du = 0 outside. u = a xh + e."""
    xh = (
        tile(x, c, hw, x_pitch, inside, LAST) + added[None, :] - mu[None, :] - mu_low[None, :]
    ) * r[None, :]
    du = tile(dy, c, hw, dy_pitch, inside, LAST)
    if seed is not None:
        du = tl.where(kept(seed, n, c, C, start, THRESHOLD, ROWS, SLAB), du * keep_scale, 0.0)
    if SILU:
        u = xh * a[None, :] + e[None, :]
        sg = tl.sigmoid(u)
        du *= sg * (1.0 + u * (1.0 - sg))
    return xh, du


@triton.jit
def group_norm_backward_kernel(
    x,
    x_step,
    x_pitch,
    dy,
    dy_step,
    dy_pitch,
    dtotal,
    dtotal_step,
    dtotal_pitch,
    row_bias,
    row_step,
    row_pitch,
    weight,
    bias,
    scale,
    scale_step,
    scale_pitch,
    shift,
    shift_step,
    shift_pitch,
    seed,
    keep_scale,
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
    LAST: tl.constexpr,
    SILU: tl.constexpr,
    THRESHOLD: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    SLAB: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A = sum_hw du xh, B = sum_hw du; then dx = r (a du - c2 - xh c1) + dtotal, with c1, c2 the
    means of a A, a B over a group."""
    n, c, real = place(C, WIDTH, SLAB)
    chunks = tl.num_programs(1)
    plane = N * chunks.to(tl.int64) * C
    first = tl.program_id(1) * chunk
    last = tl.minimum(first + chunk, HW)
    x += n * x_step
    dy += n * dy_step
    added = tl.zeros([SLAB], tl.float32)
    if row_bias is not None:
        added = row(row_bias, n, row_step, row_pitch, c, real)
    mu = tl.load(moments + n * (C // GROUP) + c // GROUP, mask=real, other=0.0)
    mu_low = tl.load(moments + (N + n) * (C // GROUP) + c // GROUP, mask=real, other=0.0)
    r = tl.load(moments + (2 * N + n) * (C // GROUP) + c // GROUP, mask=real, other=0.0)
    a, e = affine(
        weight, bias, scale, scale_step, scale_pitch, shift, shift_step, shift_pitch, n, c, real
    )

    As, Bs = tl.zeros([ROWS, SLAB], tl.float32), tl.zeros([ROWS, SLAB], tl.float32)
    if STAGE == 2:
        for start in range(0, chunks, ROWS):
            k = start + tl.arange(0, ROWS)
            slots = partials + (n * chunks + k)[:, None] * C + c[None, :]
            mask = (k < chunks)[:, None] & real[None, :]
            As += tl.load(slots, mask=mask, other=0.0)
            Bs += tl.load(slots + plane, mask=mask, other=0.0)
    else:
        for start in range(first, last, ROWS):
            hw = start + tl.arange(0, ROWS)
            inside = (hw < last)[:, None] & real[None, :]
            xh, du = upstream(
                x,
                x_pitch,
                dy,
                dy_pitch,
                seed,
                keep_scale,
                added,
                mu,
                mu_low,
                r,
                a,
                e,
                n,
                c,
                C,
                start,
                hw,
                inside,
                SILU,
                LAST,
                THRESHOLD,
                ROWS,
                SLAB,
            )
            As += du * xh
            Bs += du
    A, B = tl.sum(As, 0), tl.sum(Bs, 0)

    if STAGE == 1:
        slot = partials + (n * chunks + tl.program_id(1)) * C + c
        tl.store(slot, A, mask=real)
        tl.store(slot + plane, B, mask=real)
    else:
        one = real & (tl.program_id(1) == 0)
        tl.store(sums + n * C + c, A, mask=one)
        tl.store(sums + (N + n) * C + c, B, mask=one)
        member = membership(real, GROUP, GROUPS, SLAB)
        c1 = per_channel(member, per_group(member, a * A) / (HW * GROUP))
        c2 = per_channel(member, per_group(member, a * B) / (HW * GROUP))
        if dtotal is not None:
            dtotal += n * dtotal_step
        into_row = tl.zeros([ROWS, SLAB], tl.float32)
        for start in range(first, last, ROWS):
            hw = start + tl.arange(0, ROWS)
            inside = (hw < last)[:, None] & real[None, :]
            xh, du = upstream(
                x,
                x_pitch,
                dy,
                dy_pitch,
                seed,
                keep_scale,
                added,
                mu,
                mu_low,
                r,
                a,
                e,
                n,
                c,
                C,
                start,
                hw,
                inside,
                SILU,
                LAST,
                THRESHOLD,
                ROWS,
                SLAB,
            )
            d = r[None, :] * (a[None, :] * du - c2[None, :] - xh * c1[None, :])
            if dtotal is not None:
                d += tile(dtotal, c, hw, dtotal_pitch, inside, LAST)
            if row_sums is not None:
                into_row += tl.where(inside, d, 0.0)
            left = inside & (c < H_C)[None, :]
            tl.store(
                dx + n * H_C * HW + at(c, hw, H_C if LAST else HW, LAST),
                d.to(dx.dtype.element_ty),
                mask=left,
            )
            if dskip is not None:
                S_C = C - H_C
                out = dskip + n * S_C * HW + at(c - H_C, hw, S_C if LAST else HW, LAST)
                tl.store(out, d.to(dskip.dtype.element_ty), mask=inside & (c >= H_C)[None, :])
        if row_sums is not None:
            tl.store(
                row_sums + (n * chunks + tl.program_id(1)) * C + c, tl.sum(into_row, 0), mask=real
            )


def backward_outputs(x: Tensor, channels: int, row_sums: bool, **_: Any) -> tuple[Tensor, ...]:
    """(dx, dskip, sums): dx of the first channels of x, dskip of the others, and sums
    [2 or 3, N, C]: A, B and (row_sums) the sums over hw of the gradient of x'."""
    N, C = x.shape[:2]
    dx, dskip = (empty(x, size, x.dtype) for size in (channels, C - channels))
    return dx, dskip, x.new_empty((3 if row_sums else 2, N, C), dtype=torch.float32)


def group_norm_backward(
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    channels: int,
    row_sums: bool,
    weight: Tensor,
    bias: Tensor,
    moments: Tensor,
    act: str,
    row_bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """x: what the norm saw, but for row_bias; dtotal: the gradient of it that is not through dy.
    Returns backward_outputs()."""
    dx, dskip, sums = backward_outputs(x, channels, row_sums)
    last = channels_last(x)
    plan = schedule("group_norm_backward", x, moments.shape[2])
    chunk_sums = plan.partials(x, 1) if row_sums else None
    arguments = {
        **image("x", x, last),
        **image("dy", dy, last),
        **image("dtotal", dtotal, last),
        "moments": moments,
        "dx": dx,
        "dskip": dskip if dskip.shape[1] else None,
        "sums": sums,
        "row_sums": sums[2] if row_sums and plan.chunks == 1 else chunk_sums,
        "H_C": channels,
    }
    norm = (weight, bias, act, row_bias, scale, shift, dropout, seed)
    launch_stages(group_norm_backward_kernel, plan, x, last, arguments, *norm)
    if chunk_sums is not None:
        torch.sum(chunk_sums[0], 1, out=sums[2])
    return dx, dskip, sums
