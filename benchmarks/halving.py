"""Where choosing a rate by halving chooses otherwise than a full grid, from runs that were trained
to the end at every rate:

    python -m benchmarks.halving RUN [RUN ...]

Runs of one folder, strategy and seed that differ in optimizer.lr are one choice. Of each run the
validation losses along the way are read; halving sees those of the first quarter of the steps, then
of the first half of the better two, and the grid sees all of them. The price of a wrong choice is
the lowest validation loss at the chosen rate over that of the grid's.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import yaml

from runtime.errors import UserError, script
from runtime.files import read_json
from runtime.log import table
from studies.which_layers.plan import STAGES
from studies.which_layers.runs import OfRuns
from training.run_directory import IDENTITY

Losses = Mapping[int, float]  # step -> validation loss


def lowest(losses: Losses, until: float = math.inf) -> float:
    return min((loss for step, loss in losses.items() if step <= until), default=math.inf)


def by_halving(losses: Mapping[float, Losses]) -> float:
    """The rate that is left when the worst was left out after each stage."""
    left, steps = list(losses), max(max(own) for own in losses.values())
    for share in STAGES[-len(left) :][:-1]:
        left = sorted(left, key=lambda rate: lowest(losses[rate], share * steps))[:-1]
    return left[0]


def choices(runs: list[Path]) -> dict[tuple[str, str, int], dict[float, Losses]]:
    """(folder of images and number, strategy, seed) -> rate -> losses."""
    found: dict[tuple[str, str, int], dict[float, Losses]] = {}
    for run in runs:
        config = yaml.safe_load((run / "config.yaml").read_text())
        data = config["data"]
        name = str(data.get("path") or data["_target_"].rpartition(".")[2])
        images = f"{Path(name).name}, {data['n_train']}"
        key = images, read_json(run / IDENTITY)["transfer"]["name"], config["seed"]
        losses = {step: loss for step, loss in OfRuns().losses(run).items() if step}
        found.setdefault(key, {})[config["optimizer"]["lr"]] = losses
    return {key: by_rate for key, by_rate in sorted(found.items()) if len(by_rate) > 1}


def rows_of(found: Mapping[tuple[str, str, int], Mapping[float, Losses]]) -> list[list[str]]:
    lines = [["images", "strategy", "seed", "by halving", "of the grid", "loss over the grid's"]]
    for (images, strategy, seed), losses in found.items():
        rate, best = by_halving(losses), min(losses, key=lambda r: lowest(losses[r]))
        over = lowest(losses[rate]) / lowest(losses[best]) - 1
        lines.append([images, strategy, str(seed), f"{rate:.3g}", f"{best:.3g}", f"{over:+.1%}"])
    return lines


@script
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    lines = rows_of(choices(parser.parse_args().runs))
    if len(lines) == 1:
        raise UserError("these runs have no two rates of one strategy, images and seed.")
    print(table(lines))
    wrong = sum(line[3] != line[4] for line in lines[1:])
    print(f"halving chose another rate than the grid in {wrong} of {len(lines) - 1}")


if __name__ == "__main__":
    main()
