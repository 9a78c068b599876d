"""How much is lost by training all layers and stopping in time, whatever the images: the regret of
`full` over several targets and numbers of images, from the tables of studies (study/runs.csv):

    python -m studies.regret                           of studies/regret.csv
    python -m studies.regret --add runs/*/which_layers-*/study/runs.csv

--add puts studies into that table first, those of images and numbers that it has in their place.

In percent of full's test loss. **Regret** is full's loss minus that of the strategy that was best
in the other repetitions (other images to train on, another seed), so that no run chooses the
strategy that it is judged by, and chance in trainings alone gives 0 and not a gain. Chance in the
test images, which all repetitions share, does not: it makes full look a little worse. The variance
of a mean over K repetitions is S^2 / K and that which the test images add. Where the best strategy
and the second are not told apart the regret's is no less than that of their difference, and of the
best minus full: five repetitions that chose alike, or of which one did not, say too little of what
others would choose (without this 79 of 100 bounds of one target held, and 86 of four). Numbers of
images of one target share these, so a mean over them takes the mean of their standard deviations,
as if they moved together; targets are independent.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median_low

import numpy as np

from metrics.intervals import LEVEL
from metrics.over_seeds import Mean, mean_over, told_apart
from runtime.errors import UserError, script
from runtime.files import write_csv
from runtime.log import table
from studies.which_layers.judge import overtaken_at
from studies.which_layers.table import COLUMNS

TABLE = Path(__file__).with_suffix(".csv")
FULL, DRAWS = "full", 2000
Key = tuple[str, int]  # (images, how many at hand)
# what was asked before anything ran: (a, b, numbers of images): a has a lower loss than b
CONTRASTS = (
    ("freeze_decoder", FULL, (10,)),
    (FULL, "freeze_decoder", (300,)),
    (FULL, "scratch", (10, 30, 100)),
)


@dataclass(frozen=True)
class TargetResult:
    """Of one set of images, so many at hand.

    Args:
        full: its mean test loss.
        behind: strategy -> [K] in percent of full's loss, by repetition; 0 for full.
        sd: strategy -> what the test images add to the standard deviation of its mean.
        trained_on: images, the others at hand choose.
        steps, rate, factor: strategy -> median of those chosen; factor: of the base rate.
        falling: strategies whose loss still fell at the last step in half of the runs or more.
        at_an_end: those that chose the lowest rate of all in half of them or more, or the highest.
    """

    full: float
    behind: Mapping[str, np.ndarray]
    sd: Mapping[str, float]
    trained_on: int
    steps: Mapping[str, int]
    rate: Mapping[str, float]
    factor: Mapping[str, float]
    falling: Sequence[str]
    at_an_end: Sequence[str]

    def minus(self, one: str, other: str) -> Mean:
        """The mean of one minus the other."""
        return mean_of(self.behind[one] - self.behind[other], max(self.sd[one], self.sd[other]))

    @property
    def best(self) -> str:
        return min(self.behind, key=lambda name: self.behind[name].mean())

    @property
    def regret(self) -> Mean:
        names = list(self.behind)
        values = np.stack([self.behind[name] for name in names])  # [strategies, K]
        others = (values.sum(1, keepdims=True) - values) / (values.shape[1] - 1)
        chosen = others.argmin(0)  # [K]
        sd = max(self.sd[names[s]] for s in chosen)
        found = mean_of(-values[chosen, np.arange(values.shape[1])], sd)
        best, second = sorted(names, key=lambda name: self.behind[name].mean())[:2]
        apart = self.minus(second, best)
        if not apart.holds_zero():
            return found
        of = (found, apart, self.minus(best, FULL))
        return replace(found, variance=max(mean.variance or 0.0 for mean in of))


def mean_of(values: np.ndarray, sd: float) -> Mean:
    """values [K], sd: of the mean, by the test images that all share."""
    found = mean_over(values.tolist())
    return replace(found, variance=(found.variance or 0.0) + sd**2)


def together(of: Mapping[Key, Mean]) -> Mean:
    """The mean over targets of the mean over their numbers of images. Degrees of freedom by
    Satterthwaite 1946."""
    targets = sorted({target for target, _ in of})
    values, sds, free = [], [], []
    for target in targets:
        own = [mean for (name, _), mean in of.items() if name == target]
        values.append(np.mean([m.value for m in own]))
        sds.append(np.mean([(m.variance or 0.0) ** 0.5 for m in own]))
        free.append(min(m.freedom for m in own))
    variances = np.square(sds)
    within, n = float((variances**2 / np.array(free)).sum()), len(targets)
    freedom = float(variances.sum()) ** 2 / within if within else math.inf
    return Mean(float(np.mean(values)), n, float(variances.sum()) / n**2, freedom)


def comparisons(rows: Sequence[Mapping[str, str]]) -> dict[Key, TargetResult]:
    """Raises UserError where strategies have not the same repetitions."""
    found: dict[Key, dict[str, list[Mapping[str, str]]]] = {}
    for row in rows:
        if not row["size"]:
            key = row["images"], int(row["at_hand"])
            found.setdefault(key, {}).setdefault(row["strategy"], []).append(row)
    return {key: _comparison(key, found[key]) for key in sorted(found)}


def _comparison(key: Key, of: Mapping[str, Sequence[Mapping[str, str]]]) -> TargetResult:
    repeats = {name: [row["repeat"] for row in own] for name, own in of.items()}
    if FULL not in of or any(own != repeats[FULL] for own in repeats.values()):
        raise UserError(f"{key}: not the same repetitions of all strategies, or none of {FULL}.")
    loss = float(np.mean([float(row["loss"]) for row in of[FULL]]))

    def percent(name: str, column: str) -> np.ndarray:
        return 100 / loss * np.array([float(row[column] or 0) for row in of[name]])

    def median(name: str, column: str) -> float:
        return median_low(float(row[column]) for row in of[name])

    last = {
        name: sum(row["step"] == row["steps"] != "0" for row in own) * 2 >= len(own)
        for name, own in of.items()
    }
    return TargetResult(
        loss,
        {name: percent(name, "minus_reference") for name in of},
        {name: float(percent(name, "minus_reference_sd").mean()) for name in of},
        int(median(FULL, "trained_on")),
        {name: int(median(name, "step")) for name in of},
        {name: median(name, "rate") for name in of},
        {name: median(name, "rate") / median(name, "base_rate") for name in of},
        [name for name, falls in last.items() if falls],
        _at_an_end(of),
    )


def _at_an_end(of: Mapping[str, Sequence[Mapping[str, str]]]) -> list[str]:
    """Of three rates the middle one is the base."""
    found = []
    for name, own in of.items():
        factors = [float(row["rate"]) / float(row["base_rate"]) for row in own]
        ends = sum(f < 1 for f in factors), sum(f > 1 for f in factors)
        found += [name] * (max(ends) * 2 >= len(own))
    return found


def crossing(of: Mapping[int, float]) -> float:
    """The number of images from which full is better than another strategy, between those tried, on
    a log axis: 0 where it is at the least, inf where at none. of: number of images -> the loss of
    the other minus full's."""
    in_order = sorted(of.items())
    if in_order[0][1] >= 0:
        return 0.0
    return overtaken_at(in_order) or math.inf


