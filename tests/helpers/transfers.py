"""Small transfers, run by train.py in this process: a source of bundled faces, and targets of
bundled tissue that start from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from config.overrides import composed
from config.run_config import RunConfig
from diffusion.denoiser import Denoiser
from runtime.checkpoint import EMA, MODEL, all_checkpoints, find
from training import run

# Three levels, so that presets by resolution have a coarse part. One rate for all: at this size a
# preset's own are too low to be seen.
TINY = [
    "model.channels=16",
    "model.multipliers=[1,1,2]",
    "model.groups=4",
    "model.attention_levels=[1]",
    "model.dropout=0",
    "schedule.steps=100",
    "data.size=8",
    "data.channels=3",
    "optimizer.lr=2e-3",
    "train.batch_size=4",
    "train.warmup=0",
    "train.precision=fp32",
    "train.ema_decay=0.9",
    "run.device=cpu",
    "run.held_out_draws=8",
    "run.sample_every=10000",
    "run.samples=1",
    "run.keep_last=9",
    "run.log_every=5",
    "sampler.steps=2",
]
TISSUE = ["data=bundled_tissue", "data.n_train=24", "data.flip=false"]
SOURCE_STEPS = 250
# What is made or measured once, in small numbers.
FEW = {
    "dreambooth": ["transfer.replay.images.n=48", "transfer.replay.images.steps=10"],
    "diff_tuning": ["transfer.replay.images.n=48", "transfer.replay.images.steps=10"],
    "ewc": [
        "transfer.penalties.0.n=24",
        "transfer.penalties.0.images.n=24",
        "transfer.penalties.0.images.steps=10",
    ],
    "ant": [
        "transfer.loss.images.n=16",
        "transfer.loss.images.steps=10",
        "transfer.loss.classifier_steps=40",
        "transfer.loss.ascent_steps=2",
    ],
}


class Transfers:
    """Runs below one root; each command is run once."""

    def __init__(self, root: Path, source: Sequence[str] = ()):
        self.root, self.done = root, {}
        self.source = self.run(f"train.steps={SOURCE_STEPS}", "data.flip=false", *source)

    def run(self, *arguments: str) -> Path:
        """Its directory."""
        if arguments not in self.done:
            torch.set_num_threads(1)
            places = [f"run.root={self.root}/runs", f"run.cache={self.root}/cache"]
            self.done[arguments] = run.train(composed("train", [*TINY, *places, *arguments]))
        return self.done[arguments]

    def target(self, strategy: str, *more: str) -> Path:
        return self.run(
            *TISSUE,
            f"transfer={strategy}",
            f"source.from={self.source}",
            "seed=1",
            *FEW.get(strategy, []),
            *more,
        )

    def started(self) -> dict[str, Tensor]:
        """What a target of the source's shapes starts from."""
        return find(self.source).weights(EMA)


def weights(directory: Path, step: int | None = None, file: str = MODEL) -> dict[str, Tensor]:
    """At a step, or the last; injected parameters beside the base."""
    (found,) = [c for c in all_checkpoints(directory / "checkpoints") if step in (None, c.step)][
        -1:
    ]
    return found.weights(file)


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The tensors of before that have other bits after."""
    return {name for name, w in before.items() if not torch.equal(w, after[name])}


def denoiser_of(config: RunConfig, tensors: dict[str, Tensor]) -> Denoiser:
    """A plain network with these weights."""
    denoiser = config.build_denoiser().eval().requires_grad_(False)
    denoiser.network.load_state_dict(tensors)
    return denoiser


def folders(root: Path, classes: dict[str, Callable[[int], Image.Image]], n: int = 8) -> Path:
    """A folder of images for each class. classes: name -> (its k-th image), with a black corner
    where it is of one colour: a run of nothing else is refused."""
    for name, image in classes.items():
        (root / name).mkdir(parents=True)
        for k in range(n):
            picture = image(k).copy()
            if len(picture.getcolors(1 << 20)) == 1:
                picture.paste("black", (0, 0, 1, 1))
            picture.save(root / name / f"{k}.png")
    return root
