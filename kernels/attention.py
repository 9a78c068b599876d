"""Attention on a packed projection: kernels.reference.attention with its gradient, in Triton.

Dao 2023, "FlashAttention-2", algorithms 1 and 2, the second as two kernels, so that every gradient
has one writer: no atomics, the same bits each time. The scores [T, T] are never in memory: forward
reads qkv and writes the output and lse; backward reads both and writes the packed gradient.

A program has one head of one image. Its tokens are rows [tokens, WIDTH], read in place from the
packed qkv and padded with zeros: HEAD channels up to the power of two WIDTH, and T tokens up to
whole tiles. Exponentials are to the base 2, which is what the GPU computes: scores are in units of
log2, and so is lse, the log2 of a row's sum of exponentials.
"""

from __future__ import annotations

from operator import index
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import configs, reference
from kernels.launch import INTERPRETED, Launch, next_power_of_2
from kernels.operators import OPS, define, differentiable

HEADS = range(16, 257)  # channels of a head that the kernels hold
MOST_PROGRAMS = 65535  # of a CUDA grid, along its second and third axis
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOG2E = tl.constexpr(1.4426950408889634)
UPCAST = tl.constexpr(INTERPRETED)  # the interpreter multiplies the bits of bf16


@triton.jit
def _rows(at, row, stride, T, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    channel = tl.arange(0, WIDTH)[None, :]
    return tl.load(
        at + row[:, None] * stride + channel, mask=(row[:, None] < T) & (channel < HEAD), other=0.0
    )


@triton.jit
def _store_rows(at, row, stride, T, values, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    channel = tl.arange(0, WIDTH)[None, :]
    mask = (row[:, None] < T) & (channel < HEAD)
    tl.store(at + row[:, None] * stride + channel, values.to(at.dtype.element_ty), mask=mask)


@triton.jit
def _dot(a, b):
    """a b, summed in fp32, on tensor cores if a and b have 16 bits."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def attention_forward_kernel(
    qkv,
    out,
    lse,
    qkv_image,
    qkv_token,
    T,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    SCALE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    TAIL: tl.constexpr,
):
    """out = softmax(q k^T SCALE) v and lse, for QUERIES queries, with a running maximum over tiles
    of KEYS keys. TAIL: the last tile of keys is not whole. Its first key always is one, so no
    maximum is that of nothing. Grid: (tiles of queries, heads, images)."""
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
        s = _dot(q, tl.trans(k))
        if TAIL:
            s = tl.where(key[None, :] < T, s, float("-inf"))
        before, largest = largest, tl.maximum(largest, tl.max(s, 1) * (SCALE * LOG2E))
        p = tl.exp2(s * (SCALE * LOG2E) - largest[:, None])
        shrink = tl.exp2(before - largest)
        total = total * shrink + tl.sum(p, 1)
        mean = mean * shrink[:, None] + _dot(p.to(v.dtype), v)

    _store_rows(out + image * T * C + head * HEAD, query, C, T, mean / total[:, None], HEAD, WIDTH)
    tl.store(lse + (image * heads + head) * T + query, largest + tl.log2(total), mask=query < T)


@triton.jit
def attention_backward_q_kernel(
    qkv,
    out,
    dout,
    lse,
    delta,
    dqkv,
    qkv_image,
    qkv_token,
    dout_image,
    dout_token,
    T,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    SCALE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    TAIL: tl.constexpr,
):
    """dq and delta = rowsum(dout out), which the other kernel reads, for QUERIES queries. Grid:
    (tiles of queries, heads, images)."""
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
        s = _dot(q, tl.trans(k))
        if TAIL:  # or p could be inf where k is 0, and their product no number
            s = tl.where(key[None, :] < T, s, float("-inf"))
        p = tl.exp2(s * (SCALE * LOG2E) - logsum[:, None])
        ds = p * (_dot(do, tl.trans(v)) - do_o[:, None])
        dq += _dot(ds.to(k.dtype), k)
    _store_rows(dqkv + image * T * 3 * C + head * HEAD, query, 3 * C, T, dq * SCALE, HEAD, WIDTH)


@triton.jit
def attention_backward_kv_kernel(
    qkv,
    dout,
    lse,
    delta,
    dqkv,
    qkv_image,
    qkv_token,
    dout_image,
    dout_token,
    T,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    SCALE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    TAIL: tl.constexpr,
):
    """dk and dv, for KEYS keys. Scores are transposed, [KEYS, QUERIES]. A query past T has q = dout
    = delta = 0 and adds nothing. Grid: (tiles of keys, heads, images)."""
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
        s = _dot(k, tl.trans(q))
        if TAIL:
            s = tl.where(key[:, None] < T, s, float("-inf"))
        p = tl.exp2(s * (SCALE * LOG2E) - logsum[None, :])
        dv += _dot(p.to(do.dtype), do)
        ds = p * (_dot(v, tl.trans(do)) - do_o[None, :])
        dk += _dot(ds.to(q.dtype), q)
    dk_at = dqkv + image * T * 3 * C + C + head * HEAD
    _store_rows(dk_at, key, 3 * C, T, dk * SCALE, HEAD, WIDTH)
    _store_rows(dk_at + C, key, 3 * C, T, dv, HEAD, WIDTH)


def supports(qkv: Tensor, heads: int) -> bool:
    """Whether the kernels run on qkv: its type, the width of a head, and strides that they can
    read."""
    B, T, width = qkv.shape
    head, rest = divmod(width, 3 * heads)
    return (
        qkv.dtype in DTYPES
        and head in HEADS
        and rest == 0
        and 0 < B <= MOST_PROGRAMS
        and T > 0
        and heads <= MOST_PROGRAMS
        and _readable(qkv)
    )


def _readable(x: Tensor) -> bool:
    """Whether the channels of [B, T, C] are neighbours, and offsets within an image have 32
    bits."""
    return x.stride(2) == 1 and x.shape[1] * max(x.stride(1), x.shape[2]) < 2**31


def faster(qkv: Tensor, heads: int) -> bool:
    """Whether a measurement at the nearest shape found the forward kernel faster than torch's
    attention ("faster" in its config)."""
    _, T, width = qkv.shape  # index: a compiled graph with this answer is for this T
    return _faster(width // (3 * heads), index(T), qkv.element_size())


@torch.compiler.assume_constant_result
def _faster(d: int, T: int, itemsize: int) -> bool:
    return bool(_config("attention_forward", d, T, itemsize).get("faster"))


def _config(name: str, d: int, T: int, itemsize: int) -> dict[str, int]:
    return configs.pick(name, head=next_power_of_2(d), tokens=T, itemsize=itemsize)


def _start(kernel: Any, qkv: Tensor, heads: int, **arguments: Any) -> None:
    B, T, width = qkv.shape
    d = width // (3 * heads)
    tile = _config(kernel.__name__.removesuffix("_kernel"), d, T, qkv.element_size())
    queries, keys = tile["queries"], tile["keys"]
    rows = keys if kernel is attention_backward_kv_kernel else queries
    constants = {
        "HEAD": d,
        "WIDTH": next_power_of_2(d),
        "SCALE": d**-0.5,
        "QUERIES": queries,
        "KEYS": keys,
        "TAIL": T % keys != 0,
    }
    options = {key: tile[key] for key in ("num_warps", "num_stages")}
    arguments |= _strides("qkv", qkv) | {"T": T}
    Launch(kernel, (-(-T // rows), heads, B), arguments, constants, options).start()


def _strides(name: str, x: Tensor) -> dict[str, Any]:
    return {name: x, f"{name}_image": x.stride(0), f"{name}_token": x.stride(1)}


def _forward(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    out, lse = _forward_outputs(qkv, heads)
    _start(attention_forward_kernel, qkv, heads, out=out, lse=lse)
    return out, lse


def _forward_outputs(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    B, T, width = qkv.shape
    lse = qkv.new_empty(B, heads, T, dtype=torch.float32)
    return qkv.new_empty(B, T, width // 3), lse


def attention_backward(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor) -> Tensor:
    if not _readable(dout):  # a gradient that was expanded
        dout = dout.contiguous()
    delta, dqkv = torch.empty_like(lse), qkv.new_empty(qkv.shape)
    given = {**_strides("dout", dout), "lse": lse, "delta": delta, "dqkv": dqkv}
    heads = lse.shape[1]
    _start(attention_backward_q_kernel, qkv, heads, out=out, **given)
    _start(attention_backward_kv_kernel, qkv, heads, **given)
    return dqkv


def _save(ctx: Any, inputs: dict[str, Any], outputs: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs["qkv"], *outputs)


def _gradient(ctx: Any, needed: set[str], dout: Tensor | None) -> dict[str, Tensor | None]:
    if dout is None:
        return {}
    return {"qkv": OPS.attention_backward.default(dout, *ctx.saved_tensors)}


define(attention_backward, lambda qkv, **_: qkv.new_empty(qkv.shape))
_attention = differentiable(reference.attention, _forward, _forward_outputs, _save, _gradient)


def attention(qkv: Tensor, heads: int) -> Tensor:
    """kernels.reference.attention, in autocast's type where autocast is on, as torch's. Only what
    supports() takes."""
    if torch.is_autocast_enabled(qkv.device.type):
        qkv = qkv.to(torch.get_autocast_dtype(qkv.device.type))
    return _attention(qkv, heads)
