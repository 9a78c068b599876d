"""The figures of a report, by matplotlib: what each shows, or what is missing for it.

Each is one figure with a panel for each setting of the data. In the page its text, grid and
background follow light and dark; the files are on white, for a paper.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from metrics.memorization import NEAR
from reporting.columns import FORGOT, HELD_OUT, KID, RHO, TEST_LOSS, Column
from reporting.table import Row, known_columns, other_kind

if TYPE_CHECKING:
    from reporting.page import Report

STYLE = Path(__file__).with_name("figures.mplstyle")
TEXT, MUTED, RULE, LIMIT, HEAT = "#1b1f24", "#626b76", "#dfe3e8", "#b3261e", "#14599c"
VARIABLES = {
    "#ffffff": "back",
    TEXT: "text",
    MUTED: "muted",
    RULE: "rule",
    LIMIT: "bad",
    HEAT: "heat",
}
# Both are told apart on white and on black. Of 8 colours and 7 shapes no two of 56 are alike.
COLORS = ["#0072b2", "#c04a00", "#00866a", "#b2478c", "#b57a00", "#2f9fd6", "#7464d2", "#7d858f"]
SHAPES = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "*": "★", "P": "✚"}

Looks = dict[str, dict[str, Any]]  # strategy -> colour and marker
Draw = Callable[[Axes, Looks], None]
Panels = Iterable[tuple[str, Draw | None]]  # (setting of the data, in words, what draws it)
# strategy -> (x, y, y low, y high, x low, x high), or the first of them
Lines = dict[str, list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Plot:
    """caption, missing: may hold words of the report in braces. missing: what a figure that cannot
    be drawn needs. panels: of a report. wide: a panel is as wide as the page, and as high as it has
    strategies."""

    name: str
    title: str
    caption: str
    missing: str
    panels: Callable[[Report], Panels]
    wide: bool = False
    figure: Figure | None = None

    @cached_property
    def svg(self) -> bytes:
        return self._saved("svg", Date=None, Creator=None, Format=None, Type=None)

    @cached_property
    def pdf(self) -> bytes:
        return self._saved("pdf", CreationDate=None)

    @rc_context(fname=STYLE)
    def _saved(self, suffix: str, **metadata: None) -> bytes:
        """The same bytes each time."""
        file = io.BytesIO()
        assert self.figure
        self.figure.savefig(file, format=suffix, metadata=metadata)
        return file.getvalue()

    @property
    def inline(self) -> str:
        """The SVG inside the page, in the page's colours."""
        svg = self.svg.decode()
        svg = re.sub(r' xmlns(:xlink)?="[^"]*"|(?<=<g) id="[^"]*"', "", svg[svg.index("<svg") :])
        for color, variable in VARIABLES.items():
            svg = svg.replace(color, f"var(--{variable})")
        return svg


def look(index: int) -> dict[str, Any]:
    marker = list(SHAPES)[index % len(SHAPES)]
    size = 5.5 if marker in "osD" else 7.5
    return {"color": COLORS[index % len(COLORS)], "marker": marker, "markersize": size}


def figures(report: Report) -> list[Plot]:
    chosen = any(len(row.settings) > len(row.situation) for row in report.table)
    words = {
        "setting": " Each strategy stands with the setting of its lowest held-out loss." * chosen,
        "evaluate": f"python evaluate.py checkpoint={report.folder}",
        "rates": _rates_column(report).heading,
    }
    found = []
    for plot in PLOTS:
        known = [(heading, draw) for heading, draw in plot.panels(report) if draw]
        figure = _drawn(known, report, plot.wide) if known else None
        missing = "" if known else plot.missing.format(**words)
        caption = plot.caption.format(**words)
        found.append(replace(plot, caption=caption, missing=missing, figure=figure))
    return found


@rc_context(fname=STYLE)
def _drawn(panels: Sequence[tuple[str, Draw]], report: Report, wide: bool) -> Figure:
    columns = 1 if wide else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    height = 0.7 + 0.27 * max(map(len, report.panels.values())) if wide else 3.2
    figure = Figure(figsize=(9.6 if wide else 1.4 + 3.8 * columns, height * rows))
    looks = {name: look(index) for name, index in report.indices.items()}
    handles: dict[str, Any] = {}
    for k, (heading, draw) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, k, title=heading)
        draw(axes, looks)
        handles |= {label: bars for bars, label in zip(*axes.get_legend_handles_labels())}
    if handles:
        lines = [line for line, *_ in handles.values()]
        figure.legend(lines, list(handles), loc="outside right upper")
    return figure


