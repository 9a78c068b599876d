"""Runs as rows: one for each strategy and setting, over its seeds; the baselines beside them; and
how two rows differ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from operator import attrgetter
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from metrics.intervals import share_interval
from metrics.over_seeds import Mean, mean_over, moderated, spread_of
from reporting.columns import BASELINES, HELD_OUT, KID, TEST_LOSS, Column
from reporting.numbers import MISSING, counted, interval, number
from reporting.runs import Run, Value, baselines_of
from training.result import varied

# behind an interval that is of the images alone, beside those that hold other trainings too
OF_IMAGES = "°"
# Baselines:
REAL, HALVES = "train against test", "half of test against the other half"
UNTOUCHED = "untouched source"

Situation = tuple[tuple[str, Any], ...]  # what the data are: settings and their values


class Cell(NamedTuple):
    """value: the mean over n trainings. low, high: its 95% interval. counted: the seeds or drawn
    subsets. images: whether the interval holds that of the images. why: it is unknown. units: what
    stands for the images, as patients may."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    column: Column
    counted: str = ""
    images: bool = False
    why: str = ""
    units: str = "images"

    @property
    def _scaled(self) -> list[Any]:
        return [v and v * (100 if self.column.percent else 1) for v in self[:3]]

    @property
    def text(self) -> str:
        if self.value is None:
            return MISSING
        if self.column.text:
            return self.column.text(self.value)
        value, low, high = self._scaled
        return number(value, low, high, self.column.signed) + "%" * self.column.percent

    @property
    def band(self) -> str:
        """The interval, "" where there is none."""
        if self.low is None or self.high is None:
            return ""
        if write := self.column.text:
            return f"[{write(self.low)}, {write(self.high)}]"
        value, low, high = self._scaled
        return interval(value, low, high, self.column.signed)

    @property
    def marked(self) -> str:
        """The interval as it stands in a table: with a mark where no other training is in it."""
        return self.band + OF_IMAGES * (self.band != "" and self.n == 1)

    @property
    def text_and_band(self) -> str:
        return f"{self.text} {self.band}".strip()

    @property
    def in_words(self) -> str:
        """With its interval and over how many trainings it is."""
        return f"{self.text_and_band} ({self.counted})"

    @property
    def in_table(self) -> str:
        return f"{self.text} {self.marked if self.column.band else ''}".strip()

    @property
    def explanation(self) -> str:
        """Of what the interval is."""
        if self.value is None:
            return self.why
        if self.low is None:
            return self.counted if self.n > 1 else "one run, no interval"
        if self.n == 1:
            over = f"95% bootstrap interval over its {self.units}"
            return f"one run; {over}, no other training in it"
        images = f" and the {self.units}" if self.images else "; the images are not in it"
        return f"95% t interval over {self.counted}{images}"


@dataclass(frozen=True)
class Row:
    """settings: those that vary, "" for none. situation: those of them that say what the data are.
    runs: all of them."""

    name: str
    settings: dict[str, Any]
    runs: list[Run]

    @property
    def situation(self) -> Situation:
        own = ((p, v) for p, v in self.settings.items() if p.startswith("data."))
        return tuple((p, str(v) if isinstance(v, list) else v) for p, v in own)

    @property
    def finished(self) -> bool:
        return any(run.result.finished for run in self.runs)

    @property
    def trained(self) -> bool:
        """Steps were taken: not in a baseline, nor in the source as it is."""
        return any(run.came_to("step") for run in self.runs)

    @property
    def from_scratch(self) -> bool:
        """Nothing of a source was copied, or there was none."""
        source = self.runs[0].result.config.get("source", {})
        return source.get("include") == [] or source.get("from", "") is None

    @property
    def counted(self) -> list[Run]:
        """The finished runs, or all where there are none."""
        return [run for run in self.runs if run.result.finished] or self.runs

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
    def subsets(self) -> set[int | str | None]:
        """What the training images of the counted runs were drawn by."""
        return {run.result.subset for run in self.counted}

    @property
    def unit(self) -> str:
        """What is counted: subsets where several were drawn and not each by its run's seed; else
        seeds."""
        crossed = any(run.result.subset not in (None, run.result.seed) for run in self.counted)
        return "subset" if len(self.subsets) > 1 and crossed else "seed"

    @property
    def counted_text(self) -> str:
        """Over how many finished trainings the row is the mean."""
        runs = len(self.counted)
        return str(runs) if self.unit == "seed" else f"{len(self.subsets)} subsets, {runs} runs"

    def by_seed(self, column: Column) -> dict[Any, Value]:
        """Of each seed, or of each drawn subset the mean of its trainings."""
        found: dict[Any, list[Value]] = {}
        for run in self.counted:
            if value := column.read(run):
                found.setdefault(getattr(run.result, self.unit), []).append(value)
        if self.unit == "seed":
            return {seed: values[-1] for seed, values in found.items()}
        return {subset: mean_value(values) for subset, values in found.items()}

    def value(self, column: Column) -> float | None:
        values = self.by_seed(column).values()
        return fmean(v.value for v in values) if values else None

    def rank(self, column: Column) -> float:
        """The value; what is not known comes last."""
        value = self.value(column)
        return math.inf if value is None else value

    def constant(self, column: Column) -> Value | None:
        """The one value of what no seed changes: it was measured once."""
        values = list(self.by_seed(column).values())
        alike = (math.isclose(v.value, values[0].value, rel_tol=1e-9) for v in values)
        return values[0] if values and not self.trained and all(alike) else None

    def cell(self, column: Column) -> Cell:
        values = list(self.by_seed(column).values())
        if not values:
            return Cell(None, None, None, 0, column, why=column.why(self.counted[0]))
        replicates, images = paired_replicates(values)
        value, low, high, *_ = values[0]
        n, unit = 1, "seed"
        if len(values) > 1 and not self.constant(column):
            mean = mean_over([v.value for v in values], replicates, images)
            value, n, unit = mean.value, mean.n, self.unit
            low, high = mean.interval()
        if column.percent and images and low is not None and high is not None:
            low, high = share_interval(value, low, high, images)
        units = "images" if values[0].of_images is None else "patients"
        said = counted(n, unit)
        return Cell(value, low, high, n, column, said, bool(replicates), units=units)


