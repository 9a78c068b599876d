"""What lies in the folder of an experiment: its runs, and their evaluations of one protocol."""

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from metrics.estimate import EVALUATION, GRID, VERSION, as_now
from runtime.content import canonical, differences
from runtime.errors import UserError
from runtime.files import read_json, read_sealed
from runtime.log import read_metrics
from training.result import Result, images_follow, read_result
from training.run_directory import IDENTITY
from training.sweep_records import SWEEP, read_sweep

# of protocols, in other words than the values
DIFFERENCES = {
    "test": "other test images",
    "drawn_by": "the images of a patient drawn one by one in one of the two, and together in the "
    "other",
}


class Value(NamedTuple):
    """A number with its 95% interval, the bootstrap's replicates and from how many images they were
    drawn, where they are known; of images in groups, such as patients, from how many groups, and
    how many images these are (metrics.estimate.Estimate)."""

    value: float
    low: float | None = None
    high: float | None = None
    replicates: Sequence[float] = ()
    images: int | None = None
    of_images: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """content: of RUN/evaluation/NAME/evaluation.json."""

    path: Path
    content: dict[str, Any]

    @property
    def written(self) -> int:
        """When, in nanoseconds."""
        return self.path.stat().st_mtime_ns

    @property
    def step(self) -> int | None:
        """Of the checkpoint, where that was asked for and no rule chose it."""
        found = re.fullmatch(r"step_(\d+)", str(look_up(self.content, "protocol.select")))
        return int(found[1]) if found else None

    @cached_property
    def protocol(self) -> str:
        return json.dumps(canonical(self.content.get("protocol", {})), sort_keys=True)


