"""What the paragraph of a study says, a sentence each; "" where there is nothing to say."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy import special

from metrics.intervals import LEVEL, t_quantile
from metrics.over_seeds import Mean, mean_over, range_level
from reporting.memorization_sentences import signs_of_copying
from reporting.numbers import interval, join_names, number
from reporting.runs import Run, value_of
from reporting.table import UNTOUCHED, baselines_table, find_baseline, rows
from studies.which_layers.judge import Ranking, against, of_images, overtaken_at
from studies.which_layers.rounds import Comparison, chosen_length, chosen_rate, chosen_step
from studies.which_layers.runs import Judged

MANY = 20  # times as many images, which nobody is told to look for
POWER = 0.8  # with which so many images would tell
Behind = tuple[float, float | None, float | None]
ByStrategy = Mapping[str, Mapping[int, Judged]]


@dataclass(frozen=True)
class Point:
    """One strategy at one size. loss, behind: with their 95% intervals; behind is its loss minus
    the reference's, None for the reference. trained_on: images, their mean over repetitions."""

    strategy: str
    size: int | None
    trained_on: float
    loss: Behind
    behind: Behind | None


def too_short(whole: ByStrategy, steps: int) -> str:
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


def at_the_end_of_the_rates(whole: ByStrategy, comparison: Comparison) -> str:
    """Where half of the repetitions or more chose the lowest or the highest rate that was tried."""
    rates = [comparison.rate * factor for factor in sorted(comparison.plan.rates)]
    said = []
    for end, where in ((rates[0], "lowest"), (rates[-1], "highest")):
        names = [
            name
            for name, runs in whole.items()
            if name not in comparison.untrained
            and sum(math.isclose(j.rate, end) for j in runs.values()) * 2 >= len(runs)
        ]
        if names and len(rates) > 1:
            said.append(
                f"the {where} rate that was tried, {end:.3g}, was chosen for {join_names(names)}"
            )
    if not said:
        return ""
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}: other rates may be better (study.rates, optimizer.lr)."


def advice(comparison: Comparison, best: str, loss: Mean) -> str:
    count, every = comparison.images.at_hand, comparison.images.count
    yours = f"your {count}" if count == every else f"{count} of your {every}"
    judged = list(comparison.found[best][None].values())
    by = f", judged by {judged[0].judged_by} test images," if not comparison.folds else ""
    yours = f"{yours} images{by}"
    if best in comparison.untrained:
        return f"With {yours} keep the source as it is ({best}): test loss {_with_band(loss)}."
    trained_on = round(sum(j.trained_on for j in judged) / len(judged))
    length = chosen_length(judged)
    kept = f", and of its weights keep the average of length {length:g}" if length else ""
    return (
        f"With {yours} train {best}, {chosen_step(judged)} steps at "
        f"{chosen_rate(judged):.3g}{kept}: test loss {_with_band(loss)} by runs that trained on "
        f"{trained_on} of them, and the advised run trains on all {count}. Its rate, steps and "
        "length are the middle ones of those that these runs chose."
    )


def _with_band(mean: Mean, level: float = LEVEL, signed: bool = False) -> str:
    low, high = mean.interval(level)
    return f"{number(mean.value, low, high, signed)} {interval(mean.value, low, high, signed)}"


def those_that_are_worse(ranking: Ranking) -> str:
    said = [
        f"{name} is {_with_band(ranking.behind[name], ranking.levels[name])} worse"
        for name in ranking.worse
    ]
    return f"{join_names(said)}." if said else ""


def those_that_were_left_out(comparison: Comparison) -> str:
    """By racing, with what was known then."""
    said = [f"{name}, {why}" for name, why in comparison.outraced.items()]
    return f"Left out on the way: {'; '.join(said)}." if said else ""


def not_told_apart(ranking: Ranking, whole: ByStrategy, comparison: Comparison) -> str:
    """And what would tell the nearest one."""
    if not ranking.tied:
        return ""
    behind, levels = ranking.behind, ranking.levels
    said = [f"{name} ({_with_band(behind[name], levels[name], True)})" for name in ranking.tied]
    some = ranking.worse or comparison.outraced
    first = "Not distinguished from it: " if some else "Nothing is distinguished: against it "
    name = ranking.tied[0]
    images = of_images(whole, name, ranking.best, comparison.folds)
    if images is None:
        return f"{first}{join_names(said)}."
    times = times_as_many(behind[name], images, levels[name])
    unit = "folds" if comparison.folds else "seeds"
    if times < MANY:
        would = (
            f"About {_so_many(times, comparison)} would tell {name} from it in {POWER:.0%} of "
            "studies, if the difference is what it seems."
        )
    elif times == math.inf:
        would = (
            f"More images alone would not tell {name} from it, as trainings differ by more: more "
            f"{unit} (study.folds) may."
        )
    else:
        would = f"No number of images within reach would tell {name} from it."
    return f"{first}{join_names(said)}. {would}"


def _so_many(times: float, comparison: Comparison) -> str:
    """So many times the images that judge: with folds all of them, else the test images."""
    images, kind = comparison.images, "images"
    count, patients = images.at_hand, images.patients
    if not comparison.folds:
        kind, count = "test images", images.tested(None)
        patients = images.judges[1] if images.judges else None
    many = f"{math.ceil(times * count)} {kind}"
    return f"{many} of {math.ceil(times * patients)} patients" if patients else many


def times_as_many(d: Mean, of_images: float, level: float) -> float:
    """How many times as many images to judge by would make an interval that does not hold 0 with
    the probability POWER, if the difference is as large as it seems; inf where no number would.

    With r times as many the variance is what trainings add, as it is, and 1 / r of what the images
    add: (t + z) sqrt(training + images / r) = |difference|.
    """
    training = max(0.0, (d.variance or 0.0) - of_images)
    within = (abs(d.value) / (t_quantile(d.freedom, level) + special.ndtri(POWER))) ** 2
    return max(1.0, of_images / (within - training)) if within > training else math.inf


def those_that_failed(comparison: Comparison) -> str:
    names = list(comparison.failed)
    return f"Without an answer, as training failed: {join_names(names)}." if names else ""


def crossing(comparison: Comparison, points: Sequence[Point], best: str) -> str:
    """Where the reference overtakes a strategy, between the sizes that were tried alone: the best
    one; or, where that is the reference, the one that is furthest ahead of it with the fewest
    images, if that is told apart from it there."""
    reference = comparison.reference
    if best != reference:
        curve = _curve(points, best)
        if len(curve) > 1 and all(d < 0 for _, d in curve):
            most = f"{curve[-1][0]:.0f}"
            return f"{reference} overtakes {best} above {most} images to train on, if at all."
        return ""
    ahead = _ahead_of_few(comparison)
    if not ahead:
        return ""
    name, mean, level = ahead
    curve = _curve(points, name)
    told = f"With {curve[0][0]:.0f} images to train on {name} is better"
    told += f" ({_with_band(mean, level, True)})"
    at = overtaken_at(curve)
    return f"{told}; {reference} overtakes it at about {at:.0f}." if at else f"{told}."


def _ahead_of_few(comparison: Comparison) -> tuple[str, Mean, float] | None:
    """With the smallest subset, the strategy that is furthest ahead of the reference, its loss
    minus the reference's, and the level at which the intervals of all pairs hold together; None
    where none is told apart from it."""
    size = min(comparison.plan.sizes, default=None)
    runs = {n: s[size] for n, s in comparison.found.items() if size and s.get(size)}
    if comparison.reference not in runs:
        return None
    behind = against(runs, comparison.reference, comparison.folds)
    levels = {n: range_level(len(runs), d.freedom) for n, d in behind.items()}
    told = {n: d for n, d in behind.items() if d.value < 0 and not d.holds_zero(levels[n])}
    name = min(told, key=lambda n: told[n].value, default=None)
    return None if name is None else (name, told[name], levels[name])


def _curve(points: Sequence[Point], name: str) -> list[tuple[float, float]]:
    """(images to train on, its loss minus the reference's), the fewest first."""
    own = [p for p in points if p.strategy == name and p.behind]
    return sorted((p.trained_on, p.behind[0]) for p in own if p.behind)


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
    """Where the losses of the advised strategy tell what it was trained on, and more than its
    source's do, where it has one."""
    auc = run and value_of(run.at("membership.auc"))
    excess = run and value_of(run.at("membership.excess"))
    leak = excess.low if excess else auc.low and auc.low - 0.5 if auc else None
    if not auc or leak is None or leak <= 0:
        return ""
    band = interval(auc.value, auc.low, auc.high)
    against = f"{excess.value:+.2f} against its source" if excess else "without a source beside it"
    return (
        "The losses of the first run tell training images from others (AUC "
        f"{number(auc.value, auc.low, auc.high)} {band}, {against}), so who has the weights can "
        "tell whose images they saw."
    )


def forgotten_sentence(judged: Sequence[Judged]) -> str:
    """Of the source's images, by the mean over repetitions."""
    known = [j.forgot for j in judged if j.forgot is not None]
    if not known:
        return ""
    mean = mean_over(known)
    if mean.holds_zero():
        changed = "changed"
    else:
        changed = "rose" if mean.value > 0 else "fell"
        mean = replace(mean, value=abs(mean.value))
    trained = judged[0].forgot_on == "train"
    whose = " that it was trained on, as too few were held out," if trained else ""
    return (
        f"What was forgotten: the loss on the source's images{whose} {changed} by "
        f"{_with_band(mean)}."
    )


def sampling(judged: Sequence[Judged]) -> str:
    """How the average that is advised is sampled."""
    if not chosen_length(judged):
        return ""
    return "and of its images: python sample.py checkpoint=RUN weights=average"