def _by_data(draw: Callable[..., Draw | None], *given: Any) -> Callable[[Report], Panels]:
    """draw: of the contenders of one setting of the data."""
    return lambda report: [(key, draw(rows, *given)) for key, rows in report.panels.items()]


def _trades(column: Column, *given: Any) -> Callable[[Report], Panels]:
    """Quality, which is KID or the loss where KID ranks nothing, against a column."""

    def panels(report: Report) -> Panels:
        for heading, rows in report.panels.items():
            quality = TEST_LOSS if other_kind(rows, report.baselines) else KID
            rows = [row for row in rows if column is not FORGOT or not row.from_scratch]
            yield heading, _trade(rows, quality, column, *given)

    return panels


def _trade(
    rows: Sequence[Row], y: Column, x: Column, label: str, limit: float | None = None
) -> Draw | None:
    """limit: of x, where neither less nor more is better, so that there is no front."""
    cells = [(row.name, row.cell(x), row.cell(y)) for row in rows]
    spots: Lines = {
        name: [(a.value, *b[:3], a.low, a.high)]
        for name, a, b in cells
        if None not in (a.value, b.value)
    }
    centres = [(a, b) for ((a, b, *_),) in spots.values()]

    def front(axes: Axes, looks: Looks) -> None:
        axes.axvline(0, color=RULE, zorder=0)
        if limit:
            axes.axvline(limit, color=LIMIT, linestyle=":")
        else:
            axes.plot(*zip(*pareto(centres)), ":", color=MUTED, drawstyle="steps-post", zorder=1)

    return _line_panel(spots, label, y.heading, log_y=_spans(centres), besides=front)


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats, being as low in both and lower in one; by x."""

    def beaten(x: float, y: float) -> bool:
        return any(u <= x and v <= y and (u, v) != (x, y) for u, v in points)

    return sorted(point for point in points if not beaten(*point))


def _against_steps(rows: Sequence[Row], key: str, label: str) -> Draw | None:
    """A run that was validated once, as zero_shot, is a level."""

    def curves_of(row: Row) -> list[list[tuple[int, float]]]:
        return [curve for run in row.counted if (curve := run.curve(key))]

    seeds = {row.name: curves_of(row) for row in rows}
    means: Lines = {name: _mean_curve(curves) for name, curves in seeds.items() if curves}
    if not any(len(points) > 1 for points in means.values()):
        return None
    last = max(points[-1][0] for points in means.values() if points)
    levels = [name for name, points in means.items() if len(points) == 1 and points[0][0] < last]
    for name in levels:
        means[name].append((last, means[name][0][1]))

    def faint(axes: Axes, looks: Looks) -> None:
        for name, curves in seeds.items():
            for curve in curves if len(curves) > 1 else ():
                axes.plot(*zip(*curve), color=looks[name]["color"], alpha=0.35, linewidth=0.7)

    log_y = _spans(chain(*chain(*seeds.values())))
    return _line_panel(
        means, "step", label, log_y=log_y, dashed=levels, besides=faint, markevery=[-1]
    )


def _mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[float, float]]:
    """Over seeds, at the steps that all of them have."""
    by_step: dict[int, list[float]] = {}
    for step, value in chain(*curves):
        by_step.setdefault(step, []).append(value)
    whole = sorted((s, values) for s, values in by_step.items() if len(values) == len(curves))
    return [(step, _mean(values)) for step, values in whole]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _deciles(rows: Sequence[Row], domain: str) -> Draw | None:
    lines: Lines = {row.name: _decile_means([row], domain) for row in rows}
    if domain == "source" and any(lines.values()):
        lines["source before"] = _decile_means(rows, "source_start")

    def ticks(axes: Axes, looks: Looks) -> None:
        axes.set_xticks(range(1, 11))

    return _line_panel(
        lines,
        "decile of t (noise →)",
        "loss",
        log_y=True,
        dashed=["source before"],
        besides=ticks,
        markevery=[-1],
    )


def _told(row: Row, path: str) -> list[Any]:
    """What the evaluations of a row's runs have there."""
    return [found for run in row.counted if (found := run.at(path))]


