"""Tile sizes and warps of the kernels: static, from kernels/tuned/NAME.json, which kernels.tune writes. Nothing is timed at start."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path

TUNED = Path(__file__).parent / "tuned"


@lru_cache
def pick(kernel: str, **shape: int) -> dict[str, int]:
    """The config of the entry whose shape is nearest: least sum of |log2 ratio| over its keys; the first of equals."""

    def distance(entry: dict[str, dict[str, int]]) -> float:
        return sum(abs(math.log2(entry["shape"][key] / shape[key])) for key in entry["shape"])

    return dict(min(entries(kernel), key=distance)["config"])


@lru_cache
def entries(kernel: str) -> list[dict[str, dict[str, int]]]:
    """[{"shape": {...}, "config": {...}}]; the shapes of one file have the same keys."""
    return json.loads((TUNED / f"{kernel}.json").read_text())["entries"]
