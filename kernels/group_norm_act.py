"""Group norm, its activation and what stands around them, as Triton kernels under torch.library. kernels/reference.py says what is
computed, kernels/group_norm_kernels.py how, kernels/group_norm_launch.py with which tiles.

The operators are defined by torch.library.Library and differentiated by autograd.Functions on the Autograd key. custom_op and
register_autograd come to the same with 336 in place of 88 microseconds of a CPU for forward and backward, 37 in place of 17 without a
gradient (torch 2.13, kernels that do nothing): a small batch waits for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.group_norm_launch import backward, empty, forward
from kernels.reference import Act

LIBRARY = torch.library.Library("diffusion_transfer", "FRAGMENT")
OPS = torch.ops.diffusion_transfer


def group_norm_act(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, act: Act = "silu", row_bias: Tensor | None = None,
                   scale: Tensor | None = None, shift: Tensor | None = None, dropout: float = 0.0, seed: Tensor | None = None) -> Tensor:
    """See kernels.reference."""
    return OPS.group_norm_act.default(x, weight, bias, groups, eps, act, row_bias, scale, shift, dropout, seed if dropout else None)[0]


def add_group_norm_act(h: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, act: Act = "silu",
                       row_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See kernels.reference. The statistics and y are those of the sum as it is stored."""
    total, y, _ = OPS.add_group_norm_act.default(h, residual, weight, bias, groups, eps, act, row_bias)
    return total, y


def group_norm_act_cat(h: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, act: Act = "silu",
                       residual: Tensor | None = None, row_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See kernels.reference. The statistics and y are those of cat as it is stored."""
    cat, y, _ = OPS.group_norm_act_cat.default(h, skip, weight, bias, groups, eps, act, residual, row_bias)
    return cat, y


def operator(name: str, schema: str, allocate: Callable[..., Any], fill: Callable[..., None]) -> None:
    """diffusion_transfer::NAME: allocate makes the outputs, which is all that a fake tensor needs; fill(inputs, outputs) writes them."""

    def run(*inputs: Any) -> Any:
        outputs = allocate(*inputs)
        fill(*inputs, *outputs)
        return outputs

    LIBRARY.define(f"{name}{schema}")
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"diffusion_transfer::{name}", allocate, lib=LIBRARY)


def differentiable(name: str, function: type[torch.autograd.Function]) -> None:
    """Makes the function's backward that of diffusion_transfer::NAME. Its forward calls the operator below autograd."""
    overload = getattr(OPS, name).default

    def run(*inputs: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
            return function.apply(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*inputs)

    LIBRARY.impl(name, run, "Autograd")


def below_autograd(ctx: Any, overload: Any, *inputs: Any) -> Any:
    """The operator's outputs. The last, the moments, are for its backward alone; an output that nobody uses has no gradient."""
    with torch._C._AutoDispatchBelowAutograd():
        outputs = overload(*inputs)
    ctx.mark_non_differentiable(outputs[-1])
    ctx.set_materialize_grads(False)
    return outputs


def of_weight_and_bias(sums: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None,
                       wanted: bool) -> tuple[Tensor | None, Tensor | None]:
    """dw = sum_n (1 + s) A and db = sum_n (1 + s) B, of A and B [N, C] in sums."""
    if not wanted:
        return None, None
    dw, db = (sums[:2] if scale is None else sums[:2] * (1 + scale.float())).sum(1)
    return dw.to(weight.dtype), db.to(bias.dtype)


def of_row(per_image: Tensor, values: Tensor | None) -> Tensor | None:
    """The gradient [N, C] of an adaptive term in the term's own shape and type."""
    return None if values is None else per_image.sum_to_size(values.shape).to(values.dtype)


def moments_of(x: Tensor, groups: int) -> Tensor:
    """[3, N, groups]: means, what float32 cannot hold of them, and reciprocal standard deviations."""
    return torch.empty((3, x.shape[0], groups), dtype=torch.float32, device=x.device)


def sums_of(x: Tensor, row_bias: bool) -> Tensor:
    """[2 or 3, N, C]: A, B and the row bias's gradient."""
    return torch.empty((3 if row_bias else 2, *x.shape[:2]), dtype=torch.float32, device=x.device)


# group_norm_act

operator(
    "group_norm_act", "(Tensor x, Tensor weight, Tensor bias, int groups, float eps, str act, Tensor? row_bias, Tensor? scale, "
    "Tensor? shift, float dropout, Tensor? seed) -> (Tensor y, Tensor moments)",
    lambda x, weight, bias, groups, *_: (empty(x, x.shape[1], x.dtype), moments_of(x, groups)),
    lambda x, weight, bias, groups, eps, act, row_bias, scale, shift, dropout, seed, y, moments: forward(
        x, None, None, row_bias, weight, bias, groups, eps, act, scale, shift, dropout, seed, None, y, moments))

operator(
    "group_norm_act_backward", "(Tensor dy, Tensor x, Tensor weight, Tensor bias, Tensor moments, str act, Tensor? row_bias, "
    "Tensor? scale, Tensor? shift, float dropout, Tensor? seed) -> (Tensor dx, Tensor sums)",
    lambda dy, x, weight, bias, moments, act, row_bias, *_: (empty(x, x.shape[1], x.dtype), sums_of(x, row_bias is not None)),
    lambda dy, x, weight, bias, moments, act, row_bias, scale, shift, dropout, seed, dx, sums: backward(
        dy, None, x, row_bias, weight, bias, moments, act, scale, shift, dropout, seed, dx, None, sums))


class GroupNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps, act, row_bias, scale, shift, dropout, seed):
        y, moments = below_autograd(
            ctx, OPS.group_norm_act.default, x, weight, bias, groups, eps, act, row_bias, scale, shift, dropout, seed)
        ctx.save_for_backward(x, weight, bias, moments, row_bias, scale, shift, seed)
        ctx.act, ctx.dropout = act, dropout
        return y, moments

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, _):
        if dy is None:
            return (None,) * 11
        x, weight, bias, moments, row_bias, scale, shift, seed = ctx.saved_tensors
        dx, sums = OPS.group_norm_act_backward.default(dy, x, weight, bias, moments, ctx.act, row_bias, scale, shift, ctx.dropout, seed)
        dw, db = of_weight_and_bias(sums, weight, bias, scale, any(ctx.needs_input_grad[1:3]))
        drow = None if row_bias is None else of_row(sums[2], row_bias)
        dscale = None if scale is None else of_row(weight.float() * sums[0] + bias.float() * sums[1], scale)
        return dx, dw, db, None, None, None, drow, dscale, of_row(sums[1], shift), None, None


