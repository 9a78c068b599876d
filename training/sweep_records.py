"""Which cells a sweep has, and how they ended.

runs/EXPERIMENT/sweeps/NAME-HASH/: sweep.json (which cells there are), N.json (how cell N ended;
absent until it has), slurm/ (what its jobs print)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.files import Damaged, read_json
from runtime.log import table
from training.result import Result, read_result

log = logging.getLogger("sweep")
SWEEP = "sweep.json"


@dataclass(frozen=True)
class Sweep:
    """cells: what each sets on its own, such as "transfer=lora seed=0". seconds: that each is
    expected to take, and last those of what is to come, where a plan says so (studies)."""

    folder: Path
    cells: Sequence[str]
    seconds: Sequence[float] = ()

    def record(self, number: int) -> dict[str, Any] | None:
        """How a cell ended: status, message or run, seconds (since it was last started). None where
        it has not."""
        path = self.folder / f"{number}.json"
        try:
            return read_json(path, "the same command makes it again", keys=["status", "seconds"])
        except FileNotFoundError:
            return None
        except Damaged as error:
            return {"status": "failed", "message": str(error), "seconds": 0}

    def records(self) -> list[dict[str, Any] | None]:
        return [self.record(number) for number in range(len(self.cells))]

    def line(self, number: int, record: dict[str, Any], count: int) -> str:
        if record["status"] == "finished":
            what = f"held-out loss {_result_of(record)['held-out loss']}"
        else:
            what = record["message"].split("\n")[0]
        spent = timedelta(seconds=round(record["seconds"]))
        how_far = self._how_far() or f"{count}/{len(self.cells)}"
        return f"[{how_far}] {self.cells[number]}: {record['status']}, {what}, {spent}"

    def _how_far(self) -> str:
        """By the plan, at the pace of the cells that have ended; "" where there is no plan."""
        ended = [(n, r) for n, r in enumerate(self.records()) if r and self.seconds]
        planned, total = sum(self.seconds[n] for n, _ in ended), sum(self.seconds)
        if not planned:
            return ""
        took = sum(record["seconds"] for n, record in ended if self.seconds[n])
        left = timedelta(seconds=round((total - planned) * took / planned))
        return f"{planned / total:.0%}, {left} left"

    def table(self) -> str:
        rows = []
        for name, record in zip(self.cells, self.records(), strict=True):
            status = record["status"] if record else "not finished"
            rows.append({"cell": name, **_result_of(record), "status": status})
        return table([rows[0], *(row.values() for row in rows)])


def _result_of(record: dict[str, Any] | None) -> dict[str, str]:
    """Columns of the cell's run; empty ones where it failed or has not ended, or where a file of
    the run is damaged, which a report tells."""
    result = Result(Path(), {}, {})
    try:
        if record and "run" in record:
            result = read_result(Path(record["run"]))
    except UserError as error:
        log.warning(error)
    return result.cells()


def read_sweep(folder: Path) -> Sweep:
    mend = "the command of the sweep writes it anew"
    content = read_json(folder / SWEEP, mend, keys=["cells"])
    return Sweep(folder, content["cells"], content.get("seconds", ()))
