"""Which strategies differ: paired over repetitions and images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from metrics.intervals import LEVEL, finite
from metrics.over_seeds import (
    Mean,
    Spread,
    mean_over,
    moderated,
    range_level,
    shared_freedom,
    spread_of,
)
from runtime.errors import UserError
from studies.which_layers.runs import Judged

ByRepeat = Mapping[int, Judged]


def mean_of(
    values: Sequence[float],
    of: Sequence[Judged],
    replicates: Sequence[Sequence[float]],
    folds: bool,
    spread: Spread | None = None,
) -> Mean:
    """The mean over repetitions.

    Args:
        folds: each is judged by images of its own, so that what these add is in the spread of the
            values, and Student's t over folds is all. mu is then what these images to train on lead
            to, on images like them, over trainings: two folds share most of what they train on, and
            nothing here tells how other images to train on would change it (Bengio and Grandvalet
            2004, Journal of Machine Learning Research 5, 1089: no unbiased estimate of that
            exists). Else one set judges all.
        spread: of the values, steadied by those of other differences.
    """
    if folds and len(values) > 1:
        return mean_over(values, spread=spread)
    return mean_over(values, replicates, min(judged.images for judged in of), spread)


def check_alike(runs: Mapping[str, ByRepeat], folds: bool) -> None:
    """Raises UserError where the images of a patient were drawn one by one to judge some runs, as
    by earlier versions, and together to judge others by the same images: these draws do not
    pair."""
    judged_alike: dict[int, list[Judged]] = {}
    for own in runs.values():
        for k, each in own.items():
            judged_alike.setdefault(k if folds else 0, []).append(each)
    for alike in judged_alike.values():
        before = [each.run for each in alike if each.of_images is None]
        if 0 < len(before) < len(alike):
            raise UserError(
                f"{before[0]} was judged by an earlier version, which took the images of a patient "
                f"for independent, and does not compare with {len(alike) - len(before)} runs that "
                f"were judged since. Delete it, and all {len(before)} of its kind: the same "
                "command makes them anew."
            )


def loss_of(runs: ByRepeat, folds: bool) -> Mean:
    check_alike({"": runs}, folds)
    judged = list(runs.values())
    losses, replicates = [j.loss for j in judged], [j.replicates for j in judged]
    return mean_of(losses, judged, replicates, folds)


def differences(runs: Mapping[str, ByRepeat], one: str, folds: bool) -> dict[str, Mean]:
    """Each strategy minus one of them, over the repetitions that both have. The variance between
    repetitions is moderated by all of these contrasts."""
    check_alike(runs, folds)
    values: dict[str, list[float]] = {}
    replicates: dict[str, list[np.ndarray]] = {}
    judged: dict[str, list[Judged]] = {}
    for name, own in runs.items():
        shared = [k for k in own if k in runs[one]]
        if name == one or not shared:
            continue
        pairs = [(own[k], runs[one][k]) for k in shared]
        values[name] = [a.loss - b.loss for a, b in pairs]
        replicates[name] = [np.subtract(a.replicates, b.replicates) for a, b in pairs]
        judged[name] = [a for a, _ in pairs]
    spreads = moderated({name: spread_of(v) for name, v in values.items() if len(v) > 1})
    return {
        name: mean_of(
            values[name],
            judged[name],
            [r.tolist() for r in replicates[name]],
            folds,
            spreads.get(name),
        )
        for name in values
    }


def of_images(runs: Mapping[str, ByRepeat], name: str, other: str, folds: bool) -> float | None:
    """The variance that the test images alone give the mean of name minus other. None where one
    image, or one patient, judges a run, which tells nothing of others."""
    shared = [k for k in runs[name] if k in runs[other]]
    pairs = [(runs[name][k].replicates, runs[other][k].replicates) for k in shared]
    apart = torch.stack([finite(np.subtract(a, b).tolist()) for a, b in pairs])
    n = min(runs[name][k].images for k in shared)
    if n < 2:
        return None
    larger = n / (n - 1)
    return larger * float(apart.var(1).mean() / len(shared) if folds else apart.mean(0).var())


@dataclass(frozen=True)
class Ranking:
    """Strategies against the one of lowest loss.

    Args:
        best: its name.
        behind: the others minus it.
        levels: at which Student's interval of each is asked, so that those of all pairs hold
            together at one level: the data chose the best, and a comparison with it is one of all
            pairs.
    """

    best: str
    behind: Mapping[str, Mean]
    levels: Mapping[str, float]

    def interval(self, name: str) -> tuple[float, float] | tuple[None, None]:
        return self.behind[name].interval(self.levels[name])

    @property
    def worse(self) -> list[str]:
        """Told apart from the best, the least first."""
        found = [n for n, d in self.behind.items() if not d.holds_zero(self.levels[n])]
        return sorted(found, key=lambda name: self.behind[name].value)

    @property
    def tied(self) -> list[str]:
        """Not told apart, the nearest first."""
        found = [name for name in self.behind if name not in self.worse]
        return sorted(found, key=lambda name: self.behind[name].value)


def no_surer_than_repetitions(d: Mean, contrasts: int) -> Mean:
    """With at most the degrees of freedom that so many differences over d.n repetitions have. Where
    the images seem to add all of the variance, that may be chance, and of a few repetitions it
    often is: racing would leave out one of seven equal strategies in 8 of 100 studies."""
    most = shared_freedom(contrasts, d.n - 1)
    return replace(d, freedom=min(d.freedom, most)) if d.n > 1 else d


def ranked(
    runs: Mapping[str, ByRepeat], folds: bool, compared: int, level: float = LEVEL
) -> Ranking:
    """compared: how many strategies there were, with those that were left out on the way."""
    best = min(runs, key=lambda name: loss_of(runs[name], folds).value)
    behind = against(runs, best, folds)
    levels = {n: range_level(compared, d.freedom, level) for n, d in behind.items()}
    return Ranking(best, behind, levels)


def against(runs: Mapping[str, ByRepeat], one: str, folds: bool) -> dict[str, Mean]:
    """The others minus this one, no surer than their repetitions."""
    found = differences(runs, one, folds)
    return {name: no_surer_than_repetitions(d, len(found)) for name, d in found.items()}


def overtaken_at(curve: Sequence[tuple[float, float]]) -> float | None:
    """Where a strategy that was ahead of another is no longer, interpolated in the logarithm; None
    where that is at none of the numbers that were tried. curve: (number of images, its loss minus
    the other's), the fewest first."""
    for (n, d), (m, e) in pairwise(curve):
        if d < 0 <= e:
            return math.exp(math.log(n) + (math.log(m) - math.log(n)) * d / (d - e))
    return None


def worse_than_best(
    found: Mapping[str, Mapping[int | None, ByRepeat]],
    running: Sequence[str],
    reference: str,
    folds: bool,
    level: float,
) -> dict[str, str]:
    """Of those still running, strategy -> why it is left out of what follows: by an interval of the
    difference to the one of lowest loss that lies above 0. The reference stays.

    Args:
        level: of all these intervals together.
    """
    runs = {name: found[name][None] for name in running if None in found.get(name, {})}
    if len(runs) < 2:
        return {}
    ranking = ranked(runs, folds, len(runs), level)
    gone = {}
    for name in ranking.worse:
        d, (low, high) = ranking.behind[name], ranking.interval(name)
        if name != reference and d.n > 1:
            by = f"{d.value:.4f} [{low:.4f}, {high:.4f}]"
            gone[name] = f"worse than {ranking.best} by {by} after {d.n} repetitions"
    return gone