def mean_value(values: Sequence[Value]) -> Value:
    replicates, images = paired_replicates(values)
    means = [sum(r) / len(values) for r in zip(*replicates, strict=True)]
    value, of_images = sum(v.value for v in values) / len(values), values[0].of_images
    return Value(value, replicates=means, images=images, of_images=of_images)


def paired_replicates(values: Sequence[Value]) -> tuple[list[Sequence[float]], int | None]:
    """What of several numbers was resampled alike.

    Returns:
        Their replicates [numbers, draws], [] where they cannot be paired, as draws of images and of
        patients cannot, or are of one image, which has no others to draw; and the fewest images,
        None where none says how many.
    """
    images = min((v.images for v in values if v.images), default=None)
    lengths = {len(v.replicates) for v in values}
    alike = len({v.of_images is None for v in values}) == 1
    paired = alike and len(lengths) == 1 and max(lengths) > 1 and images != 1
    return [v.replicates for v in values] if paired else [], images


def rows(runs: Sequence[Run]) -> list[Row]:
    """By what the data are, and then in the verdict's order."""
    paths = varied([run.result for run in runs])
    groups: dict[str, Row] = {}
    for run in runs:
        settings = run.result.settings()
        row = Row(run.result.strategy, {p: settings[p] for p in paths if p in settings}, [])
        groups.setdefault(row.label, row).runs.append(run)
    table = [row for group in groups.values() for row in split_by_identity(group)]
    table.sort(key=lambda row: situation_key(row.situation))
    beside = baselines_table(runs)
    found: list[Row] = []
    for alike in by_situation(table).values():
        ranked = ranking(alike, beside)
        found += sorted(
            alike, key=lambda row: (not row.finished, [row.rank(c) for c in ranked], row.label)
        )
    return found


def by_situation(table: Iterable[Row]) -> dict[Situation, list[Row]]:
    """table: sorted by what the data are."""
    return {key: list(alike) for key, alike in groupby(table, attrgetter("situation"))}


def split_by_identity(row: Row) -> list[Row]:
    """Runs that differ in what no setting says, as their images were changed in between or their
    source was trained anew, are no seeds of one row: where a seed is there twice, a row for each
    kind."""
    kinds: dict[str, list[Run]] = {}
    for run in row.runs:
        kinds.setdefault(run.result.kind, []).append(run)
    drawn = {(run.result.seed, run.result.subset) for run in row.counted}
    if len(drawn) == len(row.counted) or len(kinds) == 1:
        return [row]
    return [Row(row.name, row.settings | {"identity": k}, runs) for k, runs in kinds.items()]


def ranking(rows: Sequence[Row], baselines: Sequence[Row]) -> list[Column]:
    """What rows of one situation are put in order by: the loss on test images, which tells most,
    then KID to them where that ranks anything, then the loss on validation images. The first that
    is known of any of them is the verdict's."""
    return [TEST_LOSS, *([] if other_kind(rows, baselines) else [KID]), HELD_OUT]


