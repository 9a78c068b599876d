"""What the numbers say, in a few sentences, each with its interval and its n.

Each question has its own probability of 5% to be answered wrongly where there is no difference.
Did the source help: one contrast, named beforehand, of what starts from random weights against
`full`. Which strategy: the others against `full`, by Holm's steps. Which is best:
metrics.over_seeds.is_best. A single training of each compares networks and not strategies, and
the sentence says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from statistics import fmean, harmonic_mean, variance

import numpy as np

from metrics.intervals import LEVEL
from metrics.over_seeds import Mean, is_best, told_apart
from reporting.columns import BY_KEY, FORGOT, HELD_OUT, KID, PRECISION, TEST_LOSS, Column
from reporting.memorization_sentences import copying
from reporting.numbers import as_sentence, counted, interval, join_names, number
from reporting.table import (
    REAL,
    UNTOUCHED,
    Row,
    contrasts,
    find_baseline,
    known_columns,
    other_kind,
    ranking,
)
from reporting.templates import render
from training.result import percent

REFERENCE = "full"  # what the others are compared with, named beforehand
MOST_NAMED = 6  # of those with one outcome, but where it would be one more
LEFT_ON_START = 0.1  # share of the EMA weights that still is the start
UNKNOWN = "not compared"
LOWER, HIGHER = "lower, of one training each", "higher, of one training each"
ALIKE = "not significantly different"
OUTCOMES = ("better", "worse", LOWER, HIGHER, ALIKE)

Difference = tuple[str, Mean, float]  # a strategy, minus another one, level of its interval


def verdict(contenders: Sequence[Row], baselines: Sequence[Row], samples: str) -> list[str]:
    """Sentences on strategies under the same data, the headline first.

    Args:
        contenders: one row of each strategy.
        baselines: of any data.
        samples: what KID was measured on, in words.
    """
    columns = known_columns(ranking(contenders, baselines), contenders)
    if not columns:
        return ["No finished run was measured on held-out images yet, so nothing can be said."]
    by, *others = (Contest(contenders, column) for column in columns)
    beside = [contest for contest in others if contest.column is KID]
    images = {KID: samples, TEST_LOSS: samples.split(" in ")[0], HELD_OUT: "validation images"}
    text = render(
        "verdict.txt.j2",
        by=by,
        images=images[by.column],
        beside=beside,
        samples=samples,
        source=source_sentence([by, *beside]),
        kinds=other_kind(contenders, baselines),
        least=forgot_least(by),
        copying=copying(by.measured, baselines),
        percent=percent,
        join_names=join_names,
        steps=steps_sentence(by.measured),
        two_spreads=two_spreads,
        precision=blind_precision(by.best, baselines),
        columns=BY_KEY,
        baselines=[row for row in baselines if row.situation == by.best.situation],
        number=number,
    )
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return [paragraph for paragraph in paragraphs if paragraph]


@dataclass(frozen=True)
class Contest:
    """Rows of one setting of the data by one column."""

    contenders: Sequence[Row]
    column: Column

    @cached_property
    def measured(self) -> list[Row]:
        """The lowest first."""
        known = [row for row in self.contenders if row.value(self.column) is not None]
        return sorted(known, key=lambda row: row.rank(self.column))

    @property
    def best(self) -> Row:
        return self.measured[0]

    @cached_property
    def _contrasts(self) -> dict[str, dict[str, Mean]]:
        return {}

    def minus(self, row: Row, other: Row) -> Mean:
        """The variance between seeds is moderated by all contrasts with that other."""
        if other.label not in self._contrasts:
            self._contrasts[other.label] = contrasts(self.measured, other, self.column)
        return self._contrasts[other.label].get(row.label, Mean(0.0, 0))

    @property
    def won(self) -> bool:
        behind = [self.minus(row, self.best) for row in self.measured[1:]]
        return len(self.measured) == len(self.contenders) and is_best(behind)

    @property
    def tied(self) -> list[Row]:
        """Not significantly different from the best."""
        return [row for row in self.measured[1:] if outcome(self.minus(row, self.best)) == ALIKE]

    @property
    def reference(self) -> Row | None:
        return next((row for row in self.measured if row.name == REFERENCE), None)

    @property
    def scratch(self) -> Row | None:
        """What starts from random weights, where the reference does not."""
        if not self.reference or self.reference.from_scratch:
            return None
        return next((row for row in self.measured if row.from_scratch), None)

    @property
    def fewest_seeds(self) -> int:
        """Of a strategy that was trained; 3 where none was."""
        counts = [len(row.by_seed(self.column)) for row in self.measured if row.trained]
        return min(counts, default=3)

    @property
    def on_validation(self) -> bool:
        """Validation images stand for the test."""
        return any(
            run.at("protocol.held_out") == "validation"
            for row in self.measured
            for run in row.counted
        )

    def family(self) -> tuple[Row, list[Difference], int]:
        """The comparison of all with the reference, or with the best where there is none.

        With the reference as many contrasts count as there are; with the best, which the data
        chose, all pairs.

        Returns:
            Whom all are compared with; of each its difference; how many contrasts count.

        Source:
            Holm 1979 (metrics.over_seeds.told_apart).
        """
        one, couples = self.best, list(combinations(self.measured, 2))
        if self.reference:
            one = self.reference
            couples = [(one, row) for row in self.measured if row not in (one, self.scratch)]
        pairs = {(b.name, a.name): self.minus(b, a) for a, b in couples}
        levels = told_apart(pairs)
        against = [
            (b, d, levels.get((b, a), LEVEL)) for (b, a), d in pairs.items() if a == one.name
        ]
        return one, against, len(levels)

    def compared(self) -> str:
        """Who is better, worse or not significantly different."""
        one, against, count = self.family()
        found: dict[str, list[Difference]] = {}
        for name, d, level in against:
            found.setdefault(outcome(d, level), []).append((name, d, level))
        parts = [f"{kind}: {differences_text(found[kind])}" for kind in OUTCOMES if kind in found]
        if unknown := [name for name, *_ in found.get(UNKNOWN, ())]:
            parts.append(
                f"{UNKNOWN}, as they share no seed or have no interval: {join_names(unknown)}"
            )
        if left := [row.name for row in self.contenders if row not in self.measured]:
            parts.append(f"not measured, so that any of them may be better: {join_names(left)}")
        family = f" ({count} contrasts, 95% for all together by Holm's steps)" * (count > 1)
        text = f"Against {one.name}, by {self.column.heading}{family}: {'; '.join(parts)}."
        return text if parts else ""


def outcome(d: Mean, level: float = LEVEL) -> str:
    if d.variance is None:
        return UNKNOWN
    if d.holds_zero(level):
        return ALIKE
    lower, higher = (LOWER, HIGHER) if d.n == 1 else ("better", "worse")
    return lower if d.value < 0 else higher


def differences_text(found: Sequence[Difference]) -> str:
    """Each with its interval and over how many trainings it is; of many the first."""
    shown = found if len(found) <= MOST_NAMED + 1 else found[:MOST_NAMED]
    alike = len({d.n for _, d, _ in found}) == 1
    each = [
        f"{name} {_difference(d, level)}" + f" ({counted(d.n)})" * (not alike)
        for name, d, level in shown
    ]
    if rest := found[len(shown) :]:
        each.append(f"{len(rest)} more, {number(rest[0][1].value, signed=True)} and up")
    return join_names(each) + f" ({counted(found[0][1].n)})" * alike


def _difference(d: Mean, level: float = LEVEL) -> str:
    low, high = d.interval(level)
    return f"{number(d.value, low, high, True)} {interval(d.value, low, high, True)}".strip()


def source_sentence(contests: Sequence[Contest]) -> str:
    """The contrast that is named beforehand, by each number for itself."""
    one_each = "in these two trainings {}, and one of each says nothing of others"
    answers = {
        "better": "no, it did harm",
        "worse": "yes",
        ALIKE: "not significant",
        LOWER: one_each.format("no"),
        HIGHER: one_each.format("yes"),
    }
    parts = []
    for contest in contests:
        one, scratch = contest.reference, contest.scratch
        if one and scratch:
            d = contest.minus(scratch, one)
            none = "unknown, as there is no interval" if d.n else "unknown, as they share no seed"
            answer = f"by {contest.column.heading} {answers.get(outcome(d), none)}"
            against = f"{scratch.name} {_difference(d)} against {REFERENCE}, {counted(d.n)}"
            parts.append(f"{answer} ({against})" if d.n else answer)
    return f"Did the source help? {as_sentence('; '.join(parts))}" if parts else ""


def forgot_least(by: Contest) -> Row | None:
    """Of those not significantly different from the best, where one forgot less."""
    least = Contest([by.best, *by.tied], FORGOT).measured[:1]
    return next((row for row in least if row is not by.best), None)


def steps_sentence(measured: Sequence[Row]) -> str:
    """What more steps would change."""
    better, once, late = [], [], []
    for row in measured:
        runs = [run.result.values for run in row.counted]
        looks = [len(run.curve("validation/loss")) for run in row.counted]
        at_end = all(v.get("best_step") == v["step"] for v in runs)
        left = max((v.get("ema_share_of_start") or 0 for v in runs if v["step"]), default=0)
        of_ema = all(run.at("protocol.weights") in (None, "ema") for run in row.counted)
        better += [row.name] * (min(looks) > 1 and at_end)
        once += [row.name] * (row.trained and 1 in looks)
        late += [f"{row.name} {percent(left)}"] * (of_ema and left > LEFT_ON_START)
    said = {
        "still improving at the last step, so that more steps may change the order: {}": better,
        "whether more steps would change the order is unknown of {}, which were validated once "
        "(run.checkpoint_every)": once,
        "the EMA weights, which are evaluated, still are the start in part: {}": late,
    }
    parts = [text.format(join_names(names)) for text, names in said.items() if names]
    return as_sentence("; ".join(parts)) if parts else ""


def two_spreads(row: Row, column: Column) -> tuple[float | None, float | None]:
    """A nested analysis of variance of drawn subsets and the trainings on them.

    Returns:
        The standard deviations between subsets, which is what is left of the variance of their
        means, and between trainings on one of them, None where nothing was trained twice.
    """
    by: dict[object, list[float]] = {}
    for run in row.counted:
        if value := column.read(run):
            by.setdefault(run.result.subset, []).append(value.value)
    subsets = list(by.values())
    free = sum(len(values) - 1 for values in subsets)
    squares = sum(np.var(values) * len(values) for values in subsets)
    within = squares / free if free else None
    trainings = harmonic_mean(map(len, subsets))
    between = max(0.0, variance(map(fmean, subsets)) - (within or 0.0) / trainings)
    return between**0.5, None if within is None else within**0.5


def blind_precision(best: Row, baselines: Sequence[Row]) -> tuple[float, float] | None:
    """Where images of the source pass for the target's as real ones do, which bland ones do: their
    precision and that of the training images."""
    found = [find_baseline(name, best, baselines) for name in (UNTOUCHED, REAL)]
    source, real = (row.value(PRECISION) if row else None for row in found)
    return None if source is None or real is None or source < real else (source, real)
