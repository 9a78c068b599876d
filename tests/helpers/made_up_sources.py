"""Sources of which it is known what has to change: a run that knows its images, some of whose
weights were shuffled."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from runtime.checkpoint import EMA, MODEL, find, save
from tests.helpers import runs, study_runs

TINY = [
    "model.channels=16",
    "model.multipliers=[1,2]",
    "model.groups=4",
    "model.attention_levels=[]",
    "schedule.steps=100",
    "data.size=8",
    "data.channels=1",
    "data.classes=false",
    "train.precision=fp32",
    "run.device=cpu",
    "sampler.steps=5",
]


def trained(root: Path, steps: int = 2500) -> Path:
    """A run that knows images of one kind well."""
    folder = study_runs.images(root / "many", 1500)
    own = ["data=folder", f"data.path={folder}", "schedule=cosine", "parameterization=velocity"]
    rate = ["optimizer.lr=2e-3", "train.batch_size=16", "train.warmup=10", "train.ema_decay=0.995"]
    ends = [f"train.steps={steps}", "run.checkpoint_every=10000", "run.sample_every=10000"]
    code, text = runs.launch(root, [*own, *rate, *ends, "run.samples=1"], tiny=TINY).wait(600)
    assert code == 0, text
    return runs.directory_of(root, "custom")


def shuffled(run: Path, patterns: Sequence[str], to: Path) -> Path:
    """The same run with the weights shuffled, inside each tensor, of what begins with these."""
    shutil.copytree(run, to)
    [folder] = (to / "checkpoints").iterdir()
    shutil.rmtree(folder)
    checkpoint = find(run)
    sets = {}
    for which in (MODEL, EMA):
        random, weights = torch.Generator().manual_seed(0), checkpoint.weights(which)
        for name, w in weights.items():
            if name.startswith(tuple(patterns)) and w.ndim > 1:
                order = torch.randperm(w.numel(), generator=random)
                weights[name] = w.flatten()[order].reshape(w.shape)
        sets[which] = weights
    save(replace(checkpoint, path=folder), sets[MODEL], sets[EMA], checkpoint.optimizer())
    return to
