"""The page of a study: the answer, the curves, a table, the audits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reporting.columns import AUDIT_COLUMNS, COPIES, KID, RHO
from reporting.figures import RULE, STYLE, Plot
from reporting.numbers import MISSING, interval, number
from reporting.page import SHAPES, look, machine_text
from reporting.runs import Run
from reporting.table import known_columns, rows
from reporting.templates import render
from runtime.environment import ENVIRONMENT
from runtime.files import read_json, write_atomically
from studies.cells import Context
from studies.which_layers.answer import Answer
from studies.which_layers.rounds import Comparison, chosen_rate, chosen_step
from studies.which_layers.sentences import Point

HERE = Path(__file__).parent
PAGE = "answer.html"
AUDITED = (*AUDIT_COLUMNS, KID, RHO, COPIES)


def write_page(
    comparison: Comparison, answer: Answer, audited: Mapping[str, Run], told: str, context: Context
) -> Path:
    """told: the plan, in words. audited: strategy -> its run whose images were made."""
    looks = {name: look(k) for k, name in enumerate(comparison.strategies)}
    audits = [(name, rows([run])[0]) for name, run in audited.items()]
    plots = [plot for plot in figures(comparison, answer.points, looks) if plot.figure]
    text = render(
        "study.html.j2",
        HERE,
        name=context.runs.name,
        answer=answer,
        plan=told.strip(),
        plots=plots,
        rows=[_row(comparison, point) for point in answer.points],
        left_out=comparison.outraced | comparison.failed | comparison.missing,
        audits=audits,
        audit_columns=known_columns(AUDITED, [row for _, row in audits]),
        reference=comparison.reference,
        unit="fold" if comparison.plan.folds else "seed",
        key=lambda name: (looks[name]["color"], SHAPES[looks[name]["marker"]]),
        command=context.command,
        machine=_machine(comparison),
    )
    path = context.runs / PAGE
    write_atomically(path, text)
    return path


def _machine(comparison: Comparison) -> str:
    """Of the first run."""
    first = next(iter(comparison.found.values()))[None]
    environment = read_json(next(iter(first.values())).run / ENVIRONMENT)
    return machine_text(environment) or ""


def _row(comparison: Comparison, point: Point) -> dict[str, Any]:
    """Texts of a line of the table."""
    runs = list(comparison.found[point.strategy][point.size].values())
    rate, step = chosen_rate(runs), chosen_step(runs)
    forgot = [run.forgot for run in runs if run.forgot is not None]
    trains = point.strategy not in comparison.untrained
    return {
        "strategy": point.strategy,
        "trained_on": f"{point.trained_on:.0f}",
        "loss": _texts(*point.loss),
        "behind": _texts(*point.behind, signed=True) if point.behind else (MISSING, ""),
        "rate": f"{rate:.3g}" if trains else MISSING,
        "steps": ", ".join(str(run.step) for run in runs) if trains else MISSING,
        "step": str(step) if trains else MISSING,
        "forgot": number(fmean(forgot), signed=True) if forgot else MISSING,
        "repeats": len(runs),
    }


def _texts(
    value: float, low: float | None, high: float | None, signed: bool = False
) -> tuple[str, str]:
    return number(value, low, high, signed), interval(value, low, high, signed)


@rc_context(fname=STYLE)
def figures(
    comparison: Comparison, points: Sequence[Point], looks: Mapping[str, dict[str, Any]]
) -> list[Plot]:
    """The loss over the number of images, and along the training."""
    unit = "folds" if comparison.plan.folds else "seeds"
    sizes = "95% intervals over " + unit + " and images; N is the number trained on."
    ref = comparison.reference
    curve = Figure(figsize=(9.6, 3.6))
    left, right = curve.subplots(1, 2)
    for name in comparison.strategies:
        own = sorted((p for p in points if p.strategy == name), key=lambda p: p.trained_on)
        _line(left, [(p.trained_on, p.loss) for p in own], name, looks[name])
        behind = [(p.trained_on, p.behind) for p in own if p.behind]
        _line(right, behind, None, looks[name])
    right.axhline(0, color=RULE, zorder=0)
    left.set(xscale="log", xlabel="N", ylabel="test loss")
    right.set(xscale="log", xlabel="N", ylabel=f"test loss, minus {ref}'s")
    curve.legend(loc="outside right upper")
    along = Figure(figsize=(6.4, 3.4))
    axes = along.subplots()
    for name, found in comparison.found.items():
        if name not in comparison.untrained:
            steps, losses = _along(comparison, list(found.get(None, {}).values()))
            axes.plot(steps, losses, label=name, **{**looks[name], "markersize": 3})
    axes.set(xscale="log", xlabel="step", ylabel="validation loss")
    along.legend(loc="outside right upper")
    none: Any = lambda report: []  # noqa: E731
    return [
        Plot(
            "curve",
            "The loss on test images, by how many are trained on",
            f"Right: paired with {ref} over the same {unit}. {sizes}",
            "",
            none,
            figure=curve,
        ),
        Plot(
            "along",
            "When it turns",
            f"The validation loss along the training, with all images, mean over {unit}, at the "
            "rate that each chose. The lowest point is where a run stops.",
            "",
            none,
            figure=along,
        ),
    ]


def _line(
    axes: Axes,
    points: Sequence[tuple[float, tuple[float, float | None, float | None]]],
    label: str | None,
    looks: Mapping[str, Any],
) -> None:
    known = [(x, y, low, high) for x, (y, low, high) in points if low is not None]
    if known:
        x, y, low, high = map(np.array, zip(*known, strict=True))
        bars = np.abs([y - low, high - y])
        axes.errorbar(x, y, bars, label=label, capsize=2, linewidth=1.2, **looks)


def _along(comparison: Comparison, runs: Sequence[Any]) -> tuple[list[int], list[float]]:
    """The steps that all of these were looked at, and their mean loss there."""
    losses = [comparison.read.losses(run.run) for run in runs]
    steps = sorted(set.intersection(*map(set, losses))) if losses else []
    return steps, [fmean(own[step] for own in losses) for step in steps]
