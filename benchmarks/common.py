"""What benchmarks share: settings, interleaved timing, the table and the CSV."""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import torch

from runtime.device import pick_device
from runtime.directory import commit, device_name
from runtime.log import table

Timings = dict[str, list[float]]


def arguments(description: str, **defaults: int | str) -> argparse.Namespace:
    """A command line with --csv, --device, --threads and the given settings."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    chosen.device = pick_device(chosen.device)
    return chosen


def interleaved(candidates: dict[str, Callable[[], object]], pairs: int, device: torch.device, warmup: int = 2) -> Timings:
    """Seconds of each candidate, run in turn A B, B A, A B ..., so that drift of the machine's speed hits all alike."""
    for _ in range(warmup):
        for run in candidates.values():
            run()
    seconds: Timings = {name: [] for name in candidates}
    for pair in range(pairs):
        for name in list(candidates)[:: 1 if pair % 2 == 0 else -1]:
            _wait(device)
            start = time.perf_counter()
            candidates[name]()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ratio(over: list[float], under: list[float]) -> tuple[float, float, float]:
    """Median, least and greatest of the ratios pair by pair."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def report(rows: Sequence[Sequence[object]], path: Path | None, device: torch.device) -> None:
    """Prints rows (heading first) as a table; writes them with machine, threads, versions and commit behind each."""
    machine = {"device": device_name(device), "threads": torch.get_num_threads(), "torch": torch.__version__,
               "diffusers": metadata.version("diffusers"), "commit": commit() or ""}
    print(", ".join(f"{k} {v}" for k, v in machine.items() if v))
    print(table(rows))
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [[*rows[0], *machine], *([*row, *machine.values()] for row in rows[1:])])
