"""Starts of a transfer for the tests: a tiny source with random weights, and a target that took
them over."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config.overrides import composed
from config.run_config import RunConfig
from data.dataset import Dataset
from runtime.checkpoint import Which
from runtime.content import sha256_of
from transfer.adapt_weights import fit
from transfer.context import Start
from transfer.trained_weights import TrainedWeights

TINY = (
    "model.channels=8",
    "model.multipliers=[1,2]",
    "model.groups=4",
    "model.attention_levels=[1]",
    "data.size=8",
    "sampler.steps=2",
)

OPENED: list[str] = []  # what was read of the last trained()


def config_of(overrides: Sequence[str]) -> dict[str, Any]:
    """The config of TINY with these overrides, of 20 noising steps unless they choose another
    schedule."""
    steps = () if any(o.startswith("schedule=") for o in overrides) else ("schedule.steps=20",)
    return copy.deepcopy(_composed((*TINY, *steps, *overrides)))


@lru_cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    return composed("train", overrides)


def trained(
    source: Sequence[str] = (), *, step: int | None = 7, classes: Sequence[str] = (), seed: int = 0
) -> TrainedWeights:
    """Of TINY with these overrides, weights by seed and far enough from Ho's zeros to matter.
    OPENED notes what is read of it."""
    config = RunConfig(config_of(source))
    torch.manual_seed(seed)
    state = config.build_denoiser().network.state_dict()
    weights = {name: (w + 0.05 * torch.randn_like(w)) for name, w in state.items()}
    digest = sha256_of({name: w.tolist() for name, w in weights.items()})
    OPENED.clear()

    def read(which: Which) -> dict[str, Tensor]:
        OPENED.append(which)
        return {name: w.clone() for name, w in weights.items()}

    path, digests = (
        Path("runs/source/checkpoints/step_7"),
        {"ema": digest, "model": f"model {digest}"},
    )
    return TrainedWeights(path, config, list(classes), step, digests, read)


def begun(
    cache: Path,
    target: Sequence[str] = (),
    source: Any = None,
    images: Dataset | None = None,
    **other: Any,
) -> Start:
    """A run of TINY with the overrides of target, which starts from source. other: fields of
    Start."""
    source = source or trained()
    config = RunConfig(config_of(target))
    data = config.data
    torch.manual_seed(1)
    denoiser = config.build_denoiser().to(memory_format=torch.channels_last)
    state, rows = fit(source.load("ema"), denoiser.network.state_dict())
    OPENED.clear()
    denoiser.network.load_state_dict(state)
    start = Start(
        denoiser,
        source,
        {r.name for r in rows if r.status in ("loaded", "resized")},
        images or pictures(12, data.height_width, data.channels),
        data,
        None,
        config.seed,
        8,
        cache,
    )
    return replace(start, **other)


def pictures(
    n: int,
    size: tuple[int, int] = (8, 8),
    channels: int = 1,
    seed: int = 0,
    labels: Sequence[int] | None = None,
) -> Dataset:
    """Noise as a dataset, each row of it to train on."""
    images = np.random.default_rng(seed).integers(0, 256, (n, *size, channels), dtype=np.uint8)
    return Dataset(
        images, np.asarray(labels or [0] * n, dtype=np.int64), {"train": np.arange(n)}, []
    )


def given(images: Dataset) -> Callable[[Start], Dataset]:
    """Where a term asks for images of the source: these."""
    return lambda start: images


def in_two_processes(work: Callable[..., None], cache: Path) -> list[Any]:
    """What work(cache, results) puts into results, run twice at once."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=work, args=(cache, results)) for _ in range(2)]
    for process in processes:
        process.start()
    got = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    return got