differentiable("group_norm_act", GroupNormAct)


# add_group_norm_act

operator(
    "add_group_norm_act", "(Tensor h, Tensor residual, Tensor weight, Tensor bias, int groups, float eps, str act, Tensor? row_bias) "
    "-> (Tensor total, Tensor y, Tensor moments)",
    lambda h, residual, weight, bias, groups, *_: (
        *(empty(h, h.shape[1], torch.promote_types(h.dtype, residual.dtype)) for _ in range(2)), moments_of(h, groups)),
    lambda h, residual, weight, bias, groups, eps, act, row_bias, total, y, moments: forward(
        h, residual, None, row_bias, weight, bias, groups, eps, act, None, None, 0.0, None, total, y, moments))

operator(
    "add_group_norm_act_backward", "(Tensor dy, Tensor? dtotal, Tensor total, Tensor weight, Tensor bias, Tensor moments, str act, "
    "bool row_bias) -> (Tensor dh, Tensor sums)",
    lambda dy, dtotal, total, weight, bias, moments, act, row_bias: (empty(total, total.shape[1], total.dtype), sums_of(total, row_bias)),
    lambda dy, dtotal, total, weight, bias, moments, act, row_bias, dh, sums: backward(
        dy, dtotal, total, None, weight, bias, moments, act, None, None, 0.0, None, dh, None, sums))


class AddGroupNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, residual, weight, bias, groups, eps, act, row_bias):
        total, y, moments = below_autograd(ctx, OPS.add_group_norm_act.default, h, residual, weight, bias, groups, eps, act, row_bias)
        ctx.save_for_backward(total, weight, bias, moments, row_bias)
        ctx.act, ctx.types = act, (h.dtype, residual.dtype)
        return total, y, moments

    @staticmethod
    @once_differentiable
    def backward(ctx, dtotal, dy, _):
        total, weight, bias, moments, row_bias = ctx.saved_tensors
        dw = db = drow = None
        if dy is None:
            dh = dtotal
            drow = None if dh is None else of_row(dh.float().sum((2, 3)), row_bias)
        else:
            dh, sums = OPS.add_group_norm_act_backward.default(dy, dtotal, total, weight, bias, moments, ctx.act, row_bias is not None)
            dw, db = of_weight_and_bias(sums, weight, bias, None, any(ctx.needs_input_grad[2:4]))
            drow = None if row_bias is None else of_row(sums[2], row_bias)
        of_h, of_residual = (None if dh is None else dh.to(dtype) for dtype in ctx.types)
        return of_h, of_residual, dw, db, None, None, None, drow


differentiable("add_group_norm_act", AddGroupNormAct)


# group_norm_act_cat

def _cat_outputs(h, skip, weight, bias, groups, eps, act, residual, row_bias):
    dtype = torch.promote_types(h.dtype, skip.dtype)
    dtype = dtype if residual is None else torch.promote_types(dtype, residual.dtype)
    cat, y = (empty(h, h.shape[1] + skip.shape[1], dtype) for _ in range(2))
    return cat, y, moments_of(h, groups)


operator(
    "group_norm_act_cat", "(Tensor h, Tensor skip, Tensor weight, Tensor bias, int groups, float eps, str act, Tensor? residual, "
    "Tensor? row_bias) -> (Tensor cat, Tensor y, Tensor moments)",
    _cat_outputs,
    lambda h, skip, weight, bias, groups, eps, act, residual, row_bias, cat, y, moments: forward(
        h, residual, skip, row_bias, weight, bias, groups, eps, act, None, None, 0.0, None, cat, y, moments))

operator(
    "group_norm_act_cat_backward", "(Tensor dy, Tensor? dcat, Tensor cat, Tensor weight, Tensor bias, Tensor moments, str act, "
    "int channels, bool row_bias) -> (Tensor dh, Tensor dskip, Tensor sums)",
    lambda dy, dcat, cat, weight, bias, moments, act, channels, row_bias: (
        empty(cat, channels, cat.dtype), empty(cat, cat.shape[1] - channels, cat.dtype), sums_of(cat, row_bias)),
    lambda dy, dcat, cat, weight, bias, moments, act, channels, row_bias, dh, dskip, sums: backward(
        dy, dcat, cat, None, weight, bias, moments, act, None, None, 0.0, None, dh, dskip, sums))


class GroupNormActCat(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, skip, weight, bias, groups, eps, act, residual, row_bias):
        cat, y, moments = below_autograd(
            ctx, OPS.group_norm_act_cat.default, h, skip, weight, bias, groups, eps, act, residual, row_bias)
        ctx.save_for_backward(cat, weight, bias, moments, row_bias)
        ctx.act, ctx.channels = act, h.shape[1]
        ctx.types = h.dtype, skip.dtype, None if residual is None else residual.dtype
        return cat, y, moments

    @staticmethod
    @once_differentiable
    def backward(ctx, dcat, dy, _):
        cat, weight, bias, moments, row_bias = ctx.saved_tensors
        C, dw, db, drow = ctx.channels, None, None, None
        if dy is None:
            if dcat is None:
                return (None,) * 9
            dh, dskip = dcat[:, :C], dcat[:, C:]
            drow = of_row(dh.float().sum((2, 3)), row_bias)
        else:
            dh, dskip, sums = OPS.group_norm_act_cat_backward.default(
                dy, dcat, cat, weight, bias, moments, ctx.act, C, row_bias is not None)
            dw, db = of_weight_and_bias(sums, weight, bias, None, any(ctx.needs_input_grad[2:4]))
            drow = None if row_bias is None else of_row(sums[2, :, :C], row_bias)
        h_type, skip_type, residual_type = ctx.types
        dresidual = None if residual_type is None else dh.to(residual_type)
        return dh.to(h_type), dskip.to(skip_type), dw, db, None, None, None, dresidual, drow


differentiable("group_norm_act_cat", GroupNormActCat)
