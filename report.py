"""What the runs of an experiment came to: python report.py runs/EXPERIMENT"""

from __future__ import annotations

import sys
from pathlib import Path

from runtime.checkpoint import all_checkpoints
from runtime.errors import UserError, near, one_message
from runtime.log import read_metrics, table

HEADING = ["run", "steps", "held-out loss", "trained", "hours", "samples"]


def row(directory: Path) -> list[str]:
    """One run as a line of the table; "-" for what it has not reached yet."""
    judged = [r for r in read_metrics(directory / "metrics.jsonl") if "validation/loss" in r]
    checkpoints = all_checkpoints(directory / "checkpoints")
    pictures = sorted((directory / "samples").glob("*.png"))
    return [directory.name, str(checkpoints[-1].step) if checkpoints else "-", f"{judged[-1]['validation/loss']:.4f}" if judged else "-",
            trained_share(directory), f"{checkpoints[-1].state['seconds'] / 3600:.2f}" if checkpoints else "-",
            str(pictures[-1]) if pictures else "-"]


def trained_share(directory: Path) -> str:
    """From plan.csv: the share of the parameters that train at some step."""
    path = directory / "plan.csv"
    if not path.exists():
        return "-"
    sizes: dict[str, int] = {}
    trained: set[str] = set()
    for line in path.read_text().splitlines()[1:]:
        name, shape, _, rate, *_ = line.split(",")
        size = 1
        for n in shape.split("x"):
            size *= int(n)
        sizes[name] = size
        if float(rate) > 0:
            trained.add(name)
    return f"{100 * sum(sizes[n] for n in trained) / sum(sizes.values()):.1f}%"


@one_message
def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise UserError("usage: python report.py runs/EXPERIMENT")
    folder = Path(arguments[0])
    if not folder.is_dir():
        siblings = [str(p) for p in folder.parent.glob("*") if p.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"{folder}: no such folder; {near(str(folder), siblings)}")
    runs = sorted(p.parent for p in folder.glob("*/identity.json"))
    if not runs:
        raise UserError(f"{folder}: no runs in it. Give the folder of an experiment, runs/EXPERIMENT.")
    print(table([HEADING, *map(row, runs)]))


if __name__ == "__main__":
    main(sys.argv[1:])
