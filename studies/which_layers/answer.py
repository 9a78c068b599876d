"""What a comparison came to, in one paragraph, and the numbers that it is made of."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reporting.runs import Run
from runtime.errors import UserError
from studies.which_layers.judge import differences, loss_of, ranked
from studies.which_layers.rounds import Comparison, chosen_length, chosen_rate, chosen_step
from studies.which_layers.sentences import (
    Point,
    advice,
    at_the_end_of_the_rates,
    copies_sentence,
    crossing,
    forgotten_sentence,
    leak_sentence,
    not_told_apart,
    sampling,
    those_that_are_worse,
    those_that_failed,
    those_that_were_left_out,
    too_short,
)

OF_A_STUDY = ("study.", "budget=", "hydra")  # of a command line, what no single run has


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
    whole = {
        name: sizes[None]
        for name, sizes in comparison.found.items()
        if None in sizes and name not in comparison.failed
    }
    folds = comparison.folds
    running = {name: runs for name, runs in whole.items() if name in comparison.running}
    if not running or len(whole) < 2:
        why = "; ".join(f"{name}: {why}" for name, why in comparison.failed.items())
        raise UserError(f"fewer than two strategies came to an end, so nothing is compared. {why}")
    ranking = ranked(running, folds, len(whole))
    best = ranking.best
    judged = list(whole[best].values())
    rate, steps = chosen_rate(judged), chosen_step(judged)
    own = [*comparison.images.all_of_them, *comparison.strategies[best]]
    command = advised_command(own, rate, steps, chosen_length(judged), arguments)
    points = points_of(comparison)
    sentences = [
        too_short(whole, comparison.plan.steps),
        advice(comparison, best, loss_of(whole[best], folds)),
        those_that_are_worse(ranking),
        those_that_were_left_out(comparison),
        not_told_apart(ranking, whole, comparison),
        at_the_end_of_the_rates(whole, comparison),
        crossing(comparison, points, best),
        those_that_failed(comparison),
        copies_sentence(audited),
        leak_sentence(audited.get(best)),
        forgotten_sentence(judged),
        f"Command of the advised run: {command}",
        sampling(judged),
    ]
    text = " ".join(filter(None, sentences))
    return Answer(best, rate, steps, ranking.tied, command, text, points)


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


def advised_command(
    own: Sequence[str], rate: float, steps: int, length: float | None, arguments: Sequence[str]
) -> str:
    """Of a run on all images.

    Args:
        own: overrides of its images and its strategy.
        length: of the average, which then is the only one that it keeps.
        arguments: of the study's command line.
    """
    kept = [f"train.ema_lengths=[{length:g}]"] if length else []
    own = [*own, f"optimizer.lr={rate:.6g}", f"train.steps={steps}", *kept]
    said_anew = {line.split("=")[0] for line in own}
    given = [
        line
        for line in arguments
        if not line.startswith(OF_A_STUDY) and line.split("=")[0] not in said_anew
    ]
    return shlex.join(["python", "train.py", *given, *own])
