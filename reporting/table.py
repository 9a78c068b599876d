"""Runs as rows: one for each strategy and setting, over its seeds; and the floors beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from evaluation.intervals import over_seeds, paired, paired_over_seeds
from reporting.columns import FLOORS, HELD_OUT, KID, TEST_LOSS, Column
from reporting.numbers import MISSING, interval, number
from reporting.runs import Run, Value, floors_of
from runtime.results import varied


class Cell(NamedTuple):
    """value: the mean over n seeds. low, high: Student's t over the seeds, or with one of them the evaluation's own interval."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    why: str = ""

    def text(self, column: Column) -> str:
        if self.value is None:
            return MISSING
        if column.percent:
            return number(*self.hundredfold) + "%"
        return column.text(self.value) if column.text else number(self.value, self.low, self.high, column.signed)

    def band(self, column: Column) -> str:
        if self.value is None or self.low is None:
            return ""
        if column.percent:
            return interval(*self.hundredfold)
        if column.text:
            return f"[{column.text(self.low)}, {column.text(self.high)}]"
        return interval(self.value, self.low, self.high, column.signed)

    @property
    def hundredfold(self) -> tuple[float, float | None, float | None]:
        return tuple(None if v is None else 100 * v for v in self[:3])

    @property
    def source(self) -> str:
        """What the interval is one of."""
        if self.value is None:
            return self.why
        if self.low is None:
            return f"{self.n} seeds" if self.n > 1 else "one run, no interval"
        return f"95% t interval over {self.n} seeds" if self.n > 1 else "one run; 95% bootstrap interval over its images"


@dataclass(frozen=True)
class Row:
    """settings: those that vary, "" for none. situation: those of them that say what the data are. runs: all of them."""

    name: str
    settings: dict[str, Any]
    runs: Sequence[Run]

    @property
    def situation(self) -> tuple[tuple[str, Any], ...]:
        return tuple((path, value) for path, value in self.settings.items() if path.startswith("data."))

    @property
    def finished(self) -> bool:
        return any(run.result.finished for run in self.runs)

    @property
    def trained(self) -> bool:
        """Steps were taken: not in a floor, nor in the source as it is."""
        return any(run.result.values.get("step") for run in self.runs)

    @property
    def from_scratch(self) -> bool:
        """Nothing of a source was copied, or there was none."""
        source = self.runs[0].result.config.get("source", {})
        return source.get("include") == [] or source.get("from", "") is None

    @property
    def counted(self) -> list[Run]:
        """The finished runs, or all where there are none."""
        return [run for run in self.runs if run.result.finished] or list(self.runs)

    @property
    def label(self) -> str:
        return " ".join([self.name, *(f"{path}={value}" for path, value in self.settings.items())])

    def single(self, run: Run) -> Row:
        """A row of this one run."""
        return Row(self.name, self.settings, [run])

    def by_seed(self, column: Column) -> dict[Any, Value]:
        found = {run.result.seed: column.read(run) for run in self.counted}
        return {seed: value for seed, value in found.items() if value is not None}

    def value(self, column: Column) -> float | None:
        return self.cell(column).value

    def cell(self, column: Column) -> Cell:
        values = list(self.by_seed(column).values())
        if not values:
            return Cell(None, None, None, 0, column.why(self.counted[0]))
        if len(values) == 1 or (not self.trained and len({v.value for v in values}) == 1):
            return Cell(*values[0][:3], 1)  # what the seed does not change was measured once
        return Cell(*over_seeds([v.value for v in values])[:3], len(values))


def rows(runs: Sequence[Run]) -> list[Row]:
    """By what the data are, and then the best first: by KID to the test images, where it is unknown by test loss, then by held-out loss."""
    paths = varied([run.result for run in runs])
    groups: dict[str, Row] = {}
    for run in runs:
        settings = run.result.settings()
        row = Row(run.result.strategy, {p: settings[p] for p in paths if p in settings}, [])
        groups.setdefault(row.label, row).runs.append(run)
    return sorted(groups.values(), key=lambda row: (numeric(row.situation), order(row)))


def order(row: Row) -> tuple:
    values = [row.value(column) for column in (KID, TEST_LOSS, HELD_OUT)]
    return (not row.finished, *((v is None, v or 0.0) for v in values), row.label)


def floors(runs: Sequence[Run]) -> list[Row]:
    """One row for each floor and each setting of the data. Runs of one seed and one training set have the same floors."""
    paths = [path for path in varied([run.result for run in runs]) if path.startswith("data.")]
    groups: dict[str, Row] = {}
    for run in (r for r in runs if r.evaluation):
        settings = {p: run.result.settings().get(p) for p in paths}
        for name, floor in floors_of(run).items():
            row = groups.setdefault(json.dumps([name, settings]), Row(name, settings, []))
            if floor.evaluation.content not in [f.evaluation.content for f in row.runs]:
                row.runs.append(floor)
    names = [*FLOORS, *(row.name for row in groups.values())]
    return sorted(groups.values(), key=lambda row: (numeric(row.situation), names.index(row.name)))


def known(columns: Sequence[Column], table: Sequence[Row]) -> list[Column]:
    """The columns of which something is known."""
    return [column for column in columns if any(row.value(column) is not None for row in table)]


def situations(table: Sequence[Row]) -> dict[tuple, list[Row]]:
    """What the data are -> its contenders: of each strategy the row of its lowest held-out loss, which is of validation images, or of
    its lowest KID where no such loss is known. The best first."""
    found: dict[tuple, dict[str, Row]] = {}
    for row in (r for r in table if r.finished):
        best = found.setdefault(row.situation, {})
        if row.name not in best or chosen_by(row) < chosen_by(best[row.name]):
            best[row.name] = row
    return {key: sorted(best.values(), key=order) for key, best in sorted(found.items(), key=lambda item: numeric(item[0]))}


def chosen_by(row: Row) -> tuple:
    loss = row.value(HELD_OUT)
    return (loss is None, loss or 0.0, order(row))


def numeric(situation: tuple) -> list[tuple]:
    """Sorts data.n_train=10 before 100, and null, which is all of them, last."""
    return [(value is None, not isinstance(value, int | float), value if isinstance(value, int | float) else 0, str(value))
            for _, value in situation]


def difference(row: Row, other: Row, column: Column) -> Cell:
    """row - other with its paired interval: Student's t over the seeds that both have, or with one seed the differences of the
    bootstrap's replicates, which were drawn alike."""
    ours, theirs = row.by_seed(column), other.by_seed(column)
    seeds = sorted(ours.keys() & theirs.keys(), key=str)
    if not seeds:
        return Cell(None, None, None, 0, "no seed in common")
    if len(seeds) > 1:
        mean, low, high, n = paired_over_seeds({s: ours[s].value for s in seeds}, {s: theirs[s].value for s in seeds})
        return Cell(mean, low, high, n)
    a, b = ours[seeds[0]], theirs[seeds[0]]
    band = paired(a.replicates, b.replicates) if len(a.replicates) == len(b.replicates) > 1 else (None, None)
    return Cell(a.value - b.value, *band, 1)