def _decile_means(rows: Sequence[Row], domain: str) -> list[tuple[float, float]]:
    """Over all runs; deciles without a draw are left out."""
    lists = chain(*(_told(row, f"loss.{domain}.by_decile") for row in rows))
    means = [_mean(list(filter(None, values))) for values in zip(*lists)]
    return [(k, mean) for k, mean in enumerate(means, 1) if mean > 0]


def _weights(rows: Sequence[Row]) -> Draw | None:
    """A heat map, strategies by parts of the network."""
    found = {row.name: runs for row in rows if (runs := _told(row, "forgetting.weights"))}
    parts = list(dict.fromkeys(chain(*chain(*found.values()))))
    if not parts:
        return None

    change = np.full((len(found), len(parts)), math.nan)
    for (row, runs), (column, part) in product(enumerate(found.values()), enumerate(parts)):
        change[row, column] = _mean([run[part] for run in runs if part in run])
    depth = (np.nan_to_num(change) / (np.nanmax(change) or 1.0)) ** 0.5  # small changes show too

    def draw(axes: Axes, looks: Looks) -> None:
        heat = LinearSegmentedColormap.from_list("", [HEAT + "0d", HEAT])
        axes.pcolormesh(depth, vmin=0, vmax=1, edgecolor="#ffffff", linewidth=1.5, cmap=heat)
        for (row, column), value in np.ndenumerate(change):
            color = "#fefefe" if depth[row, column] > 0.78 else TEXT
            x, y = column + 0.5, row + 0.5
            axes.text(x, y, _heat_text(value), ha="center", va="center", color=color)
        axes.set_xticks(np.arange(len(parts)) + 0.5, parts)
        axes.set_yticks(np.arange(len(found)) + 0.5, found)
        axes.tick_params(length=0, labelcolor=TEXT)
        axes.xaxis.tick_top()
        axes.invert_yaxis()
        axes.spines[:].set_visible(False)
        axes.grid(False)

    return draw


def _heat_text(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.2g}" if value == 0 or value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def _shots(report: Report) -> Panels:
    """Null is all images, which an evaluation has counted."""
    path = "data.n_train"
    rows = [row for row in chain(*report.panels.values()) if path in row.settings]
    points = [(row.settings[path] or row.counted[0].at("images.train"), row) for row in rows]
    return _sweeps(points, path, [*known_columns([KID], report.table), HELD_OUT][0])


def _rates(report: Report) -> Panels:
    path = "optimizer.lr"
    rows = [row for row in report.table if row.finished and path in row.settings]
    return _sweeps([(row.settings[path], row) for row in rows], path, _rates_column(report))


def _rates_column(report: Report) -> Column:
    return [*known_columns([HELD_OUT], report.table), TEST_LOSS][0]


def _sweeps(points: Iterable[tuple[float | None, Row]], path: str, column: Column) -> Panels:
    """A column against one setting, a panel for each of the other settings."""
    found: dict[str, Lines] = {}
    for x, row in points:
        cell = row.cell(column)
        if x and cell.value is not None:
            shown = row.situation if path.startswith("data.") else row.settings.items()
            rest = " ".join(f"{name}={value}" for name, value in shown if name != path)
            found.setdefault(rest, {}).setdefault(row.name, []).append((x, *cell[:3]))
    for rest, lines in found.items():
        if any(len(points) > 1 for points in lines.values()):
            yield rest, _sweep(lines, path, column)


def _sweep(lines: Lines, path: str, column: Column) -> Draw | None:
    """The strategies stand a little apart."""
    points = list(chain(*lines.values()))
    shifted: Lines = {}
    for k, (name, line) in enumerate(lines.items()):
        apart = 1.02 ** (k - len(lines) / 2)
        shifted[name] = sorted((x * apart, *rest) for x, *rest in line)

    def ticks(axes: Axes, looks: Looks) -> None:
        known = sorted({x for x, *_ in points})
        axes.set_xticks(known, [f"{x:g}" for x in known])

    log_y = _spans(points)
    return _line_panel(shifted, path, column.heading, log_x=True, log_y=log_y, besides=ticks)


def _bound(rows: Sequence[Row]) -> Draw | None:
    lines: Lines = {}
    for row in rows:
        terms = next(iter(_told(row, "bound.terms")), ())
        lines[row.name] = sorted(
            (term["t"], term["bits"] / term.get("steps", 1)) for term in terms if term["bits"] > 0
        )
    label = "bits per dimension and step"
    return _line_panel(lines, "t", label, log_x=True, log_y=True, markevery=[-1])


