"""Drives a study: launches a round, waits, hands over what its cells came to, launches the next.
The rounds follow from the plan and from outcomes alone, so a driver that is started again finds the
cells that have ended, by their names, and goes on with the others. Their numbers may have shifted:
a cell that failed before and ends now has others follow it."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from config.overrides import resolved
from runtime.config_schema import build
from runtime.errors import one_message
from runtime.files import read_json, write_json
from runtime.hydra_private import runs_here
from studies.cells import Cell, Context, Outcome
from training.sweep_jobs import jobs_watched
from training.sweep_records import SWEEP, Sweep, read_sweep

ENDED = "ended.json"


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
    ended: dict[str, Any] | None = None
    cells, outcomes = list[Cell](), None
    while True:
        try:
            asked = rounds.send(outcomes)
        except StopIteration:
            return
        if ended is None:  # nothing is written of a study that is refused before its first cell
            ended = _ended_before(folder)
        numbers = range(len(cells), len(cells) + len(asked.cells))
        cells += asked.cells
        assert len({cell.name for cell in cells}) == len(cells), "cells are found by their names"
        expected = [*(cell.seconds for cell in cells), asked.later]
        sweep = Sweep(folder, [cell.name for cell in cells], expected)
        left = [n for n in numbers if not _take(sweep, n, ended)]
        write_json(folder / SWEEP, {"cells": sweep.cells, "seconds": sweep.seconds})
        _launch(sweep, {n: [*base, *cells[n].overrides] for n in left}, launcher)
        outcomes = [_outcome(sweep.record(n)) for n in numbers]


def _ended_before(folder: Path) -> dict[str, Any]:
    """Cell -> its record, of all that drivers before this one saw end well. They are kept in a file
    by their names, before a number is given to another cell."""
    path = folder / ENDED
    before = read_sweep(folder) if (folder / SWEEP).exists() else Sweep(folder, [])
    ended = read_json(path, "give the command again") if path.exists() else {}
    for name, record in zip(before.cells, before.records(), strict=True):
        if record and record["status"] == "finished":
            ended[name] = record
    write_json(path, ended)
    return ended


def _take(sweep: Sweep, number: int, ended: Mapping[str, Any]) -> bool:
    """Whether this cell has ended before, and its run is there; its record is then this number's.
    One that failed is tried again."""
    path, record = sweep.folder / f"{number}.json", ended.get(sweep.cells[number])
    if record and Path(record["run"]).is_dir():
        write_json(path, record)
        return True
    path.unlink(missing_ok=True)
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
