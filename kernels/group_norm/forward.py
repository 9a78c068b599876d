"""Group norm + activation, forward: the Triton kernel and its launch."""

from functools import reduce
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
    write,
    write_chunk,
    zeros,
)


@triton.jit
def gathered(h, residual, skip, H_C, total, added, p, hw, inside):
    """x' [ROWS, SLAB]: h (+ residual) + added left of channel H_C, skip right of it; rounded as
    total will hold it."""
    left = inside if skip is None else inside & (p.c < H_C)[None, :]
    x = read(at(h, p.n, p.c, hw), left)
    if residual is not None:
        x += read(at(residual, p.n, p.c, hw), left)
    x += added[None, :]
    if skip is not None:
        x += read(at(skip, p.n, p.c - H_C, hw), inside & (p.c >= H_C)[None, :])
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
def measured(h, residual, skip, H_C, total, added, p, T):
    """Mean and squared deviation [SLAB] of the program's pixels: Welford's update, each lane for
    itself."""
    means, m2s = zeros(T), zeros(T)
    for start in range(p.first, p.last, T.ROWS):
        hw, inside = pixels(p, start, T)
        x = gathered(h, residual, skip, H_C, total, added, p, hw, inside)
        delta = tl.where(inside, x - means, 0.0)
        means += delta * (1.0 / ((start - p.first) // T.ROWS + 1))
        m2s += delta * (x - means)
    count = (p.last - p.first - tl.arange(0, T.ROWS) + T.ROWS - 1) // T.ROWS
    return over_lanes(means, m2s, count.to(tl.float32), p.last - p.first)


@triton.jit
def combined(partials, p, N, HW, chunk, T):
    """Mean and squared deviation [SLAB] of all pixels from those of the chunks: lanes take chunks
    in turn (Chan et al. 1983, eq. 2.1)."""
    mean, m2 = zeros(T), zeros(T)
    seen = tl.zeros([T.ROWS], tl.float32)
    for start in range(0, tl.num_programs(1), T.ROWS):
        k, of_chunk, m2_of_chunk = read_chunks(partials, p, N, start, T)
        size = tl.maximum(tl.minimum(HW - k * chunk, chunk), 0).to(tl.float32)
        delta = of_chunk - mean
        m2 += m2_of_chunk
        share = size / tl.maximum(seen + size, 1.0)
        mean += delta * share[:, None]
        m2 += delta * delta * (seen * share)[:, None]
        seen += size
    return over_lanes(mean, m2, seen, HW)


@triton.jit
def normed(near, low, m2, moments, member, N, HW, eps, p, T):
    """Mean, in two floats, and reciprocal standard deviation of each channel's group [SLAB], which
    are written to moments [3, N, groups of all channels]."""
    group_mean = per_group(member, near) / T.GROUP
    mu = per_channel(member, group_mean)
    away = near - mu + low
    group_low = per_group(member, away) / T.GROUP
    mu_low = per_channel(member, group_low)
    away -= mu_low
    group_m2 = per_group(member, m2 + HW * away * away)
    group_rstd = tl.rsqrt(group_m2 / (HW * T.GROUP) + eps)

    groups, lane = p.C // T.GROUP, tl.arange(0, T.GROUPS)
    g = tl.program_id(0) % tl.cdiv(p.C, T.WIDTH) * (T.WIDTH // T.GROUP) + lane
    saved = (g < groups) & (lane < T.WIDTH // T.GROUP) & (tl.program_id(1) == 0)
    tl.store(moments + p.n * groups + g, group_mean, mask=saved)
    tl.store(moments + (N + p.n) * groups + g, group_low, mask=saved)
    tl.store(moments + (2 * N + p.n) * groups + g, group_rstd, mask=saved)
    return mu, mu_low, group_rstd


@triton.jit
def group_norm_forward_kernel(
    h,
    residual,
    skip,
    norm,
    dropout,
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
    SILU: tl.constexpr,
    T,
):
    p = place(C, HW, chunk, T)
    added = added_row(norm, p, p.real & (p.c < H_C), T)
    if STAGE == 2:
        near, low, m2 = combined(partials, p, N, HW, chunk, T)
    else:  # the second read of stage 0 gathers again
        near, low, m2 = measured(h, residual, skip, H_C, total, added, p, T)

    if STAGE == 1:
        write_chunk(partials, p, N, near + low, m2)
    else:
        member = membership(p.real, T)
        mu, mu_low, group_rstd = normed(near, low, m2, moments, member, N, HW, eps, p, T)
        a, e = affine(norm, p)
        a *= per_channel(member, group_rstd)
        for start in range(p.first, p.last, T.ROWS):
            hw, inside = pixels(p, start, T)
            x = gathered(h, residual, skip, H_C, total, added, p, hw, inside)
            u = (x - mu[None, :] - mu_low[None, :]) * a[None, :] + e[None, :]
            if SILU:
                u *= tl.sigmoid(u)
            out = packed(p, p.c, C, hw, HW, T)
            write(y + out, dropped(u, dropout, p, start, T), inside)
            if total is not None:
                write(total + out, x, inside)


def forward_outputs(
    x: Tensor, groups: int, residual: Tensor | None = None, skip: Tensor | None = None, **_: Any
) -> tuple[Tensor, ...]:
    """(total, y, moments), or (y, moments) where nothing is joined to x. moments [3, N, groups]:
    means, what float32 cannot hold of them, and reciprocal standard deviations."""
    joined = [image.dtype for image in (residual, skip) if image is not None]
    dtype = reduce(torch.promote_types, joined, x.dtype)
    channels = x.shape[1] if skip is None else x.shape[1] + skip.shape[1]
    images = [empty(x, channels, dtype) for _ in range(2 if joined else 1)]
    moments = x.new_empty((3, x.shape[0], groups), dtype=torch.float32)
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
        "h": strided(x, last),
        "residual": strided(residual, last),
        "skip": strided(skip, last),
        "H_C": x.shape[1],
        "total": total[0] if total else None,
        "y": y,
        "moments": moments,
        "eps": eps,
    }
    plan = schedule("group_norm_forward", y, groups, last)
    launch_stages(group_norm_forward_kernel, plan, y, arguments, **norm)
    return outputs
