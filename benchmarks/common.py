"""What benchmarks share: settings, interleaved timing, what the machine is, the table and the
CSV."""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from runtime.device import free_memory, pick_device
from runtime.environment import commit, device_name
from runtime.errors import UserError
from runtime.log import table

Run = Callable[[], object]
Timings = dict[str, list[float]]
PACKAGES = ("triton", "diffusers", "denoising-diffusion-pytorch")
CLOCKS = ("SM MHz", "memory MHz")
WARM = 3  # calls before a graph is captured


def arguments(
    description: str, argv: Sequence[str] | None = None, **defaults: Any
) -> argparse.Namespace:
    """A command line with --csv, --device, --threads and the given settings. A tuple is the
    choices, the default first; False is a flag; "" stands for numbers with commas between (see
    numbers)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    for name, value in defaults.items():
        how: dict[str, Any] = {"type": type(value), "default": value}
        if isinstance(value, tuple):
            how = {"choices": value, "default": value[0]}
        elif value is False:
            how = {"action": "store_true"}
        parser.add_argument(f"--{name.replace('_', '-')}", **how)
    chosen = parser.parse_args(argv)
    torch.set_num_threads(chosen.threads)
    try:
        chosen.device = pick_device(chosen.device)
    except UserError as error:
        parser.error(str(error))
    return chosen


def numbers(text: str, cpu: Sequence[int], cuda: Sequence[int], device: torch.device) -> list[int]:
    """Those of the command line, "1,16,128", or the device's own."""
    return (
        [int(n) for n in text.split(",")] if text else list(cuda if device.type == "cuda" else cpu)
    )


def peer(package: str) -> ModuleType | None:
    """The package that is compared with, or None and a line that says so."""
    with contextlib.suppress(ImportError):  # a peer may do without
        import runtime.torchvision  # noqa: F401 - before any peer that imports torchvision
    try:
        return importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        print(f"{package} is not installed here ({error}): its rows are left out.")
        return None


def interleaved(
    candidates: dict[str, Run],
    pairs: int,
    device: torch.device,
    warmup: int = 2,
    warming: dict[str, Run] | None = None,
) -> tuple[Timings, dict[str, str]]:
    """Seconds of each candidate, run in turn A B C, C B A, A B C ..., so that drift of the
    machine's speed hits all alike; and why some did not run, whose seconds are an empty list.
    warming: shorter runs for the warm-up."""
    failed = {
        name: why for name, run in (warming or candidates).items() if (why := _failure(run, warmup))
    }
    seconds: Timings = {name: [] for name in candidates}
    running = [name for name in candidates if name not in failed]
    for pair in range(pairs):
        for name in running[:: 1 if pair % 2 == 0 else -1]:
            _wait(device)
            start = time.perf_counter()
            candidates[name]()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds, failed


def _failure(run: Run, times: int) -> str:
    """Why it does not run, "" if it does. The others go on: one that is too large, or that torch
    cannot compile, is a row of its own."""
    try:
        for _ in range(times):
            run()
    except Exception as error:
        why = reason(error)  # what the exception holds is let go of before the memory is given back
    else:
        return ""
    free_memory()
    return why


def reason(error: BaseException, most: int = 160) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"failed: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:most]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def graph_us(make: Callable[[], Sequence[Callable[[], object]]]) -> float:
    """Microseconds of a call, the median over replays of a CUDA graph of all of them: without the
    time of the host.

    Args:
        make: what to call, made on the stream of the graph, as autograd runs a backward on that of
            its forward.
    """
    from triton.testing import do_bench

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls = make()
        for _ in range(WARM):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        kept = [call() for call in calls]  # else all write to one place, which stays in the L2
    us = 1e3 * do_bench(graph.replay, return_mode="median") / len(calls)
    del kept
    return us


def median_ratio(over: list[float], under: list[float]) -> tuple[float, float, float]:
    """Median, least and greatest of the ratios pair by pair."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def ratio_cell(over: list[float] | None, under: list[float] | None) -> str:
    """median_ratio for a table; empty where one of the two was not timed."""
    return "{:.3f} ({:.3f} - {:.3f})".format(*median_ratio(over, under)) if over and under else ""


def speed(seconds: list[float], batch: int, failed: str | None) -> list[str]:
    """Median seconds and images/s, or why there are none."""
    if failed:
        return [failed, ""]
    median = statistics.median(seconds)
    return [f"{median:.4g}", f"{batch / median:.4g}"]


def nvidia_smi(device: torch.device, *fields: str) -> list[str]:
    """What nvidia-smi says of the device: read, never set. Empty on a CPU."""
    if device.type != "cuda":
        return ["" for _ in fields]
    command = [
        "nvidia-smi",
        "-i",
        f"GPU-{torch.cuda.get_device_properties(device).uuid}",
        f"--query-gpu={','.join(fields)}",
        "--format=csv,noheader,nounits",
    ]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ["unknown" for _ in fields]
    values = [value.strip() for value in said.stdout.split(",")]
    return (
        values
        if said.returncode == 0 and len(values) == len(fields)
        else ["unknown" for _ in fields]
    )


def clocks(device: torch.device) -> list[str]:
    """The CLOCKS of a GPU, to be read right after the work that is timed."""
    return nvidia_smi(device, "clocks.sm", "clocks.mem")


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def report(rows: Sequence[Sequence[object]], path: Path | None, device: torch.device) -> None:
    """Prints rows (heading first) as a table; writes them with machine, threads, versions and
    commit behind each."""
    (driver,) = nvidia_smi(device, "driver_version")
    machine = {
        "device": device_name(device),
        "driver": driver,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **{name: version(name) for name in PACKAGES},
        "commit": commit() or "",
    }
    print(", ".join(f"{k} {v}" for k, v in machine.items() if v))
    print(table(rows))
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [[*rows[0], *machine], *([*row, *machine.values()] for row in rows[1:])]
            )