def crossing_text(of: Mapping[int, TargetResult], one: str, draws: int = DRAWS) -> str:
    """With its interval: that of crossings of curves whose points are drawn about those measured,
    by Student's t over repetitions, with what the test images add."""

    def text(n: float) -> str:
        if n == 0:
            return f"below {min(of)}"
        return f"above {max(of)}, if at all" if n == math.inf else f"{n:.0f}"

    means = {n: c.minus(one, FULL) for n, c in of.items()}
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(draws):
        t = {n: random.standard_t(m.freedom) * (m.variance or 0.0) ** 0.5 for n, m in means.items()}
        drawn.append(crossing({n: m.value + t[n] for n, m in means.items()}))
    drawn.sort()
    low, high = (drawn[int(q * (draws - 1))] for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    if low == high and low in (0, math.inf):
        return f"no crossing ({text(low)})"
    found = crossing({n: m.value for n, m in means.items()})
    return f"{text(found)} [{text(low)}; {text(high)}]"


def contrasts(found: Mapping[Key, TargetResult]) -> list[list[str]]:
    """Of CONTRASTS, over all targets: whether each is shown, by Holm's steps, and how often one of
    the two still fell at its last step, so that a longer training may say otherwise."""
    means, short = dict[str, Mean](), dict[str, str]()
    for one, other, numbers in CONTRASTS:
        asked = {
            key: c.minus(one, other)
            for key, c in found.items()
            if key[1] in numbers and {one, other} <= c.behind.keys()
        }
        if asked:
            done = ", ".join(map(str, sorted({n for _, n in asked})))
            targets = len({target for target, _ in asked})
            name = f"{one} below {other} at {done} images, {targets} targets"
            means[name] = together(asked)
            falls = {s: sum(s in found[key].falling for key in asked) for s in (one, other)}
            told = [f"{s} still fell in {n} of {len(asked)}" for s, n in falls.items() if n]
            short[name] = ", ".join(told)
    levels = told_apart(means)
    lines = []
    for name, mean in means.items():
        low, _ = mean.interval(levels[name])
        said = "not shown" if mean.holds_zero(levels[name]) else "shown"
        opposite = low is not None and low > 0
        verdict = "opposite" if opposite else said
        lines.append([name, mean_text(mean, levels[name]), verdict, short[name]])
    return lines


def mean_text(mean: Mean, level: float = LEVEL) -> str:
    low, high = mean.interval(level)
    return f"{mean.value:+.2f}% [{low:+.2f}, {high:+.2f}]"


def regrets(found: Mapping[Key, TargetResult]) -> list[list[str]]:
    """A line for each target and number of images."""
    heading = ["images", "N", "full's loss", "best", "regret", "its steps", "full's"]
    lines = [[*heading, "still falling"]]
    for (target, n), c in found.items():
        steps = (f"{c.steps[name]} at {c.rate[name]:.2g}" for name in (c.best, FULL))
        falling = ", ".join(c.falling) or "none"
        lines.append(
            [target, str(n), f"{c.full:.4f}", c.best, mean_text(c.regret), *steps, falling]
        )
    return lines


def behind(found: Mapping[Key, TargetResult]) -> list[list[str]]:
    """Each strategy minus full."""
    names = _strategies(found)
    lines = [["images", "N", *names]]
    for (target, n), c in found.items():
        told = (mean_text(c.minus(name, FULL)) if name in c.behind else "" for name in names)
        lines.append([target, str(n), *told])
    return lines


def by_number(found: Mapping[Key, TargetResult]) -> list[list[str]]:
    """The mean over the targets that have so many images: full's regret, and each strategy minus
    full where all of them have it."""
    names = _strategies(found)
    lines = [["targets", "N", "regret", *names]]
    for n in sorted({n for _, n in found}):
        own = {key: c for key, c in found.items() if key[1] == n}
        regret = mean_text(together({key: c.regret for key, c in own.items()}))
        told = (
            mean_text(together({key: c.minus(name, FULL) for key, c in own.items()}))
            if all(name in c.behind for c in own.values())
            else ""
            for name in names
        )
        lines.append([str(len(own)), str(n), regret, *told])
    return lines


def _strategies(found: Mapping[Key, TargetResult]) -> list[str]:
    """All but full."""
    return list(dict.fromkeys(name for c in found.values() for name in c.behind if name != FULL))


def sentence(found: Mapping[Key, TargetResult]) -> str:
    """What stands first. The bound is one-sided, and rounded up."""
    mean = together({key: c.regret for key, c in found.items()})
    upper = math.ceil(round(10 * (mean.interval(2 * LEVEL - 1)[1] or 0.0), 6)) / 10
    targets, numbers = {t for t, _ in found}, sorted({n for _, n in found})
    more, less = f"{upper:.1f}% more" if upper >= 0 else f"{-upper:.1f}% less", mean.value < 0
    average = f"{abs(mean.value):.1f}% {'below' if less else 'above'}"
    trained = [(name, c) for c in found.values() for name in c.steps if c.steps[name]]
    falling = sum(name in c.falling for name, c in trained)
    at_ends = sum(name in c.at_an_end for name, c in trained)
    span = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
    return (
        f"Over {len(targets)} targets with {span} images, the test loss of full with the stop rule "
        f"is on average {average} that of the strategy that the other repetitions choose, in "
        f"percent of full's own; with 95% confidence it is at most {more}. Of {len(trained)} "
        f"strategies, targets and numbers {falling} still fell at the last step, and {at_ends} "
        "chose an end of the grid of rates."
    )


def add(paths: Sequence[Path]) -> None:
    """Puts tables of studies into TABLE."""
    rows = read(TABLE) if TABLE.exists() else []
    for path in paths:
        new = read(path)
        keys = {(row["images"], row["at_hand"]) for row in new}
        rows = [row for row in rows if (row["images"], row["at_hand"]) not in keys] + new
    rows.sort(key=lambda row: (row["images"], int(row["at_hand"])))
    comparisons(rows)  # raises before a table is written that none could read
    write_csv(TABLE, [COLUMNS, *([row[c] for c in COLUMNS] for row in rows)])


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@script
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="RUNS.CSV")
    add(parser.parse_args().add)
    found = comparisons(read(TABLE))
    print(sentence(found), "", table(contrasts(found)), "", table(regrets(found)), sep="\n")
    print("", table(behind(found)), "", table(by_number(found)), "", sep="\n")
    for target in dict.fromkeys(target for target, _ in found):
        of = {n: c for (name, n), c in found.items() if name == target}
        print(f"{target}, N* of full over freeze_decoder: {crossing_text(of, 'freeze_decoder')}")


if __name__ == "__main__":
    main()
