"""The device and its memory."""

import contextlib
import gc
import os
import re
from pathlib import Path

import torch

from runtime.errors import UserError


def pick_device(name: str) -> torch.device:
    """auto: CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device={name}: not usable here ({reason}). auto takes what is there: "
            "run.device=auto of train.py, device=auto of sample.py."
        ) from error
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # Triton starts kernels on the current one
    return device


def repeat_bits(wanted: bool) -> None:
    """Whether a GPU computes the same bits each time: operations that have several orders take one,
    or raise RuntimeError where they have none. To be said before the first product of matrices.

    Source:
        PyTorch's notes on reproducibility.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    # nothing unwritten is read here
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def forget_peak(device: torch.device) -> None:
    """Peak memory counts from here. On a CPU that is the process's, which Linux starts anew where
    it is asked to."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Most bytes in use since forget_peak: of the device, or of the process on a CPU; None where
    the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    text = status.read_text() if status.exists() else ""
    found = re.search(r"^VmHWM:\s*(\d+)", text, re.M)
    return int(found[1]) * 1024 if found else None


def free_memory() -> None:
    """Gives back what a run that has ended held, so that the next one in this process finds the
    device as the first did."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
