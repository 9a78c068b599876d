"""One table of a paper, trained, evaluated, judged and printed."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runtime.errors import UserError
from runtime.log import table
from studies.ablation.judge import judge
from studies.ablation.measured import Found, found_of
from studies.ablation.page import Page, write
from studies.ablation.settings import Claim, Measure, Row, Size, Sizes, check_names, of_size
from studies.cells import Cell, Context, Outcome, Round, Rounds

Training = tuple[tuple[str, ...], int]  # overrides of a row's training, and the seed


@dataclass(frozen=True)
class Ablation:
    """See conf/ablation and docs/ablations.md.

    Args:
        paper, table: whose numbers these are.
        size: full or small.
        shows, cannot: what the small size can show, and what it cannot.
    """

    paper: str
    table: str
    size: Literal["full", "small"]
    sizes: Sizes
    measures: Sequence[Measure]
    rows: Sequence[Row]
    claims: Sequence[Claim]
    shows: str
    cannot: str

    def __post_init__(self) -> None:
        rows = [row.name for row in self.rows]
        measures = [measure.name for measure in self.measures]
        for row in self.rows:
            check_names([e.measure for e in row.expected], measures, f"expected of {row.name}")
        for claim in self.claims:
            check_names([claim.less, claim.than], rows, f"claims, {claim.text}")
            check_names([claim.by], measures, f"claims, {claim.text}")
        for name in ("full", "small"):
            size: Size = getattr(self.sizes, name)
            check_names(size.measures, measures, f"sizes.{name}.measures")
            check_names([claim.by for claim in self.claims], size.measures, f"claims at {name}")
            check_names(size.rows or (), rows, f"sizes.{name}.rows")

    @property
    def chosen(self) -> Size:
        return self.sizes.small if self.size == "small" else self.sizes.full

    @property
    def measured(self) -> list[Measure]:
        """At this size, in its order: of several checkpoints the best in the first counts."""
        by_name = {measure.name: measure for measure in self.measures}
        return [by_name[name] for name in self.chosen.measures]

    @property
    def compared(self) -> list[Row]:
        """The rows of this size."""
        asked = self.chosen.rows
        return [row for row in self.rows if asked is None or row.name in asked]

    def __call__(self, context: Context) -> Rounds:
        if any(line.split("=")[0] == "seed" for line in context.arguments):
            raise UserError(
                f"seed=: the seeds of a table are study.sizes.{self.size}.seeds=[0,1,2]."
            )
        print(self._told(), flush=True)
        trainings = self.trainings()
        cells = self.cells(context.arguments, trainings)
        outcomes = yield Round(cells)
        ended = dict(zip(trainings, outcomes, strict=True))
        found = self._found(ended)
        judged = judge(self.claims, found, {m.name: m.path for m in self.measures})
        page = Page(self, context, found, judged)
        print(f"\n{page.text}\n", flush=True)
        print("\n".join(map(str, write(page))), flush=True)
        self._raise_failures(cells, outcomes, found)

    def trainings(self) -> list[Training]:
        """Each once, those of the first seed first."""
        of_rows = [tuple(of_size(row.train, self.size)) for row in self.compared]
        return [(own, seed) for seed in self.chosen.seeds for own in dict.fromkeys(of_rows)]

    def rows_of(self, own: Sequence[str]) -> list[Row]:
        """That these overrides train."""
        return [r for r in self.compared if tuple(of_size(r.train, self.size)) == tuple(own)]

    def cells(self, arguments: Sequence[str], trainings: Sequence[Training]) -> list[Cell]:
        """arguments: of the command line, which each cell begins with. What they set, and all of a
        group that they choose, such as data=folder, is not the size's."""
        size, said = self.chosen, {_key(line) for line in arguments}
        common = [line for line in size.train if not {_key(line), _group(line)} & said]
        seconds = size.hours * 3600 / len(trainings)
        cells = []
        for own, seed in trainings:
            rows = self.rows_of(own)
            lines = ",".join(f'"{line}"' for line in map(self.evaluation_of, rows))
            name = rows[0].name + f" and {len(rows) - 1} more" * (len(rows) > 1)
            overrides = [*common, *own, f"seed={seed}", f"run.evaluate=[{lines}]"]
            cells.append(Cell(f"{name}, seed {seed}", overrides, seconds))
        return cells

    def evaluation_of(self, row: Row) -> str:
        """The command line of evaluate.py; the row's own come before those of its size."""
        own = of_size(row.evaluate, self.size)
        said = {_key(line) for line in own}
        common = [line for line in self.chosen.evaluate if _key(line) not in said]
        return shlex.join([*common, *own])

    def _found(self, ended: dict[Training, Outcome]) -> dict[str, Found]:
        return {
            row.name: found_of(
                {
                    seed: outcome
                    for (own, seed), outcome in ended.items()
                    if own == tuple(of_size(row.train, self.size))
                },
                self.evaluation_of(row),
                self.measured[0],
            )
            for row in self.compared
        }

    def _told(self) -> str:
        size, count = self.chosen, len(self.trainings())
        lines: list[list[Any]] = [
            ["table", f"{self.paper}, {self.table}"],
            ["rows", "; ".join(row.name for row in self.compared)],
            ["runs", f"{count}, seeds {', '.join(map(str, size.seeds))}"],
            ["size", f"{self.size}, {hours_text(self.size, size.hours)}"],
            ["measures", ", ".join(size.measures)],
        ]
        if self.size == "small":
            lines += [["shows", self.shows], ["cannot show", self.cannot]]
        return "\n" + table(lines) + "\n"

    def _raise_failures(
        self, cells: Sequence[Cell], outcomes: Sequence[Outcome], found: dict[str, Found]
    ) -> None:
        """UserError for what failed otherwise than by diverging, which is a result."""
        bad = {message for each in found.values() for message in each.failed.values()}
        failed = [
            f"\n  {cell.name}: {outcome.message}"
            for cell, outcome in zip(cells, outcomes, strict=True)
            if outcome.message in bad and outcome.run is None
        ]
        if failed:
            raise UserError(
                f"{len(failed)} of {len(cells)} runs failed; the same command tries them "
                f"again:{''.join(failed)}"
            )


def hours_text(size: str, hours: float) -> str:
    if size == "small":
        return f"about {hours * 60:.0f} minutes on two quiet CPU cores"
    return f"about {hours:g} hours on one A100 (an estimate)"


def _key(line: str) -> str:
    return line.split("=")[0].lstrip("+")


def _group(line: str) -> str:
    return _key(line).split(".")[0]
