"""The one place where a Triton kernel is started, so that a start can be counted, or compiled for a
GPU that is not here."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

# known from here: torch.compile cannot trace the search
INSTALLED = importlib.util.find_spec("triton") is not None
# Triton's mode for the whole process, as tests have it
INTERPRETED = INSTALLED and os.environ.get("TRITON_INTERPRET") == "1"


def repair_interpreter() -> None:
    """Triton 3.6's interpreter takes int() of arrays of one value, and numpy 2.5 has none of it."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()
        tensor.__bool__ = lambda self: self.handle.data.size > 1 or bool(self.handle.data.item())

    interpreter._patch_lang_tensor = patched


if INTERPRETED:
    repair_interpreter()


def next_power_of_2(n: int) -> int:
    """Triton's, without the microseconds that its own takes to ask whether a kernel calls it."""
    return 1 << (n - 1).bit_length()


class Launch(NamedTuple):
    """arguments: tensors and numbers by the kernel's names, and records of them. constants: its
    tl.constexpr. options: num_warps, num_stages."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    options: dict[str, int]

    def run(self) -> None:
        self.kernel[self.grid](**self.arguments, **self.constants, **self.options)

    def start(self) -> None:
        """Runs, unless somebody only watches."""
        for seen, _ in _watching:
            seen.append(self)
        if all(runs for _, runs in _watching):
            self.run()


_watching: list[tuple[list[Launch], bool]] = []


@contextlib.contextmanager
def watched(run: bool = True) -> Iterator[list[Launch]]:
    """Collects what is launched in the block. run=False: nothing runs, the outputs hold what the
    memory held."""
    seen: list[Launch] = []
    _watching.append((seen, run))
    try:
        yield seen
    finally:
        _watching.pop()
