"""What the forward and the backward kernel of group norm share, for Triton.

A program has one image n, a slab of channels that are whole groups, and the pixels from
chunk * program_id(1). STAGE says what it does: 0, all: sums over every pixel, then a second read
(from the L2 cache) that applies them; 1: the sums of its chunk, written to partials; 2: all chunks'
partials combined, and applied to its chunk. A tensor that is not there is None.

Arithmetic and statistics are float32. Offsets within an image are int32, those of images int64.

Arguments that belong together are records. What a loop reads is no record within a record: Triton
3.6 forgets the constants of those there.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Strided(NamedTuple):
    """A tensor [N, C, HW], or [N, C], and its strides. For a stride of 1 Triton compiles a kernel
    of its own, whose loads are as wide as neighbours allow."""

    pointer: Any
    image: int
    channel: int
    pixel: int = 0


class Norm(NamedTuple):
    """weight and bias [C]; the adaptive terms are Strided, or None."""

    weight: Any
    bias: Any
    row_bias: Strided | None
    scale: Strided | None
    shift: Strided | None


class Dropout(NamedTuple):
    """kernels.reference's threshold, a constant, and 1 / kept_share."""

    seed: Any
    threshold: int
    scale: float


class Tile(NamedTuple):
    """Constants of a kernel: channels of a group; groups of a slab, up to a power of 2; channels of
    a slab, and the same up to a power of 2; pixels of a step; whether images are channels_last."""

    GROUP: int
    GROUPS: int
    WIDTH: int
    SLAB: int
    ROWS: int
    LAST: bool


class Place(NamedTuple):
    """What a program has: image n, the channels c [SLAB] of all C, of which some are real (the
    rest fills a power of 2), and the pixels from first up to last."""

    n: Any
    c: Any
    C: Any
    real: Any
    first: Any
    last: Any


@triton.jit
def place(C, HW, chunk, T):
    slabs = tl.cdiv(C, T.WIDTH)
    lane = tl.arange(0, T.SLAB)
    c = tl.program_id(0) % slabs * T.WIDTH + lane
    n = (tl.program_id(0) // slabs).to(tl.int64)
    first = tl.program_id(1) * chunk
    return Place(n, c, C, (lane < T.WIDTH) & (c < C), first, tl.minimum(first + chunk, HW))


@triton.jit
def pixels(p, start, T):
    """hw [ROWS] from start, and which of [ROWS, SLAB] the program has."""
    hw = start + tl.arange(0, T.ROWS)
    return hw, (hw < p.last)[:, None] & p.real[None, :]


@triton.jit
def read(pointers, mask):
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def write(pointers, values, mask):
    tl.store(pointers, values.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def row(values, p, real):
    """[SLAB] of an adaptive term [N, C]."""
    return read(values.pointer + p.n * values.image + p.c * values.channel, real)


@triton.jit
def at(image, n, c, hw):
    """Pointers [ROWS, SLAB]."""
    offset = hw[:, None] * image.pixel + c[None, :] * image.channel
    return image.pointer + n * image.image + offset


@triton.jit
def packed(p, c, C, hw, HW, T):
    """Offsets [ROWS, SLAB] in images of C channels without gaps."""
    offset = hw[:, None] * C + c[None, :] if T.LAST else c[None, :] * HW + hw[:, None]
    return p.n * C * HW + offset


@triton.jit
def zeros(T):
    return tl.zeros([T.ROWS, T.SLAB], tl.float32)


@triton.jit
def added_row(norm, p, real, T):
    """[SLAB] of row_bias, 0 where there is none."""
    added = tl.zeros([T.SLAB], tl.float32)
    if norm.row_bias is not None:
        added = row(norm.row_bias, p, real)
    return added


@triton.jit
def slots(partials, p, k):
    """Where partials [2, N, chunks, C] have chunk k of the first quantity."""
    return partials + (p.n * tl.num_programs(1) + k) * p.C + p.c


@triton.jit
def plane(p, N):
    """From the first quantity of partials to the second."""
    return N * tl.num_programs(1).to(tl.int64) * p.C


@triton.jit
def write_chunk(partials, p, N, first, second):
    slot = slots(partials, p, tl.program_id(1))
    tl.store(slot, first, mask=p.real)
    tl.store(slot + plane(p, N), second, mask=p.real)


@triton.jit
def read_chunks(partials, p, N, start, T):
    """k [ROWS] from start, and both quantities [ROWS, SLAB] of these chunks."""
    k = start + tl.arange(0, T.ROWS)
    slot = slots(partials, p, k[:, None])
    mask = (k < tl.num_programs(1))[:, None] & p.real[None, :]
    return k, read(slot, mask), read(slot + plane(p, N), mask)


@triton.jit
def per_group(member, values):
    """[SLAB] -> [GROUPS]: sums."""
    return tl.sum(tl.where(member, values[:, None], 0.0), 0)


@triton.jit
def per_channel(member, values):
    """[GROUPS] -> [SLAB]: each channel gets its group's."""
    return tl.sum(tl.where(member, values[None, :], 0.0), 1)


@triton.jit
def membership(real, T):
    """[SLAB, GROUPS]: whether a channel is in a group of the slab."""
    group = (tl.arange(0, T.SLAB) // T.GROUP)[:, None]
    return (group == tl.arange(0, T.GROUPS)[None, :]) & real[:, None]


@triton.jit
def affine(norm, p):
    """a and e [SLAB] of y = a xh + e: w (1 + s) and b (1 + s) + t."""
    a, e = read(norm.weight + p.c, p.real), read(norm.bias + p.c, p.real)
    if norm.scale is not None:
        factor = 1.0 + row(norm.scale, p, p.real)
        a, e = a * factor, e * factor + row(norm.shift, p, p.real)
    return a, e


@triton.jit
def interleaved(w0, w1, w2, w3, limit):
    """[..., 2, 2]: w0, w1, w2, w3 in this order, 1 where at least limit."""
    even = tl.join((w0 >= limit).to(tl.int8), (w2 >= limit).to(tl.int8))
    odd = tl.join((w1 >= limit).to(tl.int8), (w3 >= limit).to(tl.int8))
    return tl.join(even, odd)


@triton.jit
def kept(dropout, p, start, T):
    """kernels.reference.keep of the rows from start, a multiple of 8: [ROWS, SLAB]. The halves of a
    counter's four words are eight rows."""
    eight = start // 8 + tl.arange(0, T.ROWS // 8)
    counter = eight[:, None] * p.C + p.c[None, :]
    zero = counter * 0
    image = zero + p.n.to(tl.int32)
    w0, w1, w2, w3 = tl.philox(tl.load(dropout.seed), counter, image, zero, zero, 10)
    limit = tl.full([1, 1], dropout.threshold, tl.uint32)
    low = interleaved(w0 & 0xFFFF, w1 & 0xFFFF, w2 & 0xFFFF, w3 & 0xFFFF, limit)
    high = interleaved(w0 >> 16, w1 >> 16, w2 >> 16, w3 >> 16, limit)
    return tl.join(low, high).permute(0, 2, 3, 4, 1).reshape(T.ROWS, T.SLAB) != 0


@triton.jit
def dropped(values, dropout, p, start, T):
    if dropout is not None:
        values = tl.where(kept(dropout, p, start, T), values * dropout.scale, 0.0)
    return values
