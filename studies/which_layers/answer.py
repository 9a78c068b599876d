"""What a comparison came to, in one paragraph, and the numbers that it is made of."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from metrics.intervals import LEVEL
from metrics.over_seeds import Mean, mean_over, told_apart
from reporting.memorization_sentences import signs_of_copying
from reporting.numbers import interval, join_names, number
from reporting.runs import Run, value_of
from reporting.table import UNTOUCHED, baselines_table, find_baseline, rows
from runtime.errors import UserError
from studies.which_layers.judge import differences, loss_of
from studies.which_layers.rounds import Comparison, chosen_rate, chosen_step
from studies.which_layers.runs import Judged

OF_A_STUDY = ("study.", "budget=", "hydra")  # of a command line, what no single run has
MANY = 20  # times as many images, which nobody is told to look for


@dataclass(frozen=True)
class Point:
    """One strategy at one size. loss, behind: with their 95% intervals; behind is its loss minus
    the reference's, None for the reference. trained_on: images, their mean over repetitions."""

    strategy: str
    size: int | None
    trained_on: float
    loss: tuple[float, float | None, float | None]
    behind: tuple[float, float | None, float | None] | None


@dataclass(frozen=True)
class Answer:
    """advised: the strategy. tied: those that are not told apart from it. text: the paragraph."""

    advised: str
    rate: float
    steps: int
    tied: Sequence[str]
    command: str
    text: str
    points: Sequence[Point]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def answer(comparison: Comparison, audited: Mapping[str, Run], arguments: Sequence[str]) -> Answer:
    """audited: of each strategy whose images were made. arguments: of the command line."""
    whole = {name: sizes[None] for name, sizes in comparison.found.items() if None in sizes}
    folds = comparison.folds
    running = [name for name in whole if name not in comparison.left_out]
    if not running or len(whole) < 2:
        why = "; ".join(f"{name}: {why}" for name, why in comparison.left_out.items())
        raise UserError(f"fewer than two strategies came to an end, so nothing is compared. {why}")
    losses = {name: loss_of(whole[name], folds) for name in running}
    best = min(losses, key=lambda name: losses[name].value)
    behind = differences(whole, best, folds)
    levels = told_apart(behind)
    worse = {n: d for n, d in behind.items() if not d.holds_zero(levels.get(n, LEVEL))}
    tied = [name for name in behind if name not in worse]
    judged = list(whole[best].values())
    rate, steps = chosen_rate(judged), chosen_step(judged)
    command = advised_command(comparison, best, rate, steps, arguments)
    points = points_of(comparison)
    sentences = [
        too_short(whole, comparison.plan.steps),
        _advice(comparison, best, rate, steps, losses[best], judged),
        _ranked(worse, levels),
        _not_told_apart(tied, behind, levels, comparison.images.at_hand),
        crossing(points, best, comparison.reference),
        _left_out(comparison),
        copies_sentence(audited),
        leak_sentence(audited.get(best)),
        forgotten_sentence(judged),
        f"Command of the advised run: {command}",
    ]
    text = " ".join(filter(None, sentences))
    return Answer(best, rate, steps, tied, command, text, points)


def too_short(whole: Mapping[str, Mapping[int, Judged]], steps: int) -> str:
    """Where the loss still fell at the last step, in half of the repetitions or more."""
    falling = [
        name
        for name, runs in whole.items()
        if sum(judged.still_falling for judged in runs.values()) * 2 >= len(runs)
    ]
    if not falling:
        return ""
    return (
        f"Training was too short for {join_names(falling)}: the loss still fell at the last step, "
        f"{steps}, so give a larger train.steps before you trust the order."
    )


def _advice(
    comparison: Comparison,
    best: str,
    rate: float,
    steps: int,
    loss: Mean,
    judged: Sequence[Judged],
) -> str:
    count, every = comparison.images.at_hand, comparison.images.count
    yours = f"your {count}" if count == every else f"{count} of your {every}"
    trained_on = round(sum(j.trained_on for j in judged) / len(judged))
    how = f", {steps} steps at {rate:.3g}" if best not in comparison.untrained else ""
    return (
        f"With {yours} images train {best}{how}: test loss {_with_band(loss)} "
        f"by runs that trained on {trained_on} of them, and the advised run trains on all {count} "
        "for the middle one of the steps that these chose."
        if best not in comparison.untrained
        else f"With {yours} images keep the source as it is ({best}): test loss {_with_band(loss)}."
    )


def _with_band(mean: Mean, level: float = LEVEL, signed: bool = False) -> str:
    low, high = mean.interval(level)
    return f"{number(mean.value, low, high, signed)} {interval(mean.value, low, high, signed)}"


def _ranked(worse: Mapping[str, Mean], levels: Mapping[str, float]) -> str:
    in_order = sorted(worse, key=lambda name: worse[name].value)
    said = [f"{name} is {_with_band(worse[name], levels[name])} worse" for name in in_order]
    return f"{join_names(said)}." if said else ""


def _not_told_apart(
    tied: Sequence[str], behind: Mapping[str, Mean], levels: Mapping[str, float], images: int
) -> str:
    """And how many images would tell, as an interval shrinks with the root of their number."""
    if not tied:
        return ""
    said = [f"{name} ({_with_band(behind[name], levels[name], True)})" for name in tied]
    if len(tied) == len(behind):
        first = "Nothing is distinguished: against it "
    else:
        first = "Not distinguished from it: "
    least, name = min((times_as_many(behind[name], levels[name]), name) for name in tied)
    would = (
        f" About {math.ceil(least * images)} images would tell {name} from it, if the difference "
        "is what it seems."
        if least < MANY
        else " No number of images within reach would tell them apart."
    )
    return f"{first}{join_names(said)}.{would}"


def times_as_many(d: Mean, level: float) -> float:
    """How many times as many images would make an interval that does not hold 0, as its half
    shrinks with the root of their number; inf where there is no difference at all."""
    low, high = d.interval(level)
    if low is None or high is None or not abs(d.value) > 1e-12:
        return math.inf
    return ((high - low) / 2 / d.value) ** 2


def _left_out(comparison: Comparison) -> str:
    failed = [n for n, why in comparison.left_out.items() if not why.startswith("worse than")]
    return f"Without an answer, as training failed: {join_names(failed)}." if failed else ""


def crossing(points: Sequence[Point], best: str, reference: str) -> str:
    """Where the reference overtakes what is best, between the sizes that were tried alone."""
    own = sorted(
        (p.trained_on, p.behind) for p in points if p.strategy == best and p.behind is not None
    )
    if best == reference or len(own) < 2:
        return ""
    signs = [(n, b[0]) for n, b in own]
    for (n, d), (m, e) in pairwise(signs):
        if d < 0 <= e:
            at = math.exp(math.log(n) + (math.log(m) - math.log(n)) * d / (d - e))
            return f"{reference} overtakes {best} at about {at:.0f} images to train on."
    if all(d < 0 for _, d in signs):
        return (
            f"{reference} overtakes {best} above {signs[-1][0]:.0f} images to train on, if at all."
        )
    return ""


def points_of(comparison: Comparison) -> list[Point]:
    """The curves, each strategy at each size."""
    points = []
    for size in (None, *comparison.plan.sizes):
        runs = {n: s[size] for n, s in comparison.found.items() if s.get(size)}
        apart = (
            differences(runs, comparison.reference, comparison.folds)
            if comparison.reference in runs
            else {}
        )
        for name, own in runs.items():
            loss, d = loss_of(own, comparison.folds), apart.get(name)
            points.append(
                Point(
                    name,
                    size,
                    sum(j.trained_on for j in own.values()) / len(own),
                    (loss.value, *loss.interval()),
                    None if d is None else (d.value, *d.interval()),
                )
            )
    return points


def copies_sentence(audited: Mapping[str, Run]) -> str:
    """By the criteria of a report (reporting.memorization_sentences)."""
    signs = {}
    for name, run in audited.items():
        [row], baselines = rows([run]), baselines_table([run])
        signs[name] = signs_of_copying(row, find_baseline(UNTOUCHED, row, baselines))
    if not signs:
        return "Copying was not looked for (audits)."
    copiers = [f"{name} ({', '.join(found)})" for name, found in signs.items() if found]
    return f"Signs of copying: {join_names(copiers)}." if copiers else "No sign of copying."


def leak_sentence(run: Run | None) -> str:
    """Where the losses of the advised strategy tell what it was trained on, and its source's do
    not."""
    excess = run and value_of(run.at("membership.excess"))
    auc = run and value_of(run.at("membership.auc"))
    if not excess or not auc or excess.low is None or excess.low <= 0:
        return ""
    band = interval(auc.value, auc.low, auc.high)
    return (
        "Its losses tell training images from others (AUC "
        f"{number(auc.value, auc.low, auc.high)} {band}, {excess.value:+.2f} against its source), "
        "so who has the weights can tell whose images they saw."
    )


def forgotten_sentence(judged: Sequence[Judged]) -> str:
    """Of the source's images, by the mean over repetitions."""
    known = [j.forgot for j in judged if j.forgot is not None]
    if not known:
        return ""
    mean = mean_over(known)
    moved = "rose" if mean.value > 0 else "changed"
    return f"What was forgotten: the loss on the source's images {moved} by {_with_band(mean)}."


def advised_command(
    comparison: Comparison, name: str, rate: float, steps: int, arguments: Sequence[str]
) -> str:
    training = [f"optimizer.lr={rate:.6g}", f"train.steps={steps}"]
    own = [*comparison.images.all_of_them, *comparison.strategies[name], *training]
    said_anew = {line.split("=")[0] for line in own}
    kept = [
        line
        for line in arguments
        if not line.startswith(OF_A_STUDY) and line.split("=")[0] not in said_anew
    ]
    return shlex.join(["python", "train.py", *kept, *own])
