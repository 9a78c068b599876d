"""What the forward and the backward kernel of group norm share, for Triton.

A program has one image n, a slab of channels that are whole groups, and the pixels from
chunk * program_id(1). STAGE says what it does: 0, all: sums over every pixel, then a second read
(from the L2 cache) that applies them; 1: the sums of its chunk, written to partials; 2: all chunks'
partials combined, and applied to its chunk. A tensor that is not there is None.

Arithmetic and statistics are float32. An image lies at tensor + n step, in it channel c of pixel hw
at c + hw pitch (LAST: channels_last) or at c pitch + hw. Offsets within an image are int32, those
of images int64.
"""

import triton
import triton.language as tl


@triton.jit
def place(C, WIDTH: tl.constexpr, SLAB: tl.constexpr):
    """n, the channels [SLAB] of the program, and which of the lanes are channels: WIDTH are whole
    groups, the rest fills a power of 2."""
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
def affine(
    weight, bias, scale, scale_step, scale_pitch, shift, shift_step, shift_pitch, n, c, real
):
    """a and e [SLAB] of y = a xh + e: w (1 + s) and b (1 + s) + t."""
    a, e = row(weight, 0, 0, 1, c, real), row(bias, 0, 0, 1, c, real)
    if scale is not None:
        factor = 1.0 + row(scale, n, scale_step, scale_pitch, c, real)
        a, e = a * factor, e * factor + row(shift, n, shift_step, shift_pitch, c, real)
    return a, e


@triton.jit
def interleaved(w0, w1, w2, w3, limit):
    """[..., 2, 2]: w0, w1, w2, w3 in this order, 1 where at least limit."""
    even = tl.join((w0 >= limit).to(tl.int8), (w2 >= limit).to(tl.int8))
    odd = tl.join((w1 >= limit).to(tl.int8), (w3 >= limit).to(tl.int8))
    return tl.join(even, odd)


@triton.jit
def kept(seed, n, c, C, start, THRESHOLD: tl.constexpr, ROWS: tl.constexpr, SLAB: tl.constexpr):
    """kernels.reference.keep of the rows from start, a multiple of 8: [ROWS, SLAB]. The halves of a
    counter's four words are eight rows."""
    eight = start // 8 + tl.arange(0, ROWS // 8)
    counter = eight[:, None] * C + c[None, :]
    zero = counter * 0
    w0, w1, w2, w3 = tl.philox(tl.load(seed), counter, zero + n.to(tl.int32), zero, zero, 10)
    limit = tl.full([1, 1], THRESHOLD, tl.uint32)
    low = interleaved(w0 & 0xFFFF, w1 & 0xFFFF, w2 & 0xFFFF, w3 & 0xFFFF, limit)
    high = interleaved(w0 >> 16, w1 >> 16, w2 >> 16, w3 >> 16, limit)
    return tl.join(low, high).permute(0, 2, 3, 4, 1).reshape(ROWS, SLAB) != 0
