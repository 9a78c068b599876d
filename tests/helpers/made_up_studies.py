"""Comparisons whose runs are made up: losses by a formula, and no training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from studies.cells import Outcome
from studies.which_layers.images import Images
from studies.which_layers.plan import Plan, Price, looks_of
from studies.which_layers.rounds import Comparison
from studies.which_layers.runs import Judged

# (strategy, repetition, size, rate) -> (the loss of each test image, step that is chosen)
LossOf = Callable[[str, int, int | None, float], tuple[np.ndarray, int]]


def plan(**changes) -> Plan:
    own = {
        "folds": 5,
        "repeats": 5,
        "sizes": [],
        "rates": [1.0],
        "rates_once": False,
        "steps": 40,
        "looks": looks_of(40),
        "validation_draws": 64,
        "test_draws": 64,
        "audit_images": 0,
        "sampler_steps": 20,
    }
    return Plan(**own | changes)


class MadeUp:
    """Reads runs that are names: STRATEGY/REPETITION/SIZE/RATE."""

    def __init__(self, loss_of: LossOf, patients: int | None = None):
        self.loss_of, self.patients = loss_of, patients

    def losses(self, run: Path) -> dict[int, float]:
        losses, _ = self.loss_of(*parsed(run))
        return {1: float(losses.mean())}

    def judged(self, run: Path, rate: float) -> Judged:
        name, k, size, rate = parsed(run)
        losses, step = self.loss_of(name, k, size, rate)
        n = len(losses)
        units = losses if self.patients is None else losses.reshape(self.patients, -1).mean(1)
        count = len(units)
        # alike for all, as the bootstrap
        rows = np.random.default_rng(7).integers(0, count, (200, count))
        replicates, mean = units[rows].mean(1).tolist(), float(losses.mean())
        of_images = None if self.patients is None else n
        trained_on = size or 64
        return Judged(
            run, rate, mean, replicates, count, trained_on, step, 40, 0.1, 0.01, of_images=of_images
        )

    def forget(self, run: Path) -> None:
        pass


def parsed(run: Path) -> tuple[str, int, int | None, float]:
    name, k, size, rate = run.parts[-4:]
    return name, int(k), None if size == "all" else int(size), float(rate)


def compared(
    loss_of: LossOf,
    strategies: Sequence[str] = ("full", "freeze_decoder", "zero_shot"),
    race: bool = False,
    patients: int | None = None,
    **of_plan,
) -> Comparison:
    """Driven to its end. patients: of how many the test images of a repetition are, as many of
    each, one after the other; None where each is alone."""
    names = {name: [f"transfer={name}"] for name in strategies}
    images = Images("of 100", 100, 0, ["validation", "test"])
    untrained = [name for name in strategies if name == "zero_shot"]
    prices = dict.fromkeys(names, Price(1.0, 0.1, 0.01))
    comparison = Comparison(
        plan(**of_plan), images, names, untrained, 1e-3, prices, MadeUp(loss_of, patients), race
    )
    rounds, outcomes = comparison.rounds(), None
    while True:
        try:
            asked = rounds.send(outcomes)
        except StopIteration:
            return comparison
        outcomes = [Outcome(_run(cell.overrides), "", 1.0) for cell in asked.cells]


def _run(overrides: Sequence[str]) -> Path:
    said = dict(line.split("=", 1) for line in overrides if "[" not in line)
    size = said.get("data.n_train", "all")
    return Path(said["transfer"], said["seed"], size, said["optimizer.lr"])
