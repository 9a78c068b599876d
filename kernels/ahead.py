"""Compiles a Launch for a GPU that is not here, as Triton would at the kernel's first start there:
what it needs of an SM, and its PTX."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from kernels.launch import Launch


class Resources(NamedTuple):
    """registers: of a thread. stack: bytes of a thread in local memory; where it is not 0,
    registers spill. shared: bytes of a block. threads: of a block."""

    registers: int
    stack: int
    shared: int
    threads: int
    ptx: str


def specialized(launch: Launch) -> Any:
    """The ASTSource that is compiled: the kernel for these types, constants and alignments, as
    Triton's own launcher reads them from the arguments.

    Raises:
        RuntimeError: in a process that interprets its kernels, which is one mode for all of it.
    """
    from triton import JITFunction
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    kernel = launch.kernel
    if not isinstance(kernel, JITFunction):
        raise RuntimeError(
            "this process interprets Triton's kernels and cannot compile them; start one without "
            "TRITON_INTERPRET."
        )
    backend = make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, kinds, _ = bind(**launch.arguments, **launch.constants)
    _, *parts = kernel._pack_args(backend, dict(launch.options), bound, kinds, {})
    return ASTSource(kernel, *parts)


def compile_for(launch: Launch, capability: int = 90) -> Resources:
    """capability: 80 for an A100, 90 for an H100. Raises what specialized does, and what Triton
    does where a kernel does not compile."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import compile

    target = GPUTarget("cuda", capability, 32)
    binary = compile(specialized(launch), target=target, options=launch.options)
    usage = _usage(binary.asm["cubin"])
    return Resources(
        usage["REG"],
        usage["STACK"],
        binary.metadata.shared,
        32 * binary.metadata.num_warps,
        binary.asm["ptx"],
    )


def _usage(cubin: bytes) -> dict[str, int]:
    """What cuobjdump, which comes with Triton, reads from a binary: {"REG": 64, "STACK": 0, ...}.
    The shared memory that it knows is not all: Triton asks for its own at the start of the
    kernel."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        said = subprocess.check_output([knobs.nvidia.cuobjdump.path, "-res-usage", path], text=True)
    return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", said)}
