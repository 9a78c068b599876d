"""Drives a study: launches a round, waits, hands over what its cells came to, launches the next.
The rounds follow from the plan and from outcomes alone, so a driver that is started again finds the
cells that have ended, and goes on with the others."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from config.overrides import resolved
from runtime.config_schema import build
from runtime.errors import one_message
from runtime.files import write_json
from runtime.hydra_private import runs_here
from studies.cells import Cell, Context, Outcome
from training.sweep import SWEEP, Sweep, jobs_watched, read_sweep


@one_message
def drive(config: DictConfig, arguments: Sequence[str], launcher: Launcher) -> None:
    """From the first round to the last.

    Args:
        config: Hydra's, with section `study`.
        arguments: of the command line.
    """
    folder = Path(config.hydra.sweep.dir)
    raw = resolved(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
    context = Context(arguments, raw, folder, folder.parent)
    rounds = build(raw["study"], ["studies"], "study")(context)
    base = [*arguments, f"run.experiment={folder.parent.name}"]
    before, cells = _forget_failures(folder), list[Cell]()
    outcomes: Sequence[Outcome] | None = None
    while True:
        try:
            asked = rounds.send(outcomes)
        except StopIteration:
            return
        numbers = range(len(cells), len(cells) + len(asked.cells))
        cells += asked.cells
        expected = [*(cell.seconds for cell in cells), asked.later]
        sweep = Sweep(folder, [cell.name for cell in cells], expected)
        left = [n for n in numbers if not _has_ended(sweep, n, before)]
        write_json(folder / SWEEP, {"cells": sweep.cells, "seconds": sweep.seconds})
        _launch(sweep, {n: [*base, *cells[n].overrides] for n in left}, launcher)
        outcomes = [_outcome(sweep.record(n)) for n in numbers]


def _forget_failures(folder: Path) -> Sequence[str]:
    """Cells that failed are tried again by each driver. The names of those that there were."""
    before = read_sweep(folder)
    for number, record in enumerate(before.records()):
        if record and record["status"] != "finished":
            os.remove(folder / f"{number}.json")
    return before.cells


def _has_ended(sweep: Sweep, number: int, before: Sequence[str]) -> bool:
    """Whether a driver before this one saw the end of this very cell, and its run is there."""
    record = sweep.record(number)
    same = number < len(before) and before[number] == sweep.cells[number]
    if record and same and Path(record["run"]).is_dir():
        return True
    (sweep.folder / f"{number}.json").unlink(missing_ok=True)
    return False


def _launch(sweep: Sweep, jobs: dict[int, list[str]], launcher: Launcher) -> None:
    """Cell by its number -> its overrides. In stretches of neighbours, as Hydra's launchers number
    what they launch."""
    stretches = list[list[int]]()
    for number in jobs:
        if not stretches or stretches[-1][-1] != number - 1:
            stretches.append([])
        stretches[-1].append(number)
    for stretch in stretches:
        here = contextlib.nullcontext()
        with here if runs_here(launcher) else jobs_watched(sweep, stretch):
            for job in launcher.launch([jobs[n] for n in stretch], initial_job_idx=stretch[0]):
                _ = job.return_value  # raises what stopped the process of the cell


def _outcome(record: dict[str, Any] | None) -> Outcome:
    if record is None:
        return Outcome(None, "it did not end", 0.0)
    run = Path(record["run"]) if "run" in record else None
    return Outcome(run, record.get("message", ""), record["seconds"])