def _line_panel(
    lines: Lines,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    dashed: Collection[str] = (),
    besides: Draw = lambda axes, looks: None,
    **how: Any,
) -> Draw | None:
    """Lines with the intervals of their points, as far as they have any; muted, of what is no
    strategy. besides: draws more."""

    def draw(axes: Axes, looks: Looks) -> None:
        for name, points in lines.items():
            if points:
                whole = [(*point, *[None] * 4)[:6] for point in points]
                x, y, low, high, left, right = np.array(whole, float).T
                style = looks.get(name, {"color": MUTED, "marker": ""}) | {
                    "yerr": [y - low, high - y],
                    "xerr": [x - left, right - x],
                    "linestyle": "--" if name in dashed else "-",
                    "elinewidth": 0.9,
                }
                axes.errorbar(x, y, label=name, **style, **how)
        for axis, label, log in ((axes.xaxis, x_label, log_x), (axes.yaxis, y_label, log_y)):
            axis.set_label_text(label + " (log)" * log)
            if log:
                axes.set(**{f"{axis.axis_name}scale": "log"})
                low, high = axis.get_view_interval()
                axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_locator(NullLocator())
        besides(axes, looks)

    return draw if any(lines.values()) else None


def _spans(points: Iterable[tuple[float, ...]]) -> bool:
    """Whether a log axis shows their y better."""
    found = [y for _, y, *_ in points]
    return bool(found) and min(found) > 0 and max(found) > 5 * min(found)


PLOTS = (
    Plot(
        "forgetting",
        "Quality against forgetting",
        "Lower left is better. Strategies that start from random weights have nothing to forget "
        "and are left out. Bars: 95% intervals. Dotted: the Pareto front; no strategy is better in "
        "both.{setting}",
        "needs evaluations with KID and the loss on source images: {evaluate}",
        _trades(FORGOT, "source loss change (forgetting →)"),
    ),
    Plot(
        "memorization",
        "Quality against memorization",
        f"Lower is better; rho of new images is about 1. Left of the red line, {NEAR}, the model "
        "copies; far to the right its images are unlike the data. Bars: 95% intervals.{setting}",
        "needs evaluations with KID and rho: {evaluate}",
        _trades(RHO, "rho (← copying; 1: as new images)", NEAR),
    ),
    Plot(
        "loss",
        "Held-out loss against steps",
        "Validation images, EMA weights; mean over seeds, each seed faint.",
        "needs more than one validation in training: a smaller run.checkpoint_every",
        _by_data(_against_steps, "validation/loss", "held-out loss"),
    ),
    Plot(
        "kid",
        "KID against steps",
        "To validation images, in training, of few samples: rough.",
        "needs run.kid_images above 0 in training",
        _by_data(_against_steps, "validation/kid", "KID, validation"),
    ),
    Plot(
        "deciles_target",
        "Loss by t-decile, target",
        "Decile 1 is the lowest noise.",
        "needs evaluations with the loss by decile: {evaluate}",
        _by_data(_deciles, "target"),
    ),
    Plot(
        "deciles_source",
        "Loss by t-decile, source",
        "Decile 1 is the lowest noise. Above the dashed line the loss rose: forgetting.",
        "needs evaluations with the loss on source images: {evaluate}",
        _by_data(_deciles, "source"),
    ),
    Plot(
        "weights",
        "Weight change by layer",
        "‖w − w₀‖ / ‖w₀‖ of each part, in the order of the network; mean over seeds. –: the part "
        "has no counterpart in the source.",
        "needs evaluations with the weight change: {evaluate}",
        _by_data(_weights),
        wide=True,
    ),
    Plot(
        "shots",
        "Quality against shots",
        "Bars: 95% intervals.",
        "needs runs that differ in data.n_train: +sweep=shots",
        _shots,
    ),
    Plot(
        "rates",
        "Sensitivity to the learning rate",
        "Bars: 95% intervals. The lowest {rates} chooses the rate.",
        "needs runs of one strategy that differ in optimizer.lr: +sweep=learning_rate",
        _rates,
    ),
    Plot(
        "bound",
        "Bits per dimension, by term",
        "The terms of the variational bound (Ho et al. 2020, eq. 5) at each t, mean of each "
        "stratum; of one seed.",
        "needs evaluations with the bound: {evaluate}",
        _by_data(_bound),
    ),
)
