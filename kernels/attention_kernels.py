"""The three Triton kernels of attention: Dao 2023, "FlashAttention-2", algorithms 1 and 2, the second as two kernels, so that every
gradient has one writer: no atomics, the same bits each time.

A program has one head of one image. Its tokens are rows [tokens, WIDTH], read in place from the packed qkv and padded with zeros: HEAD
channels up to the power of two WIDTH, and T tokens up to whole tiles. Exponentials are to the base 2, which is what the GPU computes:
scores are in units of log2, and so is lse, the log2 of a row's sum of exponentials.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rows(at, row, stride, T, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    channel = tl.arange(0, WIDTH)[None, :]
    return tl.load(at + row[:, None] * stride + channel, mask=(row[:, None] < T) & (channel < HEAD), other=0.0)


@triton.jit
def _store_rows(at, row, stride, T, values, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    channel = tl.arange(0, WIDTH)[None, :]
    mask = (row[:, None] < T) & (channel < HEAD)
    tl.store(at + row[:, None] * stride + channel, values.to(at.dtype.element_ty), mask=mask)


@triton.jit
def _dot(a, b, UPCAST: tl.constexpr):
    """a b, summed in fp32, on tensor cores if a and b have 16 bits. UPCAST: for the interpreter, which multiplies the bits of bf16."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def forward(qkv, out, lse, qkv_image, qkv_token, T, HEAD: tl.constexpr, WIDTH: tl.constexpr, SCALE: tl.constexpr, QUERIES: tl.constexpr,
            KEYS: tl.constexpr, TAIL: tl.constexpr, UPCAST: tl.constexpr):
    """out = softmax(q k^T SCALE) v and lse, for QUERIES queries, with a running maximum over tiles of KEYS keys. TAIL: the last tile of
    keys is not whole. Its first key always is one, so no maximum is that of nothing. Grid: (tiles of queries, heads, images)."""
    head, heads, image = tl.program_id(1), tl.num_programs(1), tl.program_id(2).to(tl.int64)
    C = heads * HEAD
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    q_at = qkv + image * qkv_image + head * HEAD
    q = _rows(q_at, query, qkv_token, T, HEAD, WIDTH)

    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mean = tl.zeros([QUERIES, WIDTH], tl.float32)
    for start in range(0, T, KEYS):
        key = start + tl.arange(0, KEYS)
        k = _rows(q_at + C, key, qkv_token, T, HEAD, WIDTH)
        v = _rows(q_at + 2 * C, key, qkv_token, T, HEAD, WIDTH)
        s = _dot(q, tl.trans(k), UPCAST)
        if TAIL:
            s = tl.where(key[None, :] < T, s, float("-inf"))
        before, largest = largest, tl.maximum(largest, tl.max(s, 1) * (SCALE * LOG2E))
        p = tl.exp2(s * (SCALE * LOG2E) - largest[:, None])
        shrink = tl.exp2(before - largest)
        total = total * shrink + tl.sum(p, 1)
        mean = mean * shrink[:, None] + _dot(p.to(v.dtype), v, UPCAST)

    _store_rows(out + image * T * C + head * HEAD, query, C, T, mean / total[:, None], HEAD, WIDTH)
    tl.store(lse + (image * heads + head) * T + query, largest + tl.log2(total), mask=query < T)


@triton.jit
def backward_q(qkv, out, dout, lse, delta, dqkv, qkv_image, qkv_token, dout_image, dout_token, T, HEAD: tl.constexpr, WIDTH: tl.constexpr,
               SCALE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, TAIL: tl.constexpr, UPCAST: tl.constexpr):
    """dq and delta = rowsum(dout out), which backward_kv reads, for QUERIES queries. Grid: (tiles of queries, heads, images)."""
    head, heads, image = tl.program_id(1), tl.num_programs(1), tl.program_id(2).to(tl.int64)
    C = heads * HEAD
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    q_at = qkv + image * qkv_image + head * HEAD
    q = _rows(q_at, query, qkv_token, T, HEAD, WIDTH)
    do = _rows(dout + image * dout_image + head * HEAD, query, dout_token, T, HEAD, WIDTH)
    o = _rows(out + image * T * C + head * HEAD, query, C, T, HEAD, WIDTH)
    of_row = (image * heads + head) * T + query
    logsum = tl.load(lse + of_row, mask=query < T, other=0.0)
    do_o = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(delta + of_row, do_o, mask=query < T)

    dq = tl.zeros([QUERIES, WIDTH], tl.float32)
    for start in range(0, T, KEYS):
        key = start + tl.arange(0, KEYS)
        k = _rows(q_at + C, key, qkv_token, T, HEAD, WIDTH)
        v = _rows(q_at + 2 * C, key, qkv_token, T, HEAD, WIDTH)
        s = _dot(q, tl.trans(k), UPCAST)
        if TAIL:  # or p could be inf where k is 0, and their product no number
            s = tl.where(key[None, :] < T, s, float("-inf"))
        p = tl.exp2(s * (SCALE * LOG2E) - logsum[:, None])
        ds = p * (_dot(do, tl.trans(v), UPCAST) - do_o[:, None])
        dq += _dot(ds.to(k.dtype), k, UPCAST)
    _store_rows(dqkv + image * T * 3 * C + head * HEAD, query, 3 * C, T, dq * SCALE, HEAD, WIDTH)


@triton.jit
def backward_kv(qkv, dout, lse, delta, dqkv, qkv_image, qkv_token, dout_image, dout_token, T, HEAD: tl.constexpr, WIDTH: tl.constexpr,
                SCALE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, TAIL: tl.constexpr, UPCAST: tl.constexpr):
    """dk and dv, for KEYS keys. Scores are transposed, [KEYS, QUERIES]. A query past T has q = dout = delta = 0 and adds nothing.
    Grid: (tiles of keys, heads, images)."""
    head, heads, image = tl.program_id(1), tl.num_programs(1), tl.program_id(2).to(tl.int64)
    C = heads * HEAD
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    q_at = qkv + image * qkv_image + head * HEAD
    do_at = dout + image * dout_image + head * HEAD
    k = _rows(q_at + C, key, qkv_token, T, HEAD, WIDTH)
    v = _rows(q_at + 2 * C, key, qkv_token, T, HEAD, WIDTH)

    dk = tl.zeros([KEYS, WIDTH], tl.float32)
    dv = tl.zeros([KEYS, WIDTH], tl.float32)
    for start in range(0, T, QUERIES):
        query = start + tl.arange(0, QUERIES)
        q = _rows(q_at, query, qkv_token, T, HEAD, WIDTH)
        do = _rows(do_at, query, dout_token, T, HEAD, WIDTH)
        of_row = (image * heads + head) * T + query
        logsum = tl.load(lse + of_row, mask=query < T, other=0.0)
        do_o = tl.load(delta + of_row, mask=query < T, other=0.0)
        s = _dot(k, tl.trans(q), UPCAST)
        if TAIL:
            s = tl.where(key[:, None] < T, s, float("-inf"))
        p = tl.exp2(s * (SCALE * LOG2E) - logsum[None, :])
        dv += _dot(p.to(do.dtype), do, UPCAST)
        ds = p * (_dot(v, tl.trans(do), UPCAST) - do_o[None, :])
        dk += _dot(ds.to(q.dtype), q, UPCAST)
    dk_at = dqkv + image * T * 3 * C + C + head * HEAD
    _store_rows(dk_at, key, 3 * C, T, dk * SCALE, HEAD, WIDTH)
    _store_rows(dk_at + C, key, 3 * C, T, dv, HEAD, WIDTH)
