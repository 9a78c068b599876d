"""Compiles a Launch for a GPU that is not here, as Triton would at the kernel's first start there:
what it needs of an SM, and its PTX."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kernels.launch import Launch

# bytes of a pointer, or a factor of an integer, that Triton compiles for: what vector loads need
ALIGNED = 16
DTYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}


class Specialization(NamedTuple):
    """What a kernel is compiled for: the type of each argument by name, the values of those that
    are constants, and the places of those that are multiples of ALIGNED."""

    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[int, ...]


class Resources(NamedTuple):
    """registers: of a thread. stack: bytes of a thread in local memory; where it is not 0,
    registers spill. shared: bytes of a block. threads: of a block."""

    registers: int
    stack: int
    shared: int
    threads: int
    ptx: str


def specialization(launch: Launch) -> Specialization:
    """As Triton's own launcher specializes: an integer that is 1 and a missing tensor become
    constants. Raises RuntimeError in a process that interprets its kernels: that is one mode for
    all of it."""
    from triton import JITFunction

    if not isinstance(launch.kernel, JITFunction):
        raise RuntimeError(
            "this process interprets Triton's kernels and cannot compile them; start one without "
            "TRITON_INTERPRET."
        )
    values = launch.arguments | launch.constants
    signature, constants, aligned = {}, {}, []
    for place, parameter in enumerate(launch.kernel.params):
        value = values.get(parameter.name, parameter.default)
        specializes = not parameter.do_not_specialize
        kind = "constexpr" if parameter.is_constexpr else _type(value, specializes)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[parameter.name] = value
        elif specializes and not parameter.do_not_specialize_on_alignment and _aligned(value):
            aligned.append(place)
    return Specialization(signature, constants, tuple(aligned))


def _type(value: Any, specializes: bool) -> str:
    if value is None or (specializes and type(value) is int and value == 1):
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return f"*{DTYPES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    if isinstance(value, bool):
        return "u1"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _aligned(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.data_ptr() % ALIGNED == 0
    return type(value) is int and value % ALIGNED == 0


def compile_for(launch: Launch, capability: int = 90) -> Resources:
    """capability: 80 for an A100, 90 for an H100. Raises what specialization does, and what Triton
    does where a kernel does not compile."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    signature, constants, aligned = specialization(launch)
    source = ASTSource(
        fn=launch.kernel,
        signature=signature,
        constexprs={
            (launch.kernel.arg_names.index(name),): value for name, value in constants.items()
        },
        attrs={(place,): [["tt.divisibility", ALIGNED]] for place in aligned},
    )
    binary = compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
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
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        said = subprocess.run(
            [tool, "-res-usage", path], capture_output=True, text=True, check=True
        ).stdout
    line = next(line for line in said.splitlines() if "REG:" in line)
    return {
        name: int(value)
        for name, value in (
            word.split(":") for word in line.split() if not word.startswith("CONSTANT")
        )
    }
