"""The precision of a run: fp32, tf32 or bf16."""

import contextlib
from collections.abc import Callable

import torch

PRECISIONS = ("fp32", "tf32", "bf16")  # what auto is one of


def pick_precision(asked: str, device: torch.device) -> str:
    """Resolves auto: bf16 on a GPU that has it, else fp32. (A CPU's is not timed: the same command
    has to give the same bits.)"""
    if asked != "auto":
        return asked
    # a GPU without it emulates it, slowly
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


def arithmetic(
    precision: str, device: torch.device
) -> Callable[[], contextlib.AbstractContextManager]:
    """Sets fp32 or tf32 matrix arithmetic for the process and returns what to run forward passes
    under."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if precision == "bf16":
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext
