"""What the numbers say, in a few sentences, each with its interval and its n.

Each question has its own probability of 5% to be answered wrongly where there is no difference. Did the source help: one contrast, named
beforehand, of what starts from random weights against `full`. Which strategy: the others against `full`, by Holm's steps. Which is best:
evaluation.intervals.is_best. A single training of each tells networks apart and not strategies, and is said to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from evaluation.intervals import Mean, is_best, told_apart
from evaluation.memorization import COPIED, NEAR, OUTRIGHT, Band, copy_sign, innocent_share, near_sign
from reporting.columns import COPIES, COPIES_TEST, FORGOT, HELD_OUT, KID, PRECISION, RHO, TEST_LOSS, Column
from reporting.numbers import interval, number, share
from reporting.table import REAL, Cell, Row, contrasts, other_kind, ranking

SIGNS = "Signs of copying"  # marked in the page
UNTOUCHED = "untouched source"  # floor
REFERENCE = "full"  # what the others are compared with, named beforehand
LEFT_ON_START = 0.1  # of the average's weight


def verdict(contenders: Sequence[Row], floors: Sequence[Row], samples: str) -> list[str]:
    """A few sentences on strategies under the same data, the headline first. samples: what KID was measured on, in words."""
    column = next((c for c in ranking(contenders, floors) if any(row.value(c) is not None for row in contenders)), None)
    if column is None:
        return ["No finished run was measured on held-out images yet, so nothing can be said."]
    by = Contest(contenders, column)
    ranks = not other_kind(contenders, floors)
    beside = Contest(contenders, KID) if column is TEST_LOSS and ranks and any(row.value(KID) is not None for row in contenders) else None
    where = {KID: samples, TEST_LOSS: samples.split(" in ")[0], HELD_OUT: "validation images"}[column]
    sentences = [headline(by, where), did_the_source_help([by, *([beside] if beside else [])]), by.compared(),
                 " ".join(filter(None, [lowest(beside, "has the", samples), beside.compared()])) if beside else "",
                 "" if ranks else ranks_nothing(contenders, floors)]
    if column is not HELD_OUT:
        sentences += [forgetting(by.best, by.tied), copying(by.judged, floors)]
    else:
        sentences.append("Nothing is evaluated yet, so quality, copying and forgetting are unknown.")
    sentences.append(" ".join(filter(None, [unsure_steps(by.judged), few_seeds(by.judged, column), drawn(by.best, column),
                                            chosen_on_test(by.judged)])))
    if column is not HELD_OUT:
        sentences += [precision_is_blind(by.best, floors), beside_floors(by.best, floors)]
    return list(filter(None, sentences))


@dataclass(frozen=True)
class Contest:
    """Rows of one situation by one column."""

    contenders: Sequence[Row]
    column: Column

    @cached_property
    def judged(self) -> list[Row]:
        """The lowest first."""
        return sorted((row for row in self.contenders if row.value(self.column) is not None), key=lambda row: row.value(self.column))

    @property
    def best(self) -> Row:
        return self.judged[0]

    @cached_property
    def _contrasts(self) -> dict[str, dict[str, Mean]]:
        return {}

    def minus(self, row: Row, other: Row) -> Mean:
        """Its variance between seeds is moderated by the contrasts of all that are judged with that other."""
        if other.label not in self._contrasts:
            self._contrasts[other.label] = contrasts(self.judged, other, self.column)
        return self._contrasts[other.label].get(row.label, Mean(0.0, 0))

    @cached_property
    def behind(self) -> dict[str, Mean]:
        """Label of each other row -> how much it lies above the best."""
        return {row.label: self.minus(row, self.best) for row in self.judged[1:]}

    @property
    def won(self) -> bool:
        return len(self.judged) == len(self.contenders) and is_best(self.behind.values())

    @property
    def tied(self) -> list[Row]:
        """Not told apart from the best, of those that can be compared with it."""
        return [row for row in self.judged[1:] if (d := self.behind[row.label]).variance is not None and d.holds_zero()]

    @property
    def reference(self) -> Row | None:
        return next((row for row in self.judged if row.name == REFERENCE), None)

    @property
    def without_source(self) -> Row | None:
        """What starts from random weights, where the reference does not."""
        found = next((row for row in self.judged if row.from_scratch), None)
        return found if self.reference and not self.reference.from_scratch else None

    def family(self) -> tuple[Row, dict[str, tuple[Mean, float]], int]:
        """The row that the others are compared with, of each of them the difference and the level that its interval is asked at, and how
        many contrasts count: with the reference as many as there are; with the best, which the data chose, all pairs."""
        if self.reference:
            others = [row for row in self.judged if row not in (self.reference, self.without_source)]
            pairs = {(row.label, self.reference.label): self.minus(row, self.reference) for row in others}
        else:
            pairs = {(b.label, a.label): self.minus(b, a) for a, b in combinations(self.judged, 2)}
        one, asked = self.reference or self.best, told_apart(pairs)
        return one, {pair[0]: (d, asked.get(pair, 0.95)) for pair, d in pairs.items() if pair[1] == one.label}, len(asked)

    def compared(self) -> str:
        """Who is better and who worse than the one that all are compared with, and who is not told apart from it."""
        names = {row.label: row.name for row in self.judged}
        other, found, contrasts = self.family()
        said: dict[str, list[tuple[str, Mean, float]]] = {}
        for label, (d, level) in found.items():
            said.setdefault(outcome(d, level), []).append((names[label], d, level))
        parts = [f"{kind}{': ' if kind else ''}{differences(said[kind])}" for kind in OUTCOMES if kind in said]
        if unknown := [name for name, *_ in said.get(UNKNOWN, ())]:
            parts.append(f"{UNKNOWN}, as they share no seed or nothing tells the interval: {listed(unknown)}")
        if left := [row.name for row in self.contenders if row not in self.judged]:
            parts.append(f"not measured, so that any of them may be better: {listed(left)}")
        if not parts:
            return ""
        family = f" ({contrasts} contrasts, 95% for all together by Holm's steps)" if contrasts > 1 else ""
        return f"Against {other.name}, by {self.column.heading}{family}: {'; '.join(parts)}."


UNKNOWN = "not compared"
OUTCOMES = ("better", "worse", "lower, of one training each", "higher, of one training each", "not told apart")


def outcome(d: Mean, level: float = 0.95) -> str:
    if d.variance is None:
        return UNKNOWN
    if d.holds_zero(level):
        return "not told apart"
    if d.n == 1:
        return "lower, of one training each" if d.value < 0 else "higher, of one training each"
    return "better" if d.value < 0 else "worse"


def differences(apart: Sequence[tuple[str, Mean, float]], most: int = 6) -> str:
    """Each with its interval and over how many trainings it is; of many the first."""
    shown, rest = (apart, []) if len(apart) <= most + 1 else (apart[:most], apart[most:])
    counts = {d.n for _, d, _ in apart}
    each = [f"{name} {difference_text(d, level)}" + (f" ({seeds_text(d.n)})" if len(counts) > 1 else "") for name, d, level in shown]
    if rest:
        each.append(f"{len(rest)} more, {number(rest[0][1].value, signed=True)} and up")
    return listed(each) + (f" ({seeds_text(counts.pop())})" if len(counts) == 1 else "")


def difference_text(d: Mean, level: float = 0.95) -> str:
    three = (d.value, *d.interval(level))
    return f"{number(*three, signed=True)} {interval(*three, signed=True)}".strip()


def headline(by: Contest, samples: str) -> str:
    return lowest(by, "is best, with the" if by.won else "has the", samples)


def lowest(by: Contest, has: str, samples: str) -> str:
    return f"{named(by.best)} {has} lowest {by.column.heading}: {with_interval(by.best.cell(by.column), by.column)}, on {samples}."


def did_the_source_help(contests: Sequence[Contest]) -> str:
    """The contrast that is named beforehand, by each number for itself."""
    parts = []
    for contest in contests:
        if scratch := contest.without_source:
            d = contest.minus(scratch, contest.reference)
            answer = {"better": "no, it did harm", "worse": "yes", "not told apart": "not told",
                      UNKNOWN: "not told, as there is no interval" if d.n else "not compared, as they share no seed",
                      "lower, of one training each": "in these two trainings no, and one of each says nothing of others",
                      "higher, of one training each": "in these two trainings yes, and one of each says nothing of others"}[outcome(d)]
            parts.append(f"by {contest.column.heading} {answer}"
                         + (f" ({scratch.name} {difference_text(d)} against {REFERENCE}, {seeds_text(d.n)})" if d.n else ""))
    return f"Did the source help? {begun('; '.join(parts))}" if parts else ""


def ranks_nothing(contenders: Sequence[Row], floors: Sequence[Row]) -> str:
    real, halves = other_kind(contenders, floors)
    return (f"KID test ranks nothing here: the training images themselves are at {real.text(KID)} {real.band(KID)} from the test images, "
            f"and these at {halves.text(KID)} from one another, so that they are of another kind, and nearer to them is not better.")


def named(row: Row) -> str:
    """With the settings that it contends with."""
    rest = [f"{path.split('.')[-1]} {value}" for path, value in row.settings.items() if not path.startswith("data.")]
    return row.name + (f" ({', '.join(rest)})" if rest else "")


def listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def seeds_text(n: int) -> str:
    return f"{n} seeds" if n > 1 else "one seed"


def with_interval(cell: Cell, column: Column) -> str:
    return " ".join(filter(None, [cell.text(column), cell.band(column), f"({cell.counted})"]))


def begun(text: str) -> str:
    """As a sentence."""
    return text[0].upper() + text[1:] + "."


def forgetting(best: Row, tied: Sequence[Row]) -> str:
    """What the best forgot; and which of those not told apart from it forgot least."""
    cell = best.cell(FORGOT)
    change = with_interval(cell, FORGOT)
    if best.from_scratch:
        text = f"{best.name} starts from random weights, with nothing to forget"
    elif cell.value is None:
        text = f"What {best.name} forgot was not measured"
    elif cell.low is not None and cell.low <= 0 <= cell.high:
        text = f"{best.name} forgot nothing that could be measured: the loss on source images changed by {change}"
    else:
        text = f"{best.name} {'forgot' if cell.value > 0 else 'did not forget'}: the loss on source images changed by {change}"
    least = min((row for row in tied if row.value(FORGOT) is not None), key=lambda row: row.value(FORGOT), default=None)
    if least and (cell.value is None or least.value(FORGOT) < cell.value):
        text += f"; of those not told apart from it {least.name} forgot least, {with_interval(least.cell(FORGOT), FORGOT)}"
    return text + "."


def innocent_shares(row: Row) -> Band | None:
    """What share of the test images would be called copies: the mean over its runs, and the highest of their limits."""
    found = [value for run in row.counted if (value := COPIES_TEST.read(run))]
    if not found:
        return None
    mean = sum(v.value for v in found) / len(found)
    return Band(mean, min(v.value if v.low is None else v.low for v in found), max(v.value if v.high is None else v.high for v in found))


def known_band(row: Row | None, column: Column) -> Band | None:
    return row.cell(column).told if row and row.value(column) is not None else None


def copies(row: Row, untouched: Row | None) -> list[str]:
    """The signs of copying that this row shows, in words."""
    signs, (near, share) = [], (known_band(row, column) for column in (RHO, COPIES))
    if near and near_sign(near, known_band(untouched, RHO)):
        signs.append(f"rho {in_words(row, RHO)} below {NEAR}")
    if share and copy_sign(share, innocent_shares(row), known_band(untouched, COPIES)):
        signs.append(f"{in_words(row, COPIES)} copies")
    return signs


def in_words(row: Row, column: Column) -> str:
    cell = row.cell(column)
    return f"{cell.text(column)} {cell.band(column)}".strip()


def outright(row: Row, untouched: Row | None) -> bool:
    """More than near: copies by pixels, or half of the images at a tenth of the distance of new ones."""
    return any(sign.endswith("copies") for sign in copies(row, untouched)) or (row.value(RHO) is not None and row.value(RHO) < OUTRIGHT)


def copying(judged: Sequence[Row], floors: Sequence[Row]) -> str:
    known = [row for row in judged if row.value(RHO) is not None or row.value(COPIES) is not None]
    if not known:
        return "Whether anything copies its training images was not measured."
    untouched = floor(UNTOUCHED, judged[0], floors)
    caught = {row.label: signs for row in known if (signs := copies(row, untouched))}
    alike = [row.name for row in known if row.label not in caught and copies(row, None)]
    text = copying_by(caught, known, judged[0], untouched)
    if alike:
        text += (f" What is no sign: {listed(alike)} {'comes' if len(alike) == 1 else 'come'} no nearer to the training images than the "
                 f"untouched source, which saw none of them (rho {in_words(untouched, RHO)}).")
    return " ".join(filter(None, [text, unseen(judged[0], untouched), of_an_earlier_step(known)]))


def unseen(row: Row, untouched: Row | None) -> str:
    """What share of copies these images cannot show."""
    most = innocent_share(innocent_shares(row), known_band(untouched, COPIES))
    return "" if row.value(COPIES) is None or most <= COPIED else (
        f"Up to {share(most)} of copies by pixels would not be a sign here: so many may the images have that copy nothing, as few of them "
        "were looked at.")


def of_an_earlier_step(known: Sequence[Row]) -> str:
    """Which runs went on after the step that was looked at: from a few images the last steps copy most."""
    found = [row.name for row in known if any((run.at("checkpoint", "step") or math.inf) < (run.result.values.get("step") or 0)
                                              for run in row.counted)]
    return f"Not of the last step, which samples.png and sample.py show (`select=last` looks at it): {listed(found)}." if found else ""


def copying_by(caught: dict[str, list[str]], known: Sequence[Row], best: Row, untouched: Row | None) -> str:
    if not caught:
        numbers = [f"{column.heading} {with_interval(best.cell(column), column)}" for column in (RHO, COPIES)
                   if best.value(column) is not None]
        return "No sign of copying" + (f"; {best.name}: {', '.join(numbers)}" if numbers else "") + "."
    said = [f"{row.name} ({', '.join(caught[row.label])}; {row.cell(RHO if row.value(RHO) is not None else COPIES).counted})"
            for row in known if row.label in caught]
    text = f"{SIGNS} the training images: {'; '.join(said)}"
    if not any(outright(row, untouched) for row in known if row.label in caught):
        return text + ". Images without detail are near to all others too, and few are copies outright: look at the closest pairs."
    if best.label in caught and outright(best, untouched):
        clean = next((row for row in known if row.label not in caught), None)
        text += (f". The KID of {best.name} is worth little then: take {named(clean)}, the best without a sign of copying"
                 if clean else ". None is without a sign of it")
    return text + "."


def improving(row: Row) -> bool:
    """Whether all its runs were best at their last step, of several that were judged."""
    runs = [run.result.values for run in row.counted]
    judged = min(len(run.curve("validation/loss")) for run in row.counted)
    return judged > 1 and all(v.get("best_step") is not None and v["best_step"] == v.get("step") for v in runs)


def lagging(row: Row) -> float | None:
    """The largest share of the averaged weights that still is the start, of runs that trained."""
    return max((v["ema_share_of_start"] for v in (run.result.values for run in row.counted)
                if v.get("step") and v.get("ema_share_of_start") is not None), default=None)


def unsure_steps(judged: Sequence[Row]) -> str:
    """What more steps would change."""
    once = [row.name for row in judged if row.trained and any(len(run.curve("validation/loss")) == 1 for run in row.counted)]
    better = [row.name for row in judged if improving(row)]
    late = {row.name: left for row in judged if (left := lagging(row)) is not None and left > LEFT_ON_START}
    parts = []
    if better:
        parts.append(f"still improving at the last step, so that more steps may change the order: {listed(better)}")
    if once:
        parts.append(f"whether more steps would change the order is unknown of {listed(once)}, of which the loss was looked at once "
                     "(run.checkpoint_every)")
    if late:
        lags = [f"{name} {share(left)}" for name, left in late.items()]
        parts.append(f"the averaged weights, which are what is judged, still are the start in part: {listed(lags)}")
    return begun("; ".join(parts)) if parts else ""


def chosen_on_test(judged: Sequence[Row]) -> str:
    """Where validation images stand for the test."""
    if not any(run.at("protocol", "held_out") == "validation" for row in judged for run in row.counted):
        return ""
    return "There is no test split: checkpoints and settings were chosen by the very images that they are judged on, which flatters them."


def floor(name: str, beside: Row, floors: Sequence[Row]) -> Row | None:
    """The one of the same data."""
    return next((row for row in floors if row.name == name and row.situation == beside.situation), None)


def precision_is_blind(best: Row, floors: Sequence[Row]) -> str:
    """Where images of the source pass for those of the target as well as real ones do: bland images lie in most balls."""
    source, real = (row and row.value(PRECISION) for row in (floor(name, best, floors) for name in (UNTOUCHED, REAL)))
    if source is None or real is None or source < real:
        return ""
    return (f"Precision and density rank nothing here: the untouched source, which draws none of the target's images, has a precision of "
            f"{number(source)}, and the training images themselves {number(real)}.")


def beside_floors(best: Row, floors: Sequence[Row]) -> str:
    said = [f"{row.name} {row.cell(KID).text(KID)} {row.cell(KID).band(KID)}".strip() for row in floors
            if row.situation == best.situation and row.value(KID) is not None]
    return f"Floors of KID test: {', '.join(said)}." if said else ""


def few_seeds(judged: Sequence[Row], column: Column) -> str:
    """What the intervals do and do not hold."""
    least = min((len(row.by_seed(column)) for row in judged if row.trained), default=3)
    if least >= 3:
        return ""
    if least == 1:
        return ("One seed only (of one strategy or more): an interval of it is of the images alone and says nothing of how another "
                "training would end; three seeds or more are needed for that.")
    return "Two seeds only: how much trainings differ is told by few of them; three or more are needed."


def drawn(best: Row, column: Column) -> str:
    """Which of the two spreads an interval over seeds holds: of the images that were drawn to train on, and of training again."""
    subsets = {run.result.subset for run in best.counted}
    if len(best.counted) < 2 or subsets == {None}:
        return ""
    if len(subsets) == 1:
        return ("All seeds train on the same drawn images (data.subset_seed), so that the intervals hold the training alone: other images "
                "may turn the order.")
    if best.of == "seed":
        return ("Each seed draws its own training images too (data.subset_seed=null), so that the intervals hold both, and do not tell one "
                "from the other.")
    between, within = two_spreads(best, column)
    return (f"Which images were drawn spreads the {column.heading} of {best.name} by {number(between)}, training again on the same ones by "
            f"{number(within)} (standard deviations); the intervals hold both.")


def two_spreads(row: Row, column: Column) -> tuple[float | None, float | None]:
    """The standard deviation between subsets and that between trainings on one of them: a nested analysis of variance, the first being
    what is left of the variance of the subsets' means. None where nothing was trained twice."""
    by: dict[object, list[float]] = {}
    for run in row.counted:
        if (value := column.read(run)) is not None:
            by.setdefault(run.result.subset, []).append(value.value)
    means = {key: sum(v) / len(v) for key, v in by.items()}
    free = sum(len(v) - 1 for v in by.values())
    within = sum((x - means[key]) ** 2 for key, v in by.items() for x in v) / free if free else None
    middle = sum(means.values()) / len(means)
    of_means = sum((m - middle) ** 2 for m in means.values()) / (len(means) - 1)
    trainings = len(by) / sum(1 / len(v) for v in by.values())  # the harmonic mean
    return max(0.0, of_means - (within or 0.0) / trainings) ** 0.5, None if within is None else within**0.5
