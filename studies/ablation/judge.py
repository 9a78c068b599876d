"""Which claims of a table are shown: paired over seeds and images, with Holm's steps over all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from metrics.intervals import LEVEL
from metrics.over_seeds import Mean, Spread, mean_over, moderated, spread_of, told_apart
from reporting.table import paired_replicates
from studies.ablation.measured import Found
from studies.ablation.settings import Claim

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Judged:
    """A claim and what became of it.

    Args:
        verdict: shown, not shown (the interval holds 0), opposite, or not measured.
        difference: than - times less; None where it is not measured.
        level: of its interval, by Holm.
        why: it is not measured.
    """

    claim: Claim
    verdict: str
    difference: Mean | None = None
    level: float = LEVEL
    why: str = ""


Pairs = tuple[list[float], list[list[float]], int | None]


def judge(
    claims: Sequence[Claim], found: Mapping[str, Found], paths: Mapping[str, str]
) -> list[Judged]:
    """paths: of measures, by their names. The variance between seeds is moderated by the claims
    about one measure; Holm's steps are over all claims that are measured."""
    pairs = {k: p for k, c in enumerate(claims) if (p := _paired(c, found, paths[c.by]))}
    spreads = dict[int, Spread]()
    for measure in dict.fromkeys((claims[k].by, claims[k].times) for k in pairs):
        alike = {
            k: spread_of(p[0])
            for k, p in pairs.items()
            if (claims[k].by, claims[k].times) == measure and len(p[0]) > 1
        }
        spreads |= moderated(alike)
    differences = {k: mean_over(*p, spreads.get(k)) for k, p in pairs.items()}
    levels = told_apart(differences)
    return [
        _verdict(claim, differences[k], levels.get(k, LEVEL))
        if k in differences
        else Judged(claim, NOT_MEASURED, why=_why(claim, found))
        for k, claim in enumerate(claims)
    ]


def _verdict(claim: Claim, difference: Mean, level: float) -> Judged:
    if difference.variance is None:
        return Judged(claim, "not shown", difference, level, "one training, and no interval")
    if difference.holds_zero(level):
        return Judged(claim, "not shown", difference, level)
    return Judged(claim, "shown" if difference.value > 0 else "opposite", difference, level)


def _paired(claim: Claim, found: Mapping[str, Found], path: str) -> Pairs | None:
    """than - times less, of each seed that both have: differences, their replicates [seeds, draws]
    and from how many images these are."""
    if claim.less not in found or claim.than not in found:
        return None
    less, than = (found[name].values(path) for name in (claim.less, claim.than))
    couples = [(than[seed], less[seed]) for seed in than if seed in less]
    if not couples:
        return None
    replicates, images = paired_replicates(list(chain(*couples)))
    apart = np.subtract(replicates[::2], np.multiply(claim.times, replicates[1::2]))
    return [a.value - claim.times * b.value for a, b in couples], apart.tolist(), images


def _why(claim: Claim, found: Mapping[str, Found]) -> str:
    told = []
    for name in (claim.than, claim.less):
        state = found[name].state if name in found else "is no row of this size"
        told += [f"{name} {state}"] * bool(state)
    return "; ".join(told) or "the evaluations do not say"
