"""Which implementation runs: the Triton kernels or the reference. The choice is the process's, as
that of the arithmetic is."""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from kernels import reference
from kernels.launch import INSTALLED, INTERPRETED
from runtime.errors import UserError

Kernels = Literal["auto", "triton", "reference"]
LARGEST_GROUP = 128  # channels of a group that a program of the fused norm holds

log = logging.getLogger(__name__)
_chosen: Kernels = "auto"
_capable: bool | None = None  # as asked once, by select(): every norm wants to know


def select(kernels: Kernels, device: torch.device) -> None:
    """Chooses for the process, and says so.

    Args:
        kernels: auto: Triton on a CUDA device of compute capability 8.0 or more, for which the
            kernels are compiled in the tests, else the reference; attention by Triton only where
            it was measured to be faster than torch's. triton: wherever a kernel exists.

    Raises:
        UserError: where Triton cannot run.
    """
    global _chosen, _capable
    if kernels == "triton" and not ((device.type == "cuda" and INSTALLED) or INTERPRETED):
        raise UserError(
            "kernels=triton: Triton's kernels run on a CUDA device, and this is "
            f"{device}{'' if INSTALLED else ', and triton is not installed'}. kernels=auto takes "
            "what runs here. (TRITON_INTERPRET=1 in the environment runs them on a CPU, slowly: "
            "for tests.)"
        )
    _chosen = kernels
    _capable = device.type == "cuda" and _is_compiled_for(device)
    log.info("kernels: %s", "Triton" if fused(device) else "torch's own")


def fused(device: torch.device) -> bool:
    """Whether a norm on a device can run as one kernel, which adds on its way what would be a pass
    of its own: a bias, a residual."""
    return _chosen == "triton" or (
        _chosen == "auto"
        and device.type == "cuda"
        and INSTALLED
        and (_is_compiled_for(device) if _capable is None else _capable)
    )


def _is_compiled_for(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _group_norm(name: str) -> Callable[..., Any]:
    """The operation of kernels.reference with this name, or its kernel."""
    operation = getattr(reference, name)
    names = tuple(inspect.signature(operation).parameters)

    @functools.wraps(operation)
    def run(*given: Any, **named: Any) -> Any:
        values = dict(zip(names, given)) | named
        weight = values["weight"]
        module: Any = reference
        if fused(weight.device) and weight.shape[0] // values["groups"] <= LARGEST_GROUP:
            from kernels import group_norm as module
        return getattr(module, name)(*given, **named)

    return run


group_norm_act = _group_norm("group_norm_act")
add_group_norm_act = _group_norm("add_group_norm_act")
group_norm_act_cat = _group_norm("group_norm_act_cat")


def attention(qkv: Tensor, heads: int) -> Tensor:
    """kernels.reference.attention, which calls torch's own flash or cuDNN kernel on a GPU, or its
    kernel."""
    if fused(qkv.device):
        from kernels import attention as triton

        if triton.supports(qkv, heads) and (_chosen == "triton" or triton.faster(qkv, heads)):
            return triton.attention(qkv, heads)
    return reference.attention(qkv, heads)