def other_kind(rows: Sequence[Row], baselines: Sequence[Row]) -> tuple[Cell, Cell] | None:
    """Whether training and test images are of another kind, so that KID ranks nothing: so far apart
    that a perfect generator of training images would stand no better than one of the rows.

    Returns:
        KID of the training images to the test images, and of these to one another; None where they
        are of one kind or it is not known.
    """
    found = [find_baseline(name, rows[0], baselines) for name in (REAL, HALVES) if rows]
    cells = [row.cell(KID) for row in found if row]
    if len(cells) < 2:
        return None
    real, halves = cells
    if real.low is None or real.high is None or halves.high is None:
        return None
    lowest = min(row.rank(KID) for row in rows)
    return (real, halves) if halves.high < real.low and lowest <= real.high else None


def baselines_table(runs: Sequence[Run]) -> list[Row]:
    """One row for each baseline and setting of the data. Runs of one seed and one training set have
    the same baselines."""
    paths = [path for path in varied([run.result for run in runs]) if path.startswith("data.")]
    groups: dict[str, Row] = {}
    for run in runs:
        settings = {p: run.result.settings().get(p) for p in paths}
        for name, baseline in baselines_of(run).items():
            row = Row(name, settings, [])
            known = groups.setdefault(row.label, row).runs
            if baseline.content not in [run.content for run in known]:
                known.append(baseline)
    names = [*BASELINES, *(row.name for row in groups.values())]
    return sorted(
        groups.values(), key=lambda row: (situation_key(row.situation), names.index(row.name))
    )


def known_columns(columns: Sequence[Column], table: Sequence[Row]) -> list[Column]:
    """The columns of which something is known."""
    return [c for c in columns if any(row.value(c) is not None for row in table)]


def situations(table: Sequence[Row]) -> dict[Situation, list[Row]]:
    """The contenders under each setting of the data.

    Returns:
        What the data are -> of each strategy the row of its lowest held-out loss, which is of
        validation images, or the first where no such loss is known; in the order of the table.
    """
    best: dict[tuple[Situation, str], Row] = {}
    for row in sorted(table, key=lambda row: row.rank(HELD_OUT)):
        if row.finished:
            best.setdefault((row.situation, row.name), row)
    return by_situation([r for r in table if best.get((r.situation, r.name)) is r])


def situation_key(situation: Situation) -> list[tuple]:
    """Sorts data.n_train=10 before 100, and null, which is all of them, last."""

    def key(value: Any) -> tuple:
        counts = isinstance(value, int | float)
        return value is None, not counts, value if counts else 0, str(value)

    return [key(value) for _, value in situation]


Differences = tuple[list[float], list[list[float]], int | None]


def paired(row: Row, other: Row, column: Column) -> Differences | None:
    """row - other, of each seed that both have.

    Returns:
        The differences, their replicates [seeds, draws] and from how many images these are; None
        where the rows share no seed.
    """
    ours, theirs = row.by_seed(column), other.by_seed(column)
    our_one, their_one = row.constant(column), other.constant(column)
    if our_one:  # the same for every seed
        ours = dict.fromkeys(theirs, our_one) | ours
    if their_one:
        theirs = dict.fromkeys(ours, their_one) | theirs
    couples = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    if not couples or (row.unit != other.unit and row.trained and other.trained):
        return None
    if our_one and their_one:
        couples = couples[:1]
    replicates, images = paired_replicates(list(chain(*couples)))
    differences = np.subtract(replicates[::2], replicates[1::2])
    return [a.value - b.value for a, b in couples], differences.tolist(), images


def contrasts(rows: Sequence[Row], other: Row, column: Column) -> dict[str, Mean]:
    """Rows against another one, paired by seed.

    Each contrast has its own variance between seeds, moderated by those of the other rows; where
    one of the two was not trained, its own alone.

    Returns:
        Label -> that row - other, of those that share a seed with it.

    Source:
        Smyth 2004 (metrics.over_seeds.moderated).
    """
    found, spreads = {}, {}
    for row in rows:
        if row is not other and (differences := paired(row, other, column)):
            found[row.label] = differences
            if row.trained and other.trained and len(differences[0]) > 1:
                spreads[row.label] = spread_of(differences[0])
    spreads = moderated(spreads)
    return {label: mean_over(*pair, spreads.get(label)) for label, pair in found.items()}


def find_baseline(name: str, beside: Row, baselines: Sequence[Row]) -> Row | None:
    """The one of the same data."""
    wanted = name, beside.situation
    return next((row for row in baselines if (row.name, row.situation) == wanted), None)
