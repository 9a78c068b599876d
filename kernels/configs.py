"""Tile sizes and warps of the kernels: static, from kernels/tuned/NAME.json, which kernels.tune
writes. Nothing is timed at start."""

import contextlib
import json
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

TUNED = Path(__file__).parent / "tuned"

_forced: dict[str, tuple[dict[str, int], list[dict[str, int]]]] = {}


def pick(kernel: str, **shape: int) -> dict[str, int]:
    """The config of the entry whose shape is nearest: of the same itemsize, where one is, then the
    least sum of |log2 ratio| over its keys; the first of equals. (A type of 4 bytes spills the
    registers that one of 2 fills.)"""
    if kernel in _forced:
        config, asked = _forced[kernel]
        asked.append(shape)
        return dict(config)
    return dict(_nearest(kernel, **shape))


@lru_cache
def _nearest(kernel: str, **shape: int) -> dict[str, int]:
    def distance(entry: dict[str, dict[str, int]]) -> tuple[bool, float]:
        of = entry["shape"]
        return of.get("itemsize") != shape.get("itemsize"), sum(
            abs(math.log2(of[key] / shape[key])) for key in of
        )

    return min(entries(kernel), key=distance)["config"]


@contextlib.contextmanager
def using(kernel: str, config: dict[str, int]) -> Iterator[list[dict[str, int]]]:
    """pick() gives this config for every shape of a kernel in the block, and the list tells the
    shapes that were asked for."""
    asked: list[dict[str, int]] = []
    _forced[kernel] = (config, asked)
    try:
        yield asked
    finally:
        del _forced[kernel]


@lru_cache
def entries(kernel: str) -> list[dict[str, dict[str, int]]]:
    """[{"shape": {...}, "config": {...}}]; the shapes of one file have the same keys."""
    return json.loads((TUNED / f"{kernel}.json").read_text())["entries"]
