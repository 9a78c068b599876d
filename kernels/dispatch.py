"""Which implementation runs: the Triton kernels or the reference. The choice is the process's, as that of the arithmetic is."""

from __future__ import annotations

import logging
from typing import Literal, get_args

import torch
from torch import Tensor

from kernels import reference
from kernels.launch import INSTALLED, INTERPRETED
from kernels.reference import Act
from runtime.errors import UserError

Kernels = Literal["auto", "triton", "reference"]
LARGEST_GROUP = 128  # channels of a group that a program of the fused norm holds

log = logging.getLogger(__name__)
_chosen: Kernels = "auto"


def select(kernels: Kernels, device: torch.device) -> None:
    """Chooses for the process, and says so. auto: Triton on a CUDA device of compute capability 8.0 or more, for which the kernels are
    compiled in the tests, else the reference; attention by Triton only where it was measured to be faster than torch's. triton:
    wherever a kernel exists. Raises UserError where Triton cannot run."""
    global _chosen
    if kernels not in get_args(Kernels):
        raise UserError(f"kernels={kernels}: no such choice; they are {', '.join(get_args(Kernels))}.")
    if kernels == "triton" and not ((device.type == "cuda" and INSTALLED) or INTERPRETED):
        raise UserError(f"kernels=triton: Triton's kernels run on a CUDA device, and this is {device}"
                        f"{'' if INSTALLED else ', and triton is not installed'}. kernels=auto takes what runs here. (TRITON_INTERPRET=1 "
                        "in the environment runs them on a CPU, slowly: for tests.)")
    _chosen = kernels
    log.info("kernels: %s", "Triton" if _triton_on(device) else "torch's own")


def fused(x: Tensor) -> bool:
    """Whether a norm of x can run as one kernel, which adds on its way what would be a pass of its own: a bias, a residual."""
    return _triton_on(x.device)


def _triton_on(device: torch.device) -> bool:
    return _chosen == "triton" or (_chosen == "auto" and device.type == "cuda" and INSTALLED
                                   and torch.cuda.get_device_capability(device) >= (8, 0))


def _fits(channels: int, groups: int) -> bool:
    return channels // groups <= LARGEST_GROUP


def group_norm_act(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, act: Act = "silu", row_bias: Tensor | None = None,
                   scale: Tensor | None = None, shift: Tensor | None = None, dropout: float = 0.0, seed: Tensor | None = None) -> Tensor:
    """See kernels.reference."""
    if not (fused(x) and _fits(x.shape[1], groups)):
        return reference.group_norm_act(x, weight, bias, groups, eps, act, row_bias, scale, shift, dropout, seed)
    from kernels import group_norm_act as triton

    return triton.group_norm_act(x, weight, bias, groups, eps, act, row_bias, scale, shift, dropout, seed)


def add_group_norm_act(h: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, act: Act = "silu",
                       row_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See kernels.reference."""
    if not (fused(h) and _fits(h.shape[1], groups)):
        return reference.add_group_norm_act(h, residual, weight, bias, groups, eps, act, row_bias)
    from kernels import group_norm_act as triton

    return triton.add_group_norm_act(h, residual, weight, bias, groups, eps, act, row_bias)


def group_norm_act_cat(h: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, act: Act = "silu",
                       residual: Tensor | None = None, row_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See kernels.reference."""
    if not (fused(h) and _fits(h.shape[1] + skip.shape[1], groups)):
        return reference.group_norm_act_cat(h, skip, weight, bias, groups, eps, act, residual, row_bias)
    from kernels import group_norm_act as triton

    return triton.group_norm_act_cat(h, skip, weight, bias, groups, eps, act, residual, row_bias)


def attention(qkv: Tensor, heads: int) -> Tensor:
    """See kernels.reference, which calls torch's own flash or cuDNN kernel on a GPU."""
    if not fused(qkv):
        return reference.attention(qkv, heads)
    from kernels import attention as triton

    if not triton.supports(qkv, heads) or (_chosen == "auto" and not triton.faster(qkv, heads)):
        return reference.attention(qkv, heads)
    return triton.attention(qkv, heads)
