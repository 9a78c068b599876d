"""What not stopping costs, from the studies of which_layers whose runs are at hand:

    python -m benchmarks.stopping runs/which_layers-HASH [...]

Of each strategy and seed the run at its chosen rate, which went to the last step; its validation
losses where it was stopped, at twice that step, and at the last. In percent of full's loss where
that was stopped, with 95% intervals over the seeds (Student's t): first by how much each strategy's
loss rises, then each minus full, both stopped and both at the last step. The last column is of who
has no images to stop by: its loss at the step at which it was stopped on other kinds of images, as
many (the median of their medians in studies/regret.csv), minus full's where that was stopped. The
stop is chosen on the images that tell the loss there, which makes a stopped run look a little
better than it is; so does the rate for all.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import median_low

import yaml

from metrics.over_seeds import mean_over
from runtime.errors import UserError, script
from runtime.files import read_json
from runtime.log import table
from studies.regret import FULL, TABLE, comparisons, mean_text, read
from studies.which_layers.runs import OfRuns
from training.run_directory import IDENTITY

RUNS = "study/runs.csv"  # of a study at its end
Losses = Mapping[int, float]  # step -> validation loss, those of a run that trained
HEADS = ["strategy", "seeds", "at twice the step", "at the last", "- full, stopped", "- full, last"]
HEADS += ["as others stopped - full, stopped"]


def stopped(losses: Losses) -> int:
    return min(losses, key=lambda step: losses[step])


def at_twice(losses: Losses) -> float:
    """At the first look from twice the step on that it was stopped at, the last if none is."""
    later = [step for step in losses if step >= 2 * stopped(losses)]
    return losses[min(later, default=max(losses))]


def at_step(losses: Losses, step: int) -> float:
    """At the look that is nearest to it, by the ratio of the two."""
    return losses[min(losses, key=lambda look: abs(math.log(look / step)))]


def steps_elsewhere(study: Path) -> dict[str, int]:
    """strategy -> the median step at which it was stopped on other kinds of images, as many. Only
    those that trained."""
    first = read(study / RUNS)[0]
    name, n = first["images"], int(first["at_hand"])
    found: dict[str, list[int]] = {}
    for (images, at_hand), kind in comparisons(read(TABLE)).items():
        if at_hand == n and images != name:
            for strategy, step in kind.steps.items():
                found.setdefault(strategy, []).append(step)
    return {strategy: median_low(steps) for strategy, steps in found.items() if any(steps)}


def to_the_end(study: Path) -> dict[str, dict[int, Losses]]:
    """strategy -> seed -> losses, of the runs of a study that reached its last step: halving took
    the other rates no further than half of it."""
    found = [
        (yaml.safe_load(path.read_text()), path.parent) for path in study.glob("*/config.yaml")
    ]
    steps = max((config["train"]["steps"] for config, _ in found), default=0)
    runs: dict[str, dict[int, Losses]] = {}
    for config, run in found:
        losses = {step: loss for step, loss in OfRuns().losses(run).items() if step}
        if steps in losses:
            name = read_json(run / IDENTITY)["transfer"]["name"]
            assert config["seed"] not in runs.setdefault(name, {}), "one rate is left of several"
            runs[name][config["seed"]] = losses
    return dict(sorted(runs.items()))


def rows_of(
    found: Mapping[str, Mapping[int, Losses]], elsewhere: Mapping[str, int]
) -> list[list[str]]:
    """A line for each strategy, of the seeds that it and full have. elsewhere: strategy -> the step
    of other kinds of images, where there are any."""
    lines = [HEADS]
    for name, own in found.items():
        seeds = sorted(own.keys() & found[FULL].keys())
        pairs = [(own[seed], found[FULL][seed]) for seed in seeds]
        whole = sum(min(full.values()) for _, full in pairs) / len(pairs)
        changes = (
            [at_twice(a) - min(a.values()) for a, _ in pairs],
            [a[max(a)] - min(a.values()) for a, _ in pairs],
            [min(a.values()) - min(b.values()) for a, b in pairs],
            [a[max(a)] - b[max(b)] for a, b in pairs],
        )
        step = elsewhere.get(name)
        as_others = [at_step(a, step) - min(b.values()) for a, b in pairs] if step else []
        texts = [
            mean_text(mean_over([100 * c / whole for c in each])) if each else ""
            for each in (*changes, as_others)
        ]
        lines.append([name, str(len(seeds)), *texts])
    return lines


@script
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="+", type=Path, metavar="STUDY")
    for study in parser.parse_args().studies:
        if not (study / RUNS).exists():
            raise UserError(f"{study} is no study of which_layers that came to its end.")
        found = to_the_end(study)
        if len(found.get(FULL, {})) < 2:
            raise UserError(f"{study}: no two runs of {FULL} that reached the last step.")
        print(study, table(rows_of(found, steps_elsewhere(study))), "", sep="\n")


if __name__ == "__main__":
    main()
