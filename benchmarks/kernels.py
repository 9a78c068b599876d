"""The fused operations against what torch offers for them: microseconds, GB/s, and the share of a
copy's bandwidth.

    python -m benchmarks.kernels                    all of them; --only attention: those whose name
    has that in it

--compile auto: torch.compile of every operation on a GPU, and on a CPU, where each takes half a
minute, of group_norm_act alone.

GB/s counts the bytes that must move, whatever an implementation moves: the column "must move" has
the formula, U being one pass over the tensor of the row's shape (for group_norm_act_cat the
concatenated one, for attention [B, T, C]). The share is of the GB/s of a copy of one such tensor (2
U), timed in the same run. On a GPU ours are the Triton kernels in the training type, each call
finds an L2 that was cleared, and small tensors are also timed in a CUDA graph, without the host and
with a warm L2. On a CPU ours are the reference. torch's own runs as a user would: norm weights in
the type of x, or in fp32 under autocast with the cast back that the next convolution makes.
Forwards run without gradients; a backward gives those of all inputs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch._functorch.config
from torch import Tensor

from benchmarks.common import CLOCKS, arguments, clocks, graph_us, interleaved, reason, report
from benchmarks.operations import Case, attention_cases, implementations, norm_cases
from kernels import dispatch

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SMALL = 2**26  # bytes of a tensor up to which the host's time can show
CALLS = 20  # in one CUDA graph
HEADING = [
    "operation",
    "pass",
    "shape",
    "type",
    "implementation",
    "must move",
    "U in MB",
    "median us",
    "p20",
    "p80",
    "GB/s",
    "share of a copy",
    "us in a CUDA graph",
    "ours over this",
    *CLOCKS,
]
Run = Callable[[], object]


class Measured(NamedTuple):
    """Microseconds; graph is None where it was not asked for."""

    median: float
    p20: float
    p80: float
    graph: float | None = None


def main(argv: Sequence[str] | None = None) -> None:
    chosen = arguments(
        "fused operations",
        argv,
        only="",
        type=("auto", *TYPES),
        passes=("both", "forward", "backward"),
        repeats=7,
        compile=("auto", "yes", "no"),
        tiny=False,
    )
    device, cuda = chosen.device, chosen.device.type == "cuda"
    dispatch.select("triton" if cuda else "reference", device)
    torch._functorch.config.donated_buffer = False  # else a compiled backward runs but once
    name = chosen.type if chosen.type != "auto" else "bf16" if cuda else "fp32"
    rows = []
    for case in [*norm_cases(device, chosen.tiny), *attention_cases(device, chosen.tiny)]:
        for which in ("forward", "backward"):
            if chosen.only in case.name and chosen.passes in ("both", which):
                rows += measured_rows(case, which, TYPES[name], chosen)
                torch.compiler.reset()  # each shape is compiled for itself
    report([HEADING, *rows], chosen.csv, device)


def measured_rows(case: Case, which: str, dtype: torch.dtype, chosen) -> list[list[object]]:
    device, unit = chosen.device, math.prod(case.shape) * dtype.itemsize
    source, target = (torch.empty(case.shape, dtype=dtype, device=device) for _ in range(2))
    makers = {"copy": lambda: lambda: target.copy_(source)}
    compiles = chosen.compile == "yes" or (
        chosen.compile == "auto" and (device.type == "cuda" or case.name == "group_norm_act")
    )
    makers |= {
        name: maker(which, *implementation)
        for name, implementation in implementations(case, dtype, device, compiles).items()
    }
    times = timed(makers, device, chosen.repeats, graphs=unit <= SMALL)
    said = clocks(device)
    rows = []
    for name, found in times.items():
        if isinstance(found, str):
            rows.append(
                [
                    case.name,
                    which,
                    shape_of(case),
                    str(dtype)[6:],
                    name,
                    "",
                    "",
                    found,
                    *[""] * 6,
                    *said,
                ]
            )
            continue
        passes = 2 if name == "copy" else case.passes[which]
        speed = passes * unit / found.median / 1e3  # bytes/us -> GB/s
        copy, ours = times["copy"], times["ours"]
        rows.append(
            [
                case.name,
                which,
                shape_of(case),
                str(dtype)[6:],
                name,
                f"{passes}U",
                f"{unit / 1e6:.1f}",
                *(f"{v:.1f}" for v in found[:3]),
                f"{speed:.1f}",
                "" if isinstance(copy, str) else f"{speed / (2 * unit / copy.median / 1e3):.3f}",
                "" if found.graph is None else f"{found.graph:.1f}",
                ""
                if name in ("ours", "copy") or isinstance(ours, str)
                else f"{found.median / ours.median:.2f}",
                *said,
            ]
        )
    return rows


def shape_of(case: Case) -> str:
    return "x".join(map(str, case.shape))


def maker(which: str, function: Callable, inputs: list[Tensor]) -> Callable[[], Run]:
    """What makes the run to be timed, on the stream that is current then, which is where autograd
    runs the backward too."""

    def forward() -> Run:
        return torch.no_grad()(lambda: function(*inputs))

    def backward() -> Run:
        leaves = [x.detach().requires_grad_() for x in inputs]
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.manual_seed(1)
        gradients = [torch.randn_like(y) for y in outputs]
        return lambda: torch.autograd.grad(outputs, leaves, gradients, retain_graph=True)

    return {"forward": forward, "backward": backward}[which]


def timed(
    makers: dict[str, Callable[[], Run]], device: torch.device, repeats: int, graphs: bool
) -> dict[str, Measured | str]:
    """By implementation; the first line of the error where one does not run."""
    runs: dict[str, Run | str] = {
        name: attempt(lambda made=made: started(made)) for name, made in makers.items()
    }
    working = {name: run for name, run in runs.items() if not isinstance(run, str)}
    if device.type != "cuda":
        seconds, failed = interleaved(working, repeats, device)
        timed_here = {name: failed.get(name) or of_list(seconds[name]) for name in working}
        return {name: timed_here.get(name, runs[name]) for name in makers}
    from triton.testing import do_bench

    found = {
        name: attempt(lambda run=run: do_bench(run, quantiles=[0.5, 0.2, 0.8]))
        for name, run in working.items()
    }
    times: dict[str, Measured | str] = {}
    for name in makers:
        times[name] = found.get(name, runs[name])
        if not isinstance(times[name], str):
            times[name] = Measured(
                *(1e3 * ms for ms in times[name]), in_graph(makers[name]) if graphs else None
            )
    return times


def started(made: Callable[[], Run]) -> Run:
    """After its first call, which compiles what is compiled."""
    run = made()
    run()
    return run


def attempt(what: Callable):
    """What it returns, or in a row's words why it does not: the other rows go on."""
    try:
        return what()
    except Exception as error:
        return reason(error)


def of_list(seconds: list[float]) -> Measured:
    us = [1e6 * s for s in seconds]
    fifths = statistics.quantiles(us, n=5, method="inclusive") if len(us) > 1 else [us[0]] * 4
    return Measured(statistics.median(us), fifths[0], fifths[3])


def in_graph(made: Callable[[], Run]) -> float | None:
    """Microseconds of one call among CALLS in a CUDA graph; None where it cannot be captured."""
    us = attempt(lambda: graph_us(lambda: [made()] * CALLS))
    return None if isinstance(us, str) else us


if __name__ == "__main__":
    main()
