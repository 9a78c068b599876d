"""A small study of which layers to train, by train.py -m: made-up images, a tiny network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.helpers import runs
from tests.helpers.smooth_images import smooth

TINY = [
    "model.channels=8",
    "model.multipliers=[1,2]",
    "model.groups=4",
    "model.attention_levels=[]",
    "schedule.steps=40",
    "data.size=8",
    "data.channels=1",
    "data.classes=false",
    "train.steps=8",
    "train.batch_size=4",
    "train.warmup=0",
    "train.precision=fp32",
    "run.device=cpu",
    "run.log_every=4",
    "sampler.steps=2",
]
SMALL = [
    "study.strategies=[full,zero_shot]",
    "study.rates=[1]",
    "study.folds=3",
    "study.sizes=[]",
    "study.validation_draws=16",
    "study.test_draws=32",
    "study.audit_images=0",
    "study.race=false",
]
WHOLE = [
    "study.strategies=[full,linear_probe,zero_shot]",
    "study.rates=[1,3]",
    "study.sizes=[10]",
    "study.audit_images=10",
]


def images(folder: Path, n: int, first: int = 0) -> Path:
    """n images of one kind."""
    folder.mkdir(parents=True)
    for k in range(n):
        smooth(first + k, 8).save(folder / f"{k}.png")
    return folder


def source(root: Path, folder: Path, steps: int = 20) -> Path:
    """A run on these images that a study starts from."""
    own = ["model.channels=8", "data=folder", f"data.path={folder}", f"train.steps={steps}"]
    code, text = runs.train(root, own, tiny=[*TINY, "schedule=cosine", "parameterization=velocity"])
    assert code == 0, text
    return runs.directory_of(root, "custom")


def command(folder: Path, source: Path, *more: str) -> list[str]:
    """The arguments of train.py beside those of TINY."""
    start = ["-m", "+experiment=which_layers", f"data.path={folder}", f"source.from={source}"]
    set_anew = {line.split("=")[0] for line in more}
    small = [line for line in SMALL if line.split("=")[0] not in set_anew]
    return [*start, *small, *more]


def answer_of(root: Path) -> dict[str, Any]:
    """What the one study below root came to, without where it lies."""
    [path] = root.glob("runs/which_layers-*/study/answer.json")
    return json.loads(path.read_text().replace(str(root), "ROOT"))


def folder_of(root: Path) -> Path:
    [found] = root.glob("runs/which_layers-*")
    return found


def records(root: Path) -> Sequence[dict[str, Any]]:
    """How the cells of the study ended, in their order."""
    study = folder_of(root) / "study"
    count = len(json.loads((study / "sweep.json").read_text())["cells"])
    return [json.loads((study / f"{n}.json").read_text()) for n in range(count)]
