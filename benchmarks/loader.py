"""Images a second that the loader feeds from one core: the memory map, the prefetch thread, and the
cast and flip on the device.

    python -m benchmarks.loader --images 50000 --size 32 --batch 128

Random images stand in for real ones: what is timed does not depend on what they show.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import arguments, report
from data.batches import Batches
from data.dataset import Dataset
from data.pixels import to_x0


def main() -> None:
    chosen = arguments(
        "loader throughput", images=50_000, size=32, batch=128, batches=400, repeats=5, one_core=1
    )
    if chosen.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        torch.set_num_threads(1)  # two threads on one core wait for each other
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        np.save(
            path,
            np.random.default_rng(0).integers(
                0, 256, (chosen.images, chosen.size, chosen.size, 3), dtype=np.uint8
            ),
        )
        dataset = Dataset(
            np.load(path, mmap_mode="r"),
            np.zeros(chosen.images, np.int64),
            {"train": np.arange(chosen.images)},
            [],
        )
        batches = Batches(dataset, chosen.batch, flip=True, seed=0)
        rows = [
            ["images", "size", "batch", "cores", "stage", "images/s (best)", "images/s (median)"]
        ]
        for stage, device_work in {
            "gathered": False,
            "gathered, on the device in [-1, 1], flipped": True,
        }.items():
            speeds = sorted(run(batches, chosen, device_work) for _ in range(chosen.repeats))
            rows.append(
                [
                    chosen.images,
                    chosen.size,
                    chosen.batch,
                    len(os.sched_getaffinity(0)),
                    stage,
                    f"{speeds[-1]:.0f}",
                    f"{speeds[len(speeds) // 2]:.0f}",
                ]
            )
    report(rows, chosen.csv, chosen.device)


def run(batches: Batches, chosen, device_work: bool) -> float:
    start = time.perf_counter()
    for batch in batches.prefetched(0, chosen.batches):
        if device_work:
            to_x0(batch.images.to(chosen.device), batch.flip.to(chosen.device))
    return chosen.batches * batches.batch_size / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
