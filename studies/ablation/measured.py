"""What the runs of a row came to."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from config.overrides import composed
from metrics.over_seeds import Mean, mean_over
from reporting.runs import Evaluation, Value, look_up, read_evaluations, value_of
from reporting.table import paired_replicates
from runtime.content import canonical
from studies.ablation.settings import Measure
from studies.cells import Outcome

# training.loop says so of a training that diverged
DIVERGED = re.compile(r"gradient of step (\d+) is not finite|after (\d+) steps is not finite")
# of an evaluation, what changes none of its numbers
WHERE = ("device", "cache", "kernels", "batch_size", "checkpoint", "out")


@dataclass(frozen=True)
class Found:
    """By seed.

    Args:
        runs: those that were trained.
        evaluations: of these, as the row asks for it.
        unstable: the step that a training diverged at.
        failed: what else went wrong, in words.
    """

    runs: Mapping[int, Path]
    evaluations: Mapping[int, Evaluation]
    unstable: Mapping[int, int]
    failed: Mapping[int, str]

    def values(self, path: str) -> dict[int, Value]:
        """What the evaluations have at this path."""
        found = {k: value_of(look_up(e.content, path)) for k, e in self.evaluations.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def mean(self, path: str) -> Mean | None:
        """Over the seeds; of one, with the interval over its images. None where there is none."""
        values = list(self.values(path).values())
        if not values:
            return None
        return mean_over([v.value for v in values], *paired_replicates(values))

    @property
    def state(self) -> str:
        """What keeps a seed from having numbers, in words."""
        said = {seed: f"unstable at step {step}" for seed, step in self.unstable.items()}
        said |= dict.fromkeys(self.failed, "failed")
        seeds = {text: [str(k) for k in said if said[k] == text] for text in said.values()}
        return "; ".join(f"{text} ({_seeds(which)})" for text, which in seeds.items())


def failures(found: Mapping[str, Found]) -> list[str]:
    """What went wrong, each message once, with the rows that it is of. found: by their names."""
    rows = dict[str, list[str]]()
    for name, each in found.items():
        for message in dict.fromkeys(each.failed.values()):
            rows.setdefault(message, []).append(name)
    more = {message: len(names) - 1 for message, names in rows.items()}
    return [
        f"Failed: {names[0]}{f' and {more[message]} more' * bool(more[message])}: {message}"
        for message, names in rows.items()
    ]


def _seeds(which: Sequence[str]) -> str:
    return f"seed{'s' * (len(which) > 1)} {', '.join(which)}"


def found_of(outcomes: Mapping[int, Outcome], line: str, measure: Measure) -> Found:
    """outcomes: by seed. line: of evaluate.py that the row asks for. measure: that says which
    evaluation counts where a run has several by this line, each of another checkpoint."""
    runs, evaluations = dict[int, Path](), dict[int, Evaluation]()
    unstable, failed = dict[int, int](), dict[int, str]()
    for seed, outcome in outcomes.items():
        if outcome.run is None:
            if at := DIVERGED.search(outcome.message):
                unstable[seed] = int(at[1] or at[2])
            else:
                failed[seed] = outcome.message
            continue
        runs[seed] = outcome.run
        if asked := [e for e in read_evaluations(outcome.run) if _is_by(e, line)]:
            evaluations[seed] = _lowest(asked, measure)
        else:
            failed[seed] = f"{outcome.run} is not evaluated: delete it, and give the command again"
    return Found(runs, evaluations, unstable, failed)


def _is_by(evaluation: Evaluation, line: str) -> bool:
    return _asked(shlex.join(evaluation.content.get("arguments", []))) == _asked(line)


@cache
def _asked(line: str) -> Any:
    """All settings of a command line of evaluate.py that decide numbers."""
    config = composed("evaluate", shlex.split(line))
    return canonical({key: value for key, value in config.items() if key not in WHERE})


def _lowest(evaluations: list[Evaluation], measure: Measure) -> Evaluation:
    """The best of them, as the papers give the minimum over training; the newest where the measure
    ranks none."""
    sign = 1 if measure.better == "lower" else -1

    def rank(evaluation: Evaluation) -> float:
        value = value_of(look_up(evaluation.content, measure.path))
        return sign * value.value if value else float("inf")

    return min(evaluations, key=rank)
