"""The columns of the table: where each number comes from, how it is written, and how to read it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml

from metrics.estimate import GRID
from reporting.numbers import number
from reporting.runs import Run, Value, evaluate, look_up, value_of
from training.result import percent, size


@dataclass(frozen=True)
class Column:
    """As columns.yaml says."""

    key: str
    heading: str
    group: str
    read: Callable[[Run], Value | None]
    means: str
    better: str = ""
    text: Callable[[float], str] | None = None
    band: bool = False
    signed: bool = False
    percent: bool = False

    def why(self, run: Run) -> str:
        """Why this run has no such number."""
        if self.group in ("training", "cost"):
            return "the run has not told it yet"
        if run.evaluation is None:
            return f"not evaluated: {evaluate(run.result.directory)}"
        return "; ".join(run.at("notes") or ()) or "the evaluation does not say"


def best_step(run: Run) -> Value | None:
    return value_of(run.result.values.get("best_step", run.at("checkpoint.step")))


def evaluated_loss(run: Run) -> Value | None:
    """Of the validation images at the evaluated checkpoint; where metrics.jsonl does not say it, at
    the run's last look. None of a run of an earlier version, whose loss was of other images."""
    if run.came_to("held_out_grid") != GRID:
        return None
    step = run.at("checkpoint.step")
    step = run.came_to("best_step") if step is None else step
    losses: dict[Any, float] = dict(run.curve("validation/loss"))
    return value_of(losses.get(step, run.result.loss))


COMPUTED = {"best_step": best_step, "judged_loss": evaluated_loss}
FILES = {
    "config": attrgetter("result.config"),
    "result": attrgetter("result.values"),
    "evaluation": attrgetter("content"),
}
TEXTS: dict[str, Callable[[float], str]] = {
    "percent": percent,
    "count": "{:,.0f}".format,
    "rate": "{:.3g}".format,
    "hours": lambda v: number(v) if v < 1 else f"{v:.2f}",
    "size": size,
}


def _column(key: str, entry: dict[str, Any]) -> Column:
    file, _, path = entry.pop("from", "").partition(".")

    def read(run: Run) -> Value | None:
        return value_of(look_up(FILES[file](run), path)) if file else COMPUTED[key](run)

    return Column(key, read=read, text=TEXTS.get(entry.pop("text", "")), **entry)


_FILE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
NAMED = {entry.get("from") for entry in (_FILE["columns"] | _FILE["further"]).values()}
COLUMNS = [_column(*entry) for entry in _FILE["columns"].items()]
FURTHER = [_column(*entry) for entry in _FILE["further"].items()]
AUDIT_COLUMNS = [_column(*entry) for entry in _FILE["audits"].items()]
BASELINES: dict[str, str] = _FILE["baselines"]
BY_KEY = {column.key: column for column in COLUMNS}
TEST_LOSS, HELD_OUT, KID = (BY_KEY[key] for key in ("test_loss", "judged_loss", "kid_test"))
FORGOT, RHO, COPIES = (BY_KEY[key] for key in ("source_change", "rho", "copy_share"))
PRECISION, HOURS = BY_KEY["precision"], BY_KEY["hours"]


def hours_of(devices: Iterable[str]) -> Column:
    """HOURS under the name of what it counts."""
    kinds = {"CPU" if device.startswith("cpu") else "GPU" for device in devices}
    one = f"{min(kinds, default='GPU')}-hours"
    return replace(HOURS, heading="hours, GPU or CPU" if len(kinds) > 1 else one)


def further(frechet: str) -> list[Column]:
    """FURTHER. frechet: what the distance is called in these features, FID in Inception's alone."""
    return [replace(c, heading=c.heading.format(frechet=frechet)) for c in FURTHER]


def own_metrics(runs: Iterable[Run]) -> list[Column]:
    """Of what evaluations have under quality.test and columns.yaml does not name: metrics of one's
    own, under their keys."""
    about = {"group": "quality", "band": True, "means": "a metric without an entry in columns.yaml"}
    keys = dict.fromkeys(key for run in runs for key in run.at("quality.test") or {})
    return [
        _column(key, {"from": path, "heading": key, **about})
        for key in keys
        if (path := f"evaluation.quality.test.{key}") not in NAMED
    ]
