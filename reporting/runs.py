"""What lies in the folder of an experiment: its runs, and their evaluations of one protocol."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from metrics.estimate import EVALUATION, GRID, VERSION
from runtime.content import canonical, differences
from runtime.directory import IDENTITY
from runtime.errors import UserError
from runtime.files import read_json, read_sealed
from runtime.log import read_metrics
from training.result import Result, read_result
from training.sweep import SWEEP, read_sweep


class Value(NamedTuple):
    """A number with its 95% interval, the bootstrap's replicates and from how many images they were
    drawn, where they are known."""

    value: float
    low: float | None = None
    high: float | None = None
    replicates: Sequence[float] = ()
    images: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """content: of RUN/evaluation/NAME/evaluation.json."""

    path: Path
    content: dict[str, Any]

    @property
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
        step, steps = (
            self.result.values.get("step"),
            self.result.config.get("train", {}).get("steps"),
        )
        return (
            ""
            if self.result.finished
            else "no result yet"
            if step is None
            else f"at step {step} of {steps}"
        )

    @property
    def content(self) -> dict[str, Any]:
        """Of the evaluation, {} where there is none."""
        return self.evaluation.content if self.evaluation else {}

    def at(self, path: str) -> Any:
        """What the evaluation has under keys that are joined by dots, None where it has nothing."""
        return look_up(self.content, path)

    def curve(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of metrics.jsonl."""
        return [
            (row["step"], row[key])
            for row in self.metrics
            if isinstance(row.get(key), int | float) and math.isfinite(row[key])
        ]


def look_up(node: Any, path: str) -> Any:
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node


def value_of(node: Any) -> Value | None:
    """A float, or an Estimate {"value", "low", "high", "replicates"}. None for what is no finite
    number."""
    if isinstance(node, dict):
        found = value_of(node.get("value"))
        return found and Value(
            found.value,
            *(node.get(key) for key in ("low", "high")),
            node.get("replicates", ()),
            node.get("images"),
        )
    return (
        Value(float(node))
        if isinstance(node, int | float) and not isinstance(node, bool) and math.isfinite(node)
        else None
    )


def read_runs(folder: Path) -> list[Run]:
    """Raises UserError for a file that is damaged."""
    found = [
        (path.parent, read_evaluations(path.parent))
        for path in sorted(folder.glob(f"*/{IDENTITY}"))
    ]
    protocol = common_protocol([e for _, evaluations in found for e in evaluations])
    runs = []
    for directory, evaluations in found:
        counted = next((e for e in evaluations if e.protocol == protocol), None)
        others = [e for e in evaluations if e is not counted]
        runs.append(
            Run(
                read_result(directory),
                counted,
                others,
                read_metrics(directory / "metrics.jsonl"),
                read_environment(directory),
            )
        )
    return runs


def read_environment(directory: Path) -> dict[str, Any]:
    path = directory / "environment.json"
    return (
        read_json(path, "delete it; it says what the run was trained by") if path.exists() else {}
    )


def read_evaluations(directory: Path) -> list[Evaluation]:
    """Of one run, the newest first."""
    paths = sorted(
        directory.glob(f"evaluation/*/{EVALUATION}"),
        key=lambda p: (p.stat().st_mtime_ns, p),
        reverse=True,
    )
    again = f"delete it and evaluate again: python evaluate.py checkpoint={directory}"
    found = [Evaluation(path, read_sealed(path, again, unsealed=True)) for path in paths]
    for evaluation in found:
        version = evaluation.content.get("version")
        if version != VERSION:
            raise UserError(
                f"{evaluation.path}: version {version} of the format, and this code reads "
                f"{VERSION}; {again}"
            )
    return found


def common_protocol(evaluations: Sequence[Evaluation]) -> str | None:
    """The one that most runs have; of those where several have as many one by a rule rather than at
    a step, then the newest."""
    runs: dict[str, set[Path]] = {}
    newest: dict[str, int] = {}
    for e in evaluations:
        runs.setdefault(e.protocol, set()).add(e.path.parent.parent)
        newest[e.protocol] = max(newest.get(e.protocol, 0), e.path.stat().st_mtime_ns)
    return max(
        runs, key=lambda p: (len(runs[p]), '"select": "step_' not in p, newest[p]), default=None
    )


def baselines_of(run: Run) -> dict[str, Run]:
    """The baselines beside a run's evaluation, each as a run that was evaluated and not trained."""
    config = {k: v for k, v in run.result.config.items() if k in ("seed", "data")}
    untrained = replace(run.result, values={}, config=config)
    return {
        name: Run(untrained, Evaluation(run.evaluation.path, content))
        for name, content in (run.at("floors") or {}).items()
    }


def missing(folder: Path, runs: Sequence[Run]) -> list[str]:
    """What this experiment still lacks: runs that are not finished, cells of its sweeps that failed
    or have not run, evaluations."""
    lines = [
        f"{r.name} "
        + (
            f"is at step {r.result.values['step']}"
            if "step" in r.result.values
            else "has no result yet"
        )
        for r in runs
        if not r.result.finished
    ]
    lines += [
        f"{r.name} is of an earlier version, whose held-out loss was of the first files alone: it "
        "is not shown. The test loss of an evaluation is, and the same command in another "
        "run.root trains it anew"
        for r in runs
        if r.result.values.get("held_out_loss") is not None
        and r.result.values.get("held_out_grid") != GRID
    ]
    for path in sorted(folder.glob(f"sweeps/*/{SWEEP}")):
        sweep = read_sweep(path.parent)
        for cell, record in zip(sweep.cells, sweep.records(), strict=True):
            if record is None:
                lines.append(f"{path.parent.name}: {cell} is not finished")
            elif record["status"] == "failed":
                lines.append(
                    f"{path.parent.name}: {cell} failed: {record['message'].splitlines()[0]}"
                )
    return lines + unevaluated(runs)


def unevaluated(runs: Sequence[Run]) -> list[str]:
    """Runs without an evaluation, or with one that is not comparable or no longer of their best
    checkpoint."""
    common = next((r.evaluation for r in runs if r.evaluation), None)
    left = [run for run in runs if run.evaluation is None and run.result.finished]
    if not common:
        return (
            [
                (
                    "no run is evaluated: python evaluate.py "
                    f"checkpoint={left[0].result.directory.parent}"
                )
            ]
            if left
            else []
        )
    alike = "".join(f" {shlex.quote(argument)}" for argument in common.content.get("arguments", []))
    lines = []
    if left:
        what = (
            f"{left[0].name} is"
            if len(left) == 1
            else f"{len(left)} runs ({', '.join(run.name for run in left)}) are"
        )
        where = left[0].result.directory if len(left) == 1 else left[0].result.directory.parent
        lines.append(
            f"{what} not evaluated under this protocol: python evaluate.py "
            f"checkpoint={where}{alike}"
        )
    for run in runs:
        rule, judged = run.at("protocol.select"), run.at("checkpoint.step")
        now = run.result.values.get({"best": "best_step", "last": "step"}.get(rule, ""))
        if None not in (now, judged) and now != judged:
            lines.append(
                f"{run.name} was evaluated at step {judged}, and its {rule} is step {now} now: "
                f"python evaluate.py checkpoint={run.result.directory}{alike}"
            )
        for other in run.others:
            apart = differences(
                other.content.get("protocol", {}), common.content.get("protocol", {})
            )
            lines.append(
                f"{run.name}: evaluation/{other.path.parent.name} is left out, "
                + (
                    f"under another protocol ({'; '.join(apart[:3])})"
                    if apart
                    else "a newer one is here"
                )
            )
    return lines
