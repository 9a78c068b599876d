"""Attention on a packed projection as Triton kernels: the operator kernels.reference.attention with its gradient, for torch. The scores
[T, T] are never in memory: forward reads qkv and writes the output and lse; backward reads both and writes the packed gradient."""

from __future__ import annotations

from functools import lru_cache
from operator import index
from typing import Any

import torch
from torch import Tensor

from kernels import configs
from kernels.attention_kernels import backward_kv, backward_q, forward
from kernels.launch import INTERPRETED, launch

FORWARD, BACKWARD_KV, BACKWARD_Q = "attention_forward", "attention_backward_kv", "attention_backward_q"
HEADS = range(16, 257)  # channels of a head that the kernels hold
MOST_PROGRAMS = 65535  # of a CUDA grid, along its second and third axis
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def attention(qkv: Tensor, heads: int) -> Tensor:
    """See kernels.reference. [B, T, 3 C] -> [B, T, C], in autocast's type where autocast is on, as torch's. Only what supports() takes."""
    if torch.is_autocast_enabled(qkv.device.type):
        qkv = qkv.to(torch.get_autocast_dtype(qkv.device.type))
    return torch.ops.diffusion_transfer.attention.default(qkv, heads)[0]


def supports(qkv: Tensor, heads: int) -> bool:
    """Whether the kernels run on qkv: its type, the width of a head, and strides that they can read."""
    B, T, width = qkv.shape
    return (qkv.dtype in DTYPES and width // (3 * heads) in HEADS and width % (3 * heads) == 0 and 0 < B <= MOST_PROGRAMS and T > 0
            and heads <= MOST_PROGRAMS and readable(qkv))


def readable(x: Tensor) -> bool:
    """Whether the channels of [B, T, C] are neighbours, and offsets within an image have 32 bits."""
    return x.stride(2) == 1 and x.shape[1] * max(x.stride(1), x.shape[2]) < 2**31


def faster(qkv: Tensor, heads: int) -> bool:
    """Whether a measurement at the nearest shape found the forward kernel faster than torch's attention ("faster" in its config)."""
    _, T, width = qkv.shape
    return _faster(width // (3 * heads), index(T), qkv.element_size())  # index: a compiled graph with this answer is for this T


@torch.compiler.assume_constant_result
def _faster(d: int, T: int, itemsize: int) -> bool:
    return bool(configs.pick(FORWARD, head=padded(d), tokens=T, itemsize=itemsize).get("faster", False))


def padded(d: int) -> int:
    """The power of two from d."""
    return 1 << (d - 1).bit_length()


@lru_cache
def plan(kernel: str, B: int, T: int, heads: int, d: int, itemsize: int) -> tuple[tuple[int, int, int], dict[str, Any], dict[str, int]]:
    """(grid, constants, options) of a launch."""
    tile = configs.pick(kernel, head=padded(d), tokens=T, itemsize=itemsize)
    queries, keys = tile["queries"], tile["keys"]
    constants = {"HEAD": d, "WIDTH": padded(d), "SCALE": d**-0.5, "QUERIES": queries, "KEYS": keys, "TAIL": T % keys != 0,
                 "UPCAST": INTERPRETED}
    tiles = -(-T // (keys if kernel == BACKWARD_KV else queries))
    return (tiles, heads, B), constants, {"num_warps": tile["num_warps"], "num_stages": tile["num_stages"]}


def _forward(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    B, T, width = qkv.shape
    out, lse = _forward_outputs(qkv, heads)
    grid, constants, options = plan(FORWARD, B, T, heads, width // (3 * heads), qkv.element_size())
    arguments = {"qkv": qkv, "out": out, "lse": lse, "qkv_image": qkv.stride(0), "qkv_token": qkv.stride(1), "T": T}
    launch(forward, grid, arguments, constants, options)
    return out, lse


def _forward_outputs(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    B, T, width = qkv.shape
    return qkv.new_empty(B, T, width // 3), qkv.new_empty(B, heads, T, dtype=torch.float32)


def _backward(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor) -> Tensor:
    if not readable(dout):  # a gradient that was expanded
        dout = dout.contiguous()
    B, heads, T = lse.shape
    delta, dqkv = torch.empty_like(lse), qkv.new_empty(qkv.shape)
    shape = (B, T, heads, out.shape[2] // heads, qkv.element_size())
    arguments = {"qkv": qkv, "dout": dout, "lse": lse, "delta": delta, "dqkv": dqkv, "qkv_image": qkv.stride(0), "qkv_token": qkv.stride(1),
                 "dout_image": dout.stride(0), "dout_token": dout.stride(1), "T": T}
    grid, constants, options = plan(BACKWARD_Q, *shape)
    launch(backward_q, grid, arguments | {"out": out}, constants, options)
    grid, constants, options = plan(BACKWARD_KV, *shape)
    launch(backward_kv, grid, arguments, constants, options)
    return dqkv


def _save(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    out, lse = output
    ctx.save_for_backward(inputs[0], out, lse)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, dout: Tensor | None, _: None) -> tuple[Tensor | None, None]:
    return None if dout is None else torch.ops.diffusion_transfer.attention_backward.default(dout, *ctx.saved_tensors), None


# torch.library.define costs a call some 5 us less than custom_op
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
torch.library.define("diffusion_transfer::attention", "(Tensor qkv, int heads) -> (Tensor, Tensor)", tags=_TAGS)
torch.library.impl("diffusion_transfer::attention", ("cpu", "cuda"), _forward)
torch.library.register_fake("diffusion_transfer::attention", _forward_outputs)
torch.library.register_autograd("diffusion_transfer::attention", _gradient, setup_context=_save)

torch.library.define("diffusion_transfer::attention_backward", "(Tensor dout, Tensor qkv, Tensor out, Tensor lse) -> Tensor", tags=_TAGS)
torch.library.impl("diffusion_transfer::attention_backward", ("cpu", "cuda"), _backward)
torch.library.register_fake("diffusion_transfer::attention_backward", lambda dout, qkv, out, lse: qkv.new_empty(qkv.shape))