@dataclass(frozen=True)
class Run:
    """evaluation: the one that counts here. others: those under another protocol, and older
    ones."""

    result: Result
    evaluation: Evaluation | None = None
    others: Sequence[Evaluation] = ()
    metrics: Sequence[dict[str, Any]] = field(default=(), repr=False)
    environment: dict[str, Any] = field(default_factory=dict, repr=False)  # of its training

    @property
    def name(self) -> str:
        return self.result.directory.name

    @property
    def progress(self) -> str:
        """Where it stands: "" for a finished run."""
        if self.result.finished:
            return ""
        step = self.came_to("step")
        return "no result yet" if step is None else f"at step {step} of {self.result.steps}"

    @property
    def content(self) -> dict[str, Any]:
        """Of the evaluation, {} where there is none."""
        return self.evaluation.content if self.evaluation else {}

    def at(self, path: str) -> Any:
        """What the evaluation has under keys joined by dots, None where it has nothing."""
        return look_up(self.content, path)

    def came_to(self, key: str) -> Any:
        """What result.json has under a key, None where it has nothing."""
        return self.result.values.get(key)

    def curve(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of metrics.jsonl."""
        return [
            (row["step"], row[key])
            for row in self.metrics
            if isinstance(row.get(key), int | float) and math.isfinite(row[key])
        ]


def evaluate(where: Path, arguments: Sequence[str] = ()) -> str:
    """The command."""
    return f"python evaluate.py checkpoint={where} {shlex.join(arguments)}".rstrip()


def look_up(node: Any, path: str) -> Any:
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node


def value_of(node: Any) -> Value | None:
    """A float, or an Estimate {"value", "low", "high", "replicates"}. None for what is no finite
    number."""
    if isinstance(node, dict):
        found = value_of(node.get("value"))
        return found and found._replace(**{k: node[k] for k in Value._fields[1:] if k in node})
    if isinstance(node, bool) or not isinstance(node, int | float) or not math.isfinite(node):
        return None
    return Value(float(node))


def read_runs(folder: Path) -> list[Run]:
    """The runs of an experiment, each with its evaluation of the protocol that most have.

    Raises:
        UserError: a file is damaged, or an evaluation is of another version.
    """
    directories = sorted(path.parent for path in folder.glob(f"*/{IDENTITY}"))
    evaluations = [read_evaluations(directory) for directory in directories]
    protocol = common_protocol(list(chain(*evaluations)))
    mend = "delete it; it says what the run was trained by"
    runs = []
    for directory, found in zip(directories, evaluations):
        counted = next((e for e in found if e.protocol == protocol), None)
        environment = directory / "environment.json"
        runs.append(
            Run(
                read_result(directory),
                counted,
                [e for e in found if e is not counted],
                read_metrics(directory / "metrics.jsonl"),
                read_json(environment, mend) if environment.exists() else {},
            )
        )
    return runs


def read_evaluations(directory: Path) -> list[Evaluation]:
    """Of one run, the newest first.

    Raises:
        UserError: a file is damaged or of another version.
    """
    again = f"delete it and evaluate again: {evaluate(directory)}"
    found = []
    for path in directory.glob(f"evaluation/*/{EVALUATION}"):
        content = as_now(read_sealed(path, again, unsealed=True))
        if (version := content.get("version")) != VERSION:
            raise UserError(
                f"{path}: version {version} of the format, and this code reads {VERSION}; {again}"
            )
        found.append(Evaluation(path, content))
    return sorted(found, key=lambda e: (e.written, e.path), reverse=True)


def common_protocol(evaluations: Sequence[Evaluation]) -> str | None:
    """The one that most runs have; of those where several have as many one by a rule rather than at
    a step, then the newest."""

    def rank(protocol: str) -> tuple[int, bool, int]:
        under = [e for e in evaluations if e.protocol == protocol]
        runs = {e.path.parent.parent for e in under}
        return len(runs), '"select": "step_' not in protocol, max(e.written for e in under)

    return max(dict.fromkeys(e.protocol for e in evaluations), key=rank, default=None)


def baselines_of(run: Run) -> dict[str, Run]:
    """The baselines beside a run's evaluation, each as a run that was evaluated and not trained."""
    if not run.evaluation:
        return {}
    path = run.evaluation.path
    config = {k: v for k, v in run.result.config.items() if k in ("seed", "data")}
    untrained = replace(run.result, values={}, config=config)
    found: dict[str, Any] = run.at("baselines") or {}
    return {name: Run(untrained, Evaluation(path, content)) for name, content in found.items()}


def missing(folder: Path, runs: Sequence[Run]) -> list[str]:
    """What this experiment still lacks: runs that are not finished, cells of its sweeps that failed
    or have not run, evaluations."""
    lines = []
    for run in runs:
        if not run.result.finished:
            step = run.came_to("step")
            stands = "has no result yet" if step is None else f"is at step {step}"
            lines.append(f"{run.name} {stands}")
    lines += [
        f"{run.name} is of an earlier version, whose held-out loss was of the first files alone: "
        "it is not shown. The test loss of an evaluation is, and the same command in another "
        "run.root trains it anew"
        for run in runs
        if run.result.loss is not None and run.came_to("held_out_grid") != GRID
    ]
    if not images_follow([run.result for run in runs]):
        lines.append(
            "images were added, removed or changed between the runs (data.images): what these came "
            "to compares within one set of images alone, also the held-out loss, as other images "
            "are held out"
        )
    for path in sorted(folder.glob(f"sweeps/*/{SWEEP}")):
        sweep = read_sweep(path.parent)
        for cell, record in zip(sweep.cells, sweep.records(), strict=True):
            if record is None:
                lines.append(f"{path.parent.name}: {cell} is not finished")
            elif record["status"] == "failed":
                why = record["message"].splitlines()[0]
                lines.append(f"{path.parent.name}: {cell} failed: {why}")
    return lines + unevaluated(folder, runs)


def unevaluated(folder: Path, runs: Sequence[Run]) -> list[str]:
    """Runs without an evaluation, or with one that is not comparable or no longer of their best
    checkpoint."""
    left = [run for run in runs if run.evaluation is None and run.result.finished]
    common = next((run.content for run in runs if run.evaluation), None)
    if common is None:
        return [f"no run is evaluated: {evaluate(folder)}"] if left else []
    arguments, lines = common.get("arguments", []), []
    known = {run.result.images for run in runs if run.evaluation} | {""}
    apart = [run for run in left if run.result.images not in known]
    if left := [run for run in left if run not in apart]:
        names = ", ".join(run.name for run in left)
        what, where = f"{len(left)} runs ({names}) are", folder
        if len(left) == 1:
            what, where = f"{names} is", left[0].result.directory
        lines.append(f"{what} not evaluated under this protocol: {evaluate(where, arguments)}")
    lines += [
        f"{run.name} was trained on other images than the runs that are evaluated here: no "
        "evaluation of it compares with theirs"
        for run in apart
    ]
    for run in runs:
        rule, judged = run.at("protocol.select"), run.at("checkpoint.step")
        now = run.came_to({"best": "best_step", "last": "step"}.get(rule, ""))
        if None not in (now, judged) and now != judged:
            lines.append(
                f"{run.name} was evaluated at step {judged}, and its {rule} is step {now} now: "
                + evaluate(run.result.directory, arguments)
            )
        lines += left_out(run, common.get("protocol", {}))
    return lines


def left_out(run: Run, protocol: dict[str, Any]) -> list[str]:
    """A line for each evaluation that does not count, and one for all those that differ in nothing
    but the checkpoint that they are of (select=every). protocol: the one that counts."""
    alike: dict[str, list[Evaluation]] = {}
    for other in run.others:
        but_for_it = canonical(other.content.get("protocol", {}) | {"select": "step"})
        key = str(other.path) if other.step is None else json.dumps(but_for_it, sort_keys=True)
        alike.setdefault(key, []).append(other)
    lines = []
    for others in alike.values():
        differing = differences(others[0].content.get("protocol", {}), protocol)
        told = [DIFFERENCES.get(line.split(":")[0], line) for line in differing]
        what, why = f"evaluation/{others[0].path.parent.name} is left out", "a newer one is here"
        if len(others) > 1:
            told = [line for line in told if not line.startswith("select: ")]
            steps = [other.step for other in others if other.step is not None]
            what = f"{len(others)} evaluations of single checkpoints are left out"
            why = f"of step {min(steps)} to {max(steps)}"
        if told:
            why = f"under another protocol ({'; '.join(told[:3])})"
        lines.append(f"{run.name}: {what}, {why}")
    return lines
