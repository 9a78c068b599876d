"""Group norm with its activation and what stands around it, as operators of torch with a gradient.
kernels.reference says what each computes; forward.py and backward.py hold the Triton kernels."""

from typing import Any

from torch import Tensor

from kernels import reference
from kernels.group_norm.backward import backward_outputs, group_norm_backward
from kernels.group_norm.forward import forward_outputs, group_norm_forward
from kernels.operators import OPS, define, differentiable

Gradients = dict[str, "Tensor | None"]


def save(ctx: Any, inputs: dict[str, Any], outputs: tuple[Tensor, ...]) -> None:
    joined = len(outputs) == 3  # the backward then reads the sum, which has the row bias in it
    names = ("weight", "bias", "row_bias", "scale", "shift", "seed")
    x = outputs[0] if joined else inputs["x"]
    ctx.save_for_backward(x, outputs[-1], *map(inputs.get, names))
    ctx.joined, ctx.channels = joined, inputs["x"].shape[1]
    ctx.act, ctx.dropout = inputs["act"], inputs.get("dropout", 0.0)
    ctx.types = {
        name: image.dtype
        for name in ("x", "residual", "skip")
        if (image := inputs.get(name)) is not None
    }


def gradient(ctx: Any, needed: set[str], *upstream: Tensor | None) -> Gradients:
    *dtotal, dy = upstream
    if dy is None:
        return _of_total_alone(ctx, *dtotal)
    saved = ctx.saved_tensors  # once: a checkpoint computes them again
    _, _, weight, bias, row_bias, scale, shift, _ = saved
    dx, dskip, sums = OPS.group_norm_backward.default(
        dy, *(dtotal or [None]), *saved, ctx.joined, ctx.channels, ctx.act, ctx.dropout
    )
    A, B = sums[:2]
    found = _of_images(ctx, dx, dskip) | {"shift": _of_row(B, shift)}
    if needed & {"weight", "bias"}:  # dw = sum_n (1 + s) A, db = sum_n (1 + s) B
        dw, db = (sums[:2] if scale is None else sums[:2] * (1 + scale.float())).sum(1)
        found |= {"weight": dw.to(weight.dtype), "bias": db.to(bias.dtype)}
    if row_bias is not None:
        found["row_bias"] = _of_row(sums[2, :, : ctx.channels], row_bias)
    if scale is not None:
        found["scale"] = _of_row(weight.float() * A + bias.float() * B, scale)
    return found


def _of_total_alone(ctx: Any, dtotal: Tensor | None = None) -> Gradients:
    """Where nobody uses y."""
    if dtotal is None:
        return {}
    dx, dskip = dtotal.tensor_split([ctx.channels], dim=1)
    row_bias = ctx.saved_tensors[4]
    return _of_images(ctx, dx, dskip) | {"row_bias": _of_row(dx.float().sum((2, 3)), row_bias)}


def _of_images(ctx: Any, dx: Tensor, dskip: Tensor) -> Gradients:
    gradients = {"x": dx, "residual": dx, "skip": dskip}
    return {name: gradients[name].to(dtype) for name, dtype in ctx.types.items()}


def _of_row(per_image: Tensor, values: Tensor | None) -> Tensor | None:
    """The gradient [N, C] of an adaptive term in the term's own shape and type."""
    return None if values is None else per_image.sum_to_size(values.shape).to(values.dtype)


define(group_norm_backward, backward_outputs)
group_norm_act, add_group_norm_act, group_norm_act_cat = (
    differentiable(operation, group_norm_forward, forward_outputs, save, gradient)
    for operation in (
        reference.group_norm_act,
        reference.add_group_norm_act,
        reference.group_norm_act_cat,
    )
)
