"""Group norm + activation, forward: the Triton kernel and its launch."""

from __future__ import annotations

from functools import reduce
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
def gathered(
    h,
    residual,
    skip,
    added,
    h_pitch,
    residual_pitch,
    skip_pitch,
    total,
    c,
    hw,
    inside,
    H_C,
    LAST: tl.constexpr,
):
    """x' [ROWS, SLAB]: h (+ residual) + added left of channel H_C, skip right of it; rounded as
    total will hold it."""
    left = inside if skip is None else inside & (c < H_C)[None, :]
    x = tile(h, c, hw, h_pitch, left, LAST)
    if residual is not None:
        x += tile(residual, c, hw, residual_pitch, left, LAST)
    x += added[None, :]
    if skip is not None:
        x += tile(skip, c - H_C, hw, skip_pitch, inside & (c >= H_C)[None, :], LAST)
    if total is not None:
        x = x.to(total.dtype.element_ty).to(tl.float32)
    return x


@triton.jit
def over_lanes(mean, m2, count, size):
    """Means and squared deviations [ROWS, SLAB] of count [ROWS] pixels each -> [SLAB] of all (Chan
    et al. 1983, for many sets at once). The mean is near + low: where it is far from 0, the
    rounding of one float32 would be most of the error of the norm."""
    near = tl.sum(mean * count[:, None], 0) / size
    low = tl.sum((mean - near[None, :]) * count[:, None], 0) / size
    away = mean - near[None, :] - low[None, :]
    return near, low, tl.sum(m2 + count[:, None] * away * away, 0)


@triton.jit
def combined(partials, plane, n, c, real, HW, chunk, C, ROWS: tl.constexpr, SLAB: tl.constexpr):
    """Mean and squared deviation [SLAB] of all pixels from those of the chunks: lanes take chunks
    in turn (Chan et al. 1983, eq. 2.1)."""
    chunks = tl.num_programs(1)
    mean, m2 = tl.zeros([ROWS, SLAB], tl.float32), tl.zeros([ROWS, SLAB], tl.float32)
    seen = tl.zeros([ROWS], tl.float32)
    for start in range(0, chunks, ROWS):
        k = start + tl.arange(0, ROWS)
        size = tl.maximum(tl.minimum(HW - k * chunk, chunk), 0).to(tl.float32)
        slots = partials + (n * chunks + k)[:, None] * C + c[None, :]
        mask = (k < chunks)[:, None] & real[None, :]
        delta = tl.load(slots, mask=mask, other=0.0) - mean
        m2 += tl.load(slots + plane, mask=mask, other=0.0)
        share = size / tl.maximum(seen + size, 1.0)
        mean += delta * share[:, None]
        m2 += delta * delta * (seen * share)[:, None]
        seen += size
    return over_lanes(mean, m2, seen, HW)


