"""Which strategies differ: paired over repetitions and images."""

from collections.abc import Mapping, Sequence

import numpy as np

from metrics.over_folds import mean_over_folds
from metrics.over_seeds import Mean, Spread, mean_over, moderated, spread_of, told_apart
from studies.which_layers.runs import Judged

ByRepeat = Mapping[int, Judged]


def mean_of(
    values: Sequence[float],
    of: Sequence[Judged],
    replicates: Sequence[Sequence[float]],
    folds: bool,
    spread: Spread | None = None,
) -> Mean:
    """folds: each is judged by images of its own; else one set judges all."""
    images = [judged.images for judged in of]
    if not folds:
        return mean_over(values, replicates, min(images), spread)
    return mean_over_folds(values, replicates, images, spread)


def loss_of(runs: ByRepeat, folds: bool) -> Mean:
    judged = list(runs.values())
    losses, replicates = [j.loss for j in judged], [j.replicates for j in judged]
    return mean_of(losses, judged, replicates, folds)


def differences(runs: Mapping[str, ByRepeat], one: str, folds: bool) -> dict[str, Mean]:
    """Each strategy minus one of them, over the repetitions that both have. The variance between
    repetitions is moderated by all of these contrasts."""
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
    best = min(runs, key=lambda name: loss_of(runs[name], folds).value)
    behind = differences(runs, best, folds)
    levels = told_apart(behind, level)
    gone = {}
    for name, d in behind.items():
        low, high = d.interval(levels.get(name, level))
        if name != reference and d.n > 1 and low is not None and low > 0:
            by = f"{d.value:.4f} [{low:.4f}, {high:.4f}]"
            gone[name] = f"worse than {best} by {by} after {d.n} repetitions"
    return gone
