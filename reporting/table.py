"""Runs as rows: one for each strategy and setting, over its seeds; the baselines beside them; and
how two rows differ."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from metrics.bootstrap import Mean, mean_over, moderated, share_interval, spread_of
from metrics.memorization import Band
from reporting.columns import BASELINES, HELD_OUT, KID, TEST_LOSS, Column
from reporting.numbers import MISSING, interval, number
from reporting.runs import Run, Value, baselines_of
from training.result import varied

# behind an interval that is of the images alone, beside those that hold other trainings too
OF_IMAGES = "°"
# Baselines:
REAL, HALVES = "train against test", "half of test against the other half"
UNTOUCHED = "untouched source"


class Cell(NamedTuple):
    """value: the mean over n trainings. low, high: its 95% interval. unit: what is counted, seeds
    or drawn subsets. images: whether the interval holds that of the images; seeds: whether it holds
    that of other trainings."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    why: str = ""
    unit: str = "seed"
    images: bool = False

    @property
    def seeds(self) -> bool:
        return self.n > 1

    @property
    def counted(self) -> str:
        return f"{self.n} {self.unit}s" if self.n > 1 else f"one {self.unit}"

    def text(self, column: Column) -> str:
        if self.value is None:
            return MISSING
        if column.percent:
            return number(*self.hundredfold) + "%"
        return (
            column.text(self.value)
            if column.text
            else number(self.value, self.low, self.high, column.signed)
        )

    def band(self, column: Column) -> str:
        if self.value is None or self.low is None:
            return ""
        if column.percent:
            return interval(*self.hundredfold)
        if column.text:
            return f"[{column.text(self.low)}, {column.text(self.high)}]"
        return interval(self.value, self.low, self.high, column.signed)

    def marked(self, column: Column) -> str:
        """The interval as it stands in a table: with a mark where no other training is in it."""
        band = self.band(column)
        return band + OF_IMAGES if band and not self.seeds else band

    @property
    def hundredfold(self) -> tuple[float, float | None, float | None]:
        return tuple(None if v is None else 100 * v for v in self[:3])

    def text_and_band(self, column: Column) -> str:
        return f"{self.text(column)} {self.band(column)}".strip()

    def in_words(self, column: Column) -> str:
        """With its interval and over how many trainings it is."""
        return f"{self.text_and_band(column)} ({self.counted})"

    def in_table(self, column: Column) -> str:
        return f"{self.text(column)} {self.marked(column) if column.band else ''}".strip()

    @property
    def explanation(self) -> str:
        """Of what the interval is."""
        if self.value is None:
            return self.why
        if self.low is None:
            return self.counted if self.seeds else "one run, no interval"
        if not self.seeds:
            return "one run; 95% bootstrap interval over its images, no other training in it"
        return (
            "95% t interval over "
            f"{self.counted}{' and the images' if self.images else '; the images are not in it'}"
        )


@dataclass(frozen=True)
class Row:
    """settings: those that vary, "" for none. situation: those of them that say what the data are.
    runs: all of them."""

    name: str
    settings: dict[str, Any]
    runs: Sequence[Run]

    @property
    def situation(self) -> tuple[tuple[str, Any], ...]:
        return tuple(
            (path, value) for path, value in self.settings.items() if path.startswith("data.")
        )

    @property
    def finished(self) -> bool:
        return any(run.result.finished for run in self.runs)

    @property
    def trained(self) -> bool:
        """Steps were taken: not in a baseline, nor in the source as it is."""
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

    @property
    def title(self) -> str:
        """The name with the settings that the strategy contends with."""
        rest = [f"{p.split('.')[-1]} {v}" for p, v in self.settings.items() if p[:5] != "data."]
        return self.name + (f" ({', '.join(rest)})" if rest else "")

    def single(self, run: Run) -> Row:
        """A row of this one run."""
        return Row(self.name, self.settings, [run])

    @property
    def unit(self) -> str:
        """What is counted: subsets where several were drawn and not each by its run's seed; else
        seeds."""
        subsets = {run.result.subset for run in self.counted}
        crossed = any(run.result.subset not in (None, run.result.seed) for run in self.counted)
        return "subset" if len(subsets) > 1 and crossed else "seed"

    @property
    def counted_text(self) -> str:
        """Over how many finished trainings the row is the mean."""
        runs = len(self.counted)
        if self.unit == "seed":
            return str(runs)
        return f"{len({run.result.subset for run in self.counted})} subsets, {runs} runs"

    def by_seed(self, column: Column) -> dict[Any, Value]:
        """Of each seed, or of each drawn subset the mean of its trainings."""
        found = [
            (run.result, value) for run in self.counted if (value := column.read(run)) is not None
        ]
        if self.unit == "seed":
            return {result.seed: value for result, value in found}
        subsets = dict.fromkeys(result.subset for result, _ in found)
        return {
            subset: mean_value([value for result, value in found if result.subset == subset])
            for subset in subsets
        }

    def value(self, column: Column) -> float | None:
        values = self.by_seed(column).values()
        return sum(v.value for v in values) / len(values) if values else None

    def constant(self, column: Column) -> bool:
        """What no seed changes was measured once."""
        values = [v.value for v in self.by_seed(column).values()]
        return (
            not self.trained
            and bool(values)
            and all(math.isclose(v, values[0], rel_tol=1e-9) for v in values)
        )

    def cell(self, column: Column) -> Cell:
        values = list(self.by_seed(column).values())
        if not values:
            return Cell(None, None, None, 0, column.why(self.counted[0]))
        replicates, images = paired_replicates(values)
        if len(values) == 1 or self.constant(column):
            return Cell(*with_share_interval(column, values[0][:3], images), 1, images=True)
        mean = mean_over([v.value for v in values], replicates, images)
        low, high = mean.interval()
        # baselines of earlier versions: all that any holds
        if not replicates and (bands := [v for v in values if v.low is not None]):
            low, high = min(low, *(v.low for v in bands)), max(high, *(v.high for v in bands))
            return Cell(mean.value, low, high, mean.n, unit=self.unit, images=True)
        return Cell(
            *with_share_interval(column, (mean.value, low, high), images),
            mean.n,
            unit=self.unit,
            images=bool(replicates),
        )


