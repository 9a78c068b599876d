"""The device and its memory."""

import contextlib
import gc
import os
import re
from pathlib import Path

import torch

from runtime.errors import UserError

KNOWN = re.compile(r"cpu|cuda(:\d+)?")


def named_device(name: str | int) -> torch.device:
    """auto: CUDA where there is one, else the CPU. A number is that of a CUDA device. The device
    itself is not touched."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = f"cuda:{name}" if str(name).isdecimal() else str(name)
    if not KNOWN.fullmatch(kind):
        raise UserError(
            f"device={name}: known are auto, cpu, cuda, and of several GPUs cuda:1 or 1."
        )
    return torch.device(kind)


def pick_device(name: str | int) -> torch.device:
    """The device of that name, which answers."""
    device = named_device(name)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"device={name}: not usable here ({reason}). device=auto takes what is there."
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
