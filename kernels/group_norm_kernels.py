"""The Triton kernels of kernels/group_norm_act.py: one forward, one backward, each in three stages.

A program has one image n, a slab of channels that are whole groups, and the pixels from chunk * program_id(1). STAGE says what it does:
0, all: statistics of every pixel, then a second read (from the L2 cache) that applies them; 1: the statistics of its chunk, written to
partials; 2: all chunks' partials combined, and applied to its chunk. A tensor that is not there is None.

Arithmetic and statistics are float32. An image lies at tensor + n step, in it channel c of pixel hw at c + hw pitch (LAST: channels_last)
or at c pitch + hw. Offsets within an image are int32, those of images int64.
"""

import triton
import triton.language as tl


@triton.jit
def place(C, WIDTH: tl.constexpr, SLAB: tl.constexpr):
    """n, the channels [SLAB] of the program, and which of the lanes are channels: WIDTH are whole groups, the rest fills a power of 2."""
    slabs = tl.cdiv(C, WIDTH)
    lane = tl.arange(0, SLAB)
    c = tl.program_id(0) % slabs * WIDTH + lane
    return (tl.program_id(0) // slabs).to(tl.int64), c, (lane < WIDTH) & (c < C)


@triton.jit
def row(values, n, step, pitch, c, real):
    """[SLAB] of an adaptive term [N, C]."""
    return tl.load(values + n * step + c * pitch, mask=real, other=0.0).to(tl.float32)


@triton.jit
def at(c, hw, pitch, LAST: tl.constexpr):
    if LAST:
        return hw[:, None] * pitch + c[None, :]
    else:
        return c[None, :] * pitch + hw[:, None]


@triton.jit
def tile(image, c, hw, pitch, mask, LAST: tl.constexpr):
    return tl.load(image + at(c, hw, pitch, LAST), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def gathered(h, residual, skip, added, h_pitch, residual_pitch, skip_pitch, total, c, hw, inside, H_C, LAST: tl.constexpr):
    """x' [ROWS, SLAB]: h (+ residual) + added left of channel H_C, skip right of it; rounded as total will hold it."""
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
    """Means and squared deviations [ROWS, SLAB] of count [ROWS] pixels each -> [SLAB] of all (Chan et al. 1983, for many sets at once).
    The mean is near + low: where it is far from 0, the rounding of one float32 would be most of the error of the norm."""
    near = tl.sum(mean * count[:, None], 0) / size
    low = tl.sum((mean - near[None, :]) * count[:, None], 0) / size
    away = mean - near[None, :] - low[None, :]
    return near, low, tl.sum(m2 + count[:, None] * away * away, 0)


@triton.jit
def combined(partials, plane, n, c, real, HW, chunk, C, ROWS: tl.constexpr, SLAB: tl.constexpr):
    """Mean and squared deviation [SLAB] of all pixels from those of the chunks: lanes take chunks in turn (Chan et al. 1983, eq. 2.1)."""
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
def per_group(member, values):
    """[SLAB] -> [GROUPS]: sums."""
    return tl.sum(tl.where(member, values[:, None], 0.0), 0)


@triton.jit
def per_channel(member, values):
    """[GROUPS] -> [SLAB]: each channel gets its group's."""
    return tl.sum(tl.where(member, values[None, :], 0.0), 1)


@triton.jit
def membership(real, GROUP: tl.constexpr, GROUPS: tl.constexpr, SLAB: tl.constexpr):
    """[SLAB, GROUPS]: whether a channel is in a group of the slab."""
    return ((tl.arange(0, SLAB) // GROUP)[:, None] == tl.arange(0, GROUPS)[None, :]) & real[:, None]


@triton.jit
def affine(weight, bias, scale, scale_step, scale_pitch, shift, shift_step, shift_pitch, n, c, real):
    """a and e [SLAB] of y = a xh + e: w (1 + s) and b (1 + s) + t."""
    a, e = row(weight, 0, 0, 1, c, real), row(bias, 0, 0, 1, c, real)
    if scale is not None:
        factor = 1.0 + row(scale, n, scale_step, scale_pitch, c, real)
        a, e = a * factor, e * factor + row(shift, n, shift_step, shift_pitch, c, real)
    return a, e


@triton.jit
def kept(seed, n, c, C, start, THRESHOLD: tl.constexpr, ROWS: tl.constexpr, SLAB: tl.constexpr):
    """kernels.reference.keep of the rows from start, a multiple of 4: [ROWS, SLAB]. The four words of a counter are four rows."""
    quad = start // 4 + tl.arange(0, ROWS // 4)
    counter = quad[:, None] * C + c[None, :]
    zero = counter * 0
    w0, w1, w2, w3 = tl.philox(tl.load(seed), counter, zero + n.to(tl.int32), zero, zero, 10)
    limit = tl.full([1, 1], THRESHOLD, tl.uint32)
    even = tl.join((w0 >= limit).to(tl.int8), (w2 >= limit).to(tl.int8))
    odd = tl.join((w1 >= limit).to(tl.int8), (w3 >= limit).to(tl.int8))
    return tl.join(even, odd).permute(0, 2, 3, 1).reshape(ROWS, SLAB) != 0


@triton.jit
def forward(h, h_step, h_pitch, residual, residual_step, residual_pitch, skip, skip_step, skip_pitch, row_bias, row_step, row_pitch,
            weight, bias, scale, scale_step, scale_pitch, shift, shift_step, shift_pitch, seed, keep_scale, partials, total, y, moments,
            N, C, H_C, HW, chunk, eps, STAGE: tl.constexpr, LAST: tl.constexpr, SILU: tl.constexpr, THRESHOLD: tl.constexpr,
            GROUP: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, SLAB: tl.constexpr, ROWS: tl.constexpr):
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
        near, low, m2 = combined(partials, N * tl.num_programs(1).to(tl.int64) * C, n, c, real, HW, chunk, C, ROWS, SLAB)
    else:  # Welford's update, each lane for itself; the second read of stage 0 gathers again
        means, m2s = tl.zeros([ROWS, SLAB], tl.float32), tl.zeros([ROWS, SLAB], tl.float32)
        for start in range(first, last, ROWS):
            hw = start + tl.arange(0, ROWS)
            inside = (hw < last)[:, None] & real[None, :]
            x = gathered(h, residual, skip, added, h_pitch, residual_pitch, skip_pitch, total, c, hw, inside, H_C, LAST)
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

        a, e = affine(weight, bias, scale, scale_step, scale_pitch, shift, shift_step, shift_pitch, n, c, real)
        a *= per_channel(member, group_rstd)
        for start in range(first, last, ROWS):
            hw = start + tl.arange(0, ROWS)
            inside = (hw < last)[:, None] & real[None, :]
            x = gathered(h, residual, skip, added, h_pitch, residual_pitch, skip_pitch, total, c, hw, inside, H_C, LAST)
            u = (x - mu[None, :] - mu_low[None, :]) * a[None, :] + e[None, :]
            if SILU:
                u *= tl.sigmoid(u)
            if seed is not None:
                u = tl.where(kept(seed, n, c, C, start, THRESHOLD, ROWS, SLAB), u * keep_scale, 0.0)
            out = n * C * HW + at(c, hw, C if LAST else HW, LAST)
            tl.store(y + out, u.to(y.dtype.element_ty), mask=inside)
            if total is not None:
                tl.store(total + out, x.to(total.dtype.element_ty), mask=inside)


@triton.jit
def upstream(x, x_pitch, dy, dy_pitch, seed, keep_scale, added, mu, mu_low, r, a, e, n, c, C, start, hw, inside, SILU: tl.constexpr,
             LAST: tl.constexpr, THRESHOLD: tl.constexpr, ROWS: tl.constexpr, SLAB: tl.constexpr):
    """xh and du [ROWS, SLAB], du = 0 outside. u = a xh + e."""
    xh = (tile(x, c, hw, x_pitch, inside, LAST) + added[None, :] - mu[None, :] - mu_low[None, :]) * r[None, :]
    du = tile(dy, c, hw, dy_pitch, inside, LAST)
    if seed is not None:
        du = tl.where(kept(seed, n, c, C, start, THRESHOLD, ROWS, SLAB), du * keep_scale, 0.0)
    if SILU:
        u = xh * a[None, :] + e[None, :]
        sg = tl.sigmoid(u)
        du *= sg * (1.0 + u * (1.0 - sg))
    return xh, du


@triton.jit
def backward(x, x_step, x_pitch, dy, dy_step, dy_pitch, dtotal, dtotal_step, dtotal_pitch, row_bias, row_step, row_pitch,
             weight, bias, scale, scale_step, scale_pitch, shift, shift_step, shift_pitch, seed, keep_scale, moments, partials,
             dx, dskip, sums, row_sums, N, C, H_C, HW, chunk, STAGE: tl.constexpr, LAST: tl.constexpr, SILU: tl.constexpr,
             THRESHOLD: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, SLAB: tl.constexpr,
             ROWS: tl.constexpr):
    """A = sum_hw du xh, B = sum_hw du; then dx = r (a du - c2 - xh c1) + dtotal, with c1, c2 the means of a A, a B over a group."""
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
    a, e = affine(weight, bias, scale, scale_step, scale_pitch, shift, shift_step, shift_pitch, n, c, real)

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
            xh, du = upstream(x, x_pitch, dy, dy_pitch, seed, keep_scale, added, mu, mu_low, r, a, e, n, c, C, start, hw, inside, SILU,
                              LAST, THRESHOLD, ROWS, SLAB)
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
            xh, du = upstream(x, x_pitch, dy, dy_pitch, seed, keep_scale, added, mu, mu_low, r, a, e, n, c, C, start, hw, inside, SILU,
                              LAST, THRESHOLD, ROWS, SLAB)
            d = r[None, :] * (a[None, :] * du - c2[None, :] - xh * c1[None, :])
            if dtotal is not None:
                d += tile(dtotal, c, hw, dtotal_pitch, inside, LAST)
            if row_sums is not None:
                into_row += tl.where(inside, d, 0.0)
            left = inside & (c < H_C)[None, :]
            tl.store(dx + n * H_C * HW + at(c, hw, H_C if LAST else HW, LAST), d.to(dx.dtype.element_ty), mask=left)
            if dskip is not None:
                S_C = C - H_C
                out = dskip + n * S_C * HW + at(c - H_C, hw, S_C if LAST else HW, LAST)
                tl.store(out, d.to(dskip.dtype.element_ty), mask=inside & (c >= H_C)[None, :])
        if row_sums is not None:
            tl.store(row_sums + (n * chunks + tl.program_id(1)) * C + c, tl.sum(into_row, 0), mask=real)