def with_share_interval(column: Column, found: Sequence[float | None], images: int | None) -> Band:
    """Of a share: found, with the width that a bootstrap of images that all are alike has not."""
    value, low, high = found
    return (
        Band(value, *share_interval(value, low, high, images))
        if column.percent and images and low is not None
        else Band(*found)
    )


def mean_value(values: Sequence[Value]) -> Value:
    replicates, images = paired_replicates(values)
    means = [sum(r) / len(values) for r in zip(*replicates, strict=True)]
    return Value(sum(v.value for v in values) / len(values), replicates=means, images=images)


def paired_replicates(values: Sequence[Value]) -> tuple[list[Sequence[float]], int | None]:
    """Their replicates, () where they cannot be paired or are of one image, which has no others to
    draw; and the fewest images."""
    lengths, images = (
        {len(v.replicates) for v in values},
        min((v.images for v in values if v.images), default=None),
    )
    return [v.replicates for v in values] if len(
        lengths
    ) == 1 and lengths.pop() > 1 and images != 1 else [], images


def rows(runs: Sequence[Run]) -> list[Row]:
    """By what the data are, and then in the verdict's order."""
    paths = varied([run.result for run in runs])
    groups: dict[str, Row] = {}
    for run in runs:
        settings = run.result.settings()
        row = Row(run.result.strategy, {p: settings[p] for p in paths if p in settings}, [])
        groups.setdefault(row.label, row).runs.append(run)
    beside = baselines_table(runs)
    table = [row for group in groups.values() for row in split_by_identity(group)]
    ranked = {
        row.situation: ranking([r for r in table if r.situation == row.situation], beside)
        for row in table
    }
    return sorted(
        table, key=lambda row: (situation_key(row.situation), sort_key(row, ranked[row.situation]))
    )


def split_by_identity(row: Row) -> list[Row]:
    """Runs that differ in what no setting says, as their images were changed in between or their
    source was trained anew, are no seeds of one row: where a seed is there twice, a row for each
    kind."""
    kinds = dict.fromkeys(run.result.kind for run in row.runs)
    if (
        len({(run.result.seed, run.result.subset) for run in row.counted}) == len(row.counted)
        or len(kinds) == 1
    ):
        return [row]
    return [
        Row(
            row.name,
            row.settings | {"identity": kind},
            [run for run in row.runs if run.result.kind == kind],
        )
        for kind in kinds
    ]


def ranking(rows: Sequence[Row], baselines: Sequence[Row]) -> list[Column]:
    """What rows of one situation are put in order by: the loss on test images, which tells most,
    then KID to them where that ranks anything, then the loss on validation images. The first that
    is known of any of them is the verdict's."""
    return [
        column
        for column in (TEST_LOSS, KID, HELD_OUT)
        if column is not KID or not other_kind(rows, baselines)
    ]


def sort_key(row: Row, ranked: Sequence[Column]) -> tuple:
    values = [row.value(column) for column in ranked]
    return (not row.finished, *((v is None, v or 0.0) for v in values), row.label)