@triton.jit
def group_norm_forward_kernel(
    h,
    h_step,
    h_pitch,
    residual,
    residual_step,
    residual_pitch,
    skip,
    skip_step,
    skip_pitch,
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
    partials,
    total,
    y,
    moments,
    N,
    C,
    H_C,
    HW,
    chunk,
    eps,
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
    n, c, real = place(C, WIDTH, SLAB)
    first = tl.program_id(1) * chunk
    last = tl.minimum(first + chunk, HW)
    h += n * h_step
    if residual is not None:
        residual += n * residual_step
    if skip is not None:
        skip += n * skip_step
    added = tl.zeros([SLAB], tl.float32)
    if row_bias is not None:
        added = row(row_bias, n, row_step, row_pitch, c, real & (c < H_C))

    if STAGE == 2:
        near, low, m2 = combined(
            partials, N * tl.num_programs(1).to(tl.int64) * C, n, c, real, HW, chunk, C, ROWS, SLAB
        )
    else:  # Welford's update, each lane for itself; the second read of stage 0 gathers again
        means, m2s = tl.zeros([ROWS, SLAB], tl.float32), tl.zeros([ROWS, SLAB], tl.float32)
        for start in range(first, last, ROWS):
            hw = start + tl.arange(0, ROWS)
            inside = (hw < last)[:, None] & real[None, :]
            x = gathered(
                h,
                residual,
                skip,
                added,
                h_pitch,
                residual_pitch,
                skip_pitch,
                total,
                c,
                hw,
                inside,
                H_C,
                LAST,
            )
            delta = tl.where(inside, x - means, 0.0)
            means += delta * (1.0 / ((start - first) // ROWS + 1))
            m2s += delta * (x - means)
        count = (last - first - tl.arange(0, ROWS) + ROWS - 1) // ROWS
        near, low, m2 = over_lanes(means, m2s, count.to(tl.float32), last - first)

    if STAGE == 1:
        slot = partials + (n * tl.num_programs(1) + tl.program_id(1)) * C + c
        tl.store(slot, near + low, mask=real)
        tl.store(slot + N * tl.num_programs(1).to(tl.int64) * C, m2, mask=real)
    else:
        member = membership(real, GROUP, GROUPS, SLAB)
        group_mean = per_group(member, near) / GROUP
        mu = per_channel(member, group_mean)
        away = near - mu + low
        group_low = per_group(member, away) / GROUP
        mu_low = per_channel(member, group_low)
        away -= mu_low
        group_m2 = per_group(member, m2 + HW * away * away)
        group_rstd = tl.rsqrt(group_m2 / (HW * GROUP) + eps)
        g = tl.program_id(0) % tl.cdiv(C, WIDTH) * (WIDTH // GROUP) + tl.arange(0, GROUPS)
        saved = (g < C // GROUP) & (tl.arange(0, GROUPS) < WIDTH // GROUP) & (tl.program_id(1) == 0)
        tl.store(moments + n * (C // GROUP) + g, group_mean, mask=saved)
        tl.store(moments + (N + n) * (C // GROUP) + g, group_low, mask=saved)
        tl.store(moments + (2 * N + n) * (C // GROUP) + g, group_rstd, mask=saved)

        a, e = affine(
            weight, bias, scale, scale_step, scale_pitch, shift, shift_step, shift_pitch, n, c, real
        )
        a *= per_channel(member, group_rstd)
        for start in range(first, last, ROWS):
            hw = start + tl.arange(0, ROWS)
            inside = (hw < last)[:, None] & real[None, :]
            x = gathered(
                h,
                residual,
                skip,
                added,
                h_pitch,
                residual_pitch,
                skip_pitch,
                total,
                c,
                hw,
                inside,
                H_C,
                LAST,
            )
            u = (x - mu[None, :] - mu_low[None, :]) * a[None, :] + e[None, :]
            if SILU:
                u *= tl.sigmoid(u)
            if seed is not None:
                u = tl.where(kept(seed, n, c, C, start, THRESHOLD, ROWS, SLAB), u * keep_scale, 0.0)
            out = n * C * HW + at(c, hw, C if LAST else HW, LAST)
            tl.store(y + out, u.to(y.dtype.element_ty), mask=inside)
            if total is not None:
                tl.store(total + out, x.to(total.dtype.element_ty), mask=inside)


def forward_outputs(
    x: Tensor, groups: int, residual: Tensor | None = None, skip: Tensor | None = None, **_: Any
) -> tuple[Tensor, ...]:
    """(total, y, moments), or (y, moments) where nothing is joined to x. moments [3, N, groups]:
    means, what float32 cannot hold of them, and reciprocal standard deviations."""
    joined = [image for image in (residual, skip) if image is not None]
    dtype = reduce(torch.promote_types, [image.dtype for image in joined], x.dtype)
    channels = x.shape[1] if skip is None else x.shape[1] + skip.shape[1]
    images = [empty(x, channels, dtype) for _ in range(2 if joined else 1)]
    moments = torch.empty((3, x.shape[0], groups), dtype=torch.float32, device=x.device)
    return *images, moments


def group_norm_forward(
    x: Tensor,
    groups: int,
    eps: float,
    residual: Tensor | None = None,
    skip: Tensor | None = None,
    **norm: Any,
) -> tuple[Tensor, ...]:
    """total = [x (+ residual) + row_bias, skip] where a residual or a skip is there, and its norm
    y: all three operations of kernels.reference. norm: their other arguments, by the names that
    launch_stages() has. Returns forward_outputs()."""
    outputs = forward_outputs(x, groups, residual, skip)
    *total, y, moments = outputs
    last = channels_last(x)
    arguments = {
        **image("h", x, last),
        **image("residual", residual, last),
        **image("skip", skip, last),
        "total": total[0] if total else None,
        "y": y,
        "moments": moments,
        "H_C": x.shape[1],
        "eps": eps,
    }
    plan = schedule("group_norm_forward", y, groups)
    launch_stages(group_norm_forward_kernel, plan, y, last, arguments, **norm)
    return outputs