def other_kind(rows: Sequence[Row], baselines: Sequence[Row]) -> tuple[Cell, Cell] | None:
    """KID of the training images to the test images, and of these to one another, where they are of
    another kind: so far apart that a perfect generator of training images would stand no better
    than one of the rows. KID ranks nothing then."""
    found = {
        row.name: row.cell(KID) for row in baselines if rows and row.situation == rows[0].situation
    }
    real, halves = found.get(REAL), found.get(HALVES)
    best = min((row.value(KID) for row in rows if row.value(KID) is not None), default=None)
    if (
        None in (real, halves, best)
        or None in (real.low, halves.high)
        or real.low <= halves.high
        or best > real.high
    ):
        return None
    return real, halves


def baselines_table(runs: Sequence[Run]) -> list[Row]:
    """One row for each baseline and setting of the data. Runs of one seed and one training set have
    the same baselines."""
    paths = [path for path in varied([run.result for run in runs]) if path.startswith("data.")]
    groups: dict[str, Row] = {}
    for run in (r for r in runs if r.evaluation):
        settings = {p: run.result.settings().get(p) for p in paths}
        for name, baseline in baselines_of(run).items():
            row = groups.setdefault(json.dumps([name, settings]), Row(name, settings, []))
            if baseline.evaluation.content not in [b.evaluation.content for b in row.runs]:
                row.runs.append(baseline)
    names = [*BASELINES, *(row.name for row in groups.values())]
    return sorted(
        groups.values(), key=lambda row: (situation_key(row.situation), names.index(row.name))
    )


def known_columns(columns: Sequence[Column], table: Sequence[Row]) -> list[Column]:
    """The columns of which something is known."""
    return [column for column in columns if any(row.value(column) is not None for row in table)]


def situations(table: Sequence[Row]) -> dict[tuple, list[Row]]:
    """What the data are -> its contenders: of each strategy the row of its lowest held-out loss,
    which is of validation images, or the first where no such loss is known. In the order of the
    table."""
    found: dict[tuple, dict[str, Row]] = {}
    for row in (r for r in table if r.finished):
        best = found.setdefault(row.situation, {})
        if row.name not in best or choice_key(row) < choice_key(best[row.name]):
            best[row.name] = row
    ordered = sorted(found.items(), key=lambda i: situation_key(i[0]))
    return {key: [row for row in table if row is best.get(row.name)] for key, best in ordered}


def choice_key(row: Row) -> tuple:
    loss = row.value(HELD_OUT)
    return (loss is None, loss or 0.0)


def situation_key(situation: tuple) -> list[tuple]:
    """Sorts data.n_train=10 before 100, and null, which is all of them, last."""
    return [
        (
            value is None,
            not isinstance(value, int | float),
            value if isinstance(value, int | float) else 0,
            str(value),
        )
        for _, value in situation
    ]


class Paired(NamedTuple):
    """The differences of two rows, one for each seed that both have; their replicates and from how
    many images these are. trained: both were, so that the seeds tell how a training of each varies.
    """

    values: Sequence[float]
    replicates: Sequence[Sequence[float]]
    images: int | None
    trained: bool


def paired(row: Row, other: Row, column: Column) -> Paired | None:
    """row - other. None where they share no seed."""
    ours, theirs = row.by_seed(column), other.by_seed(column)
    if row.constant(column):
        # the same for every seed
        ours = {
            **dict.fromkeys(theirs, next(iter(ours.values()))),
            **ours,
        }
    if other.constant(column):
        theirs = {**dict.fromkeys(ours, next(iter(theirs.values()))), **theirs}
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds or (row.unit != other.unit and row.trained and other.trained):
        return None
    if row.constant(column) and other.constant(column):
        seeds = seeds[:1]
    values = [ours[s].value - theirs[s].value for s in seeds]
    pairs, images = paired_replicates([v for s in seeds for v in (ours[s], theirs[s])])
    replicates = [
        [a - b for a, b in zip(*pair, strict=True)]
        for pair in zip(pairs[::2], pairs[1::2], strict=True)
    ]
    return Paired(values, replicates, images, row.trained and other.trained)


def contrasts(rows: Sequence[Row], other: Row, column: Column) -> dict[str, Mean]:
    """Label -> that row - other, of those that share a seed with it. Each contrast has its own
    variance between seeds, moderated by those of the other rows; where one of the two was not
    trained, its own alone."""
    found = {
        row.label: pair for row in rows if row is not other and (pair := paired(row, other, column))
    }
    spreads = moderated(
        {
            label: spread_of(pair.values)
            for label, pair in found.items()
            if pair.trained and len(pair.values) > 1
        }
    )
    return {
        label: mean_over(pair.values, pair.replicates, pair.images, spreads.get(label))
        for label, pair in found.items()
    }


def find_baseline(name: str, beside: Row, baselines: Sequence[Row]) -> Row | None:
    """The one of the same data."""
    found = (row for row in baselines if row.situation == beside.situation)
    return next((row for row in found if row.name == name), None)
