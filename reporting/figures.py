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
from functools import cached_property, partial
from itertools import chain
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
from reporting.runs import evaluate
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

Panels = list[tuple[str, Callable[[Axes], None]]]  # (setting of the data, in words, what draws it)
# strategy -> (x, y, y low, y high, x low, x high), or the first of them
Lines = dict[str, list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Plot:
    """caption, missing: may hold words of the report in braces. missing: what a figure that cannot
    be drawn needs. panels: of a report; one in which nothing is drawn is left out. wide: a panel is
    as wide as the page, and as high as it has strategies."""

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


def figures(report: Report) -> list[Plot]:
    chosen = any(len(row.settings) > len(row.situation) for row in report.table)
    words = {
        "setting": " Each strategy stands with the setting of its lowest held-out loss." * chosen,
        "evaluate": evaluate(report.folder),
        "rates": _first_known(report, HELD_OUT, TEST_LOSS).heading,
    }
    found = []
    for plot in PLOTS:
        figure = _drawn(plot.panels(report), report, plot.wide)
        missing = "" if figure else plot.missing.format(**words)
        caption = plot.caption.format(**words)
        found.append(replace(plot, caption=caption, missing=missing, figure=figure))
    return found


@rc_context(fname=STYLE)
def _drawn(panels: Panels, report: Report, wide: bool) -> Figure | None:
    """Of those panels that have data."""
    if not panels:
        return None
    columns = 1 if wide else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    height = 0.7 + 0.27 * max(map(len, report.panels.values())) if wide else 3.2
    figure = Figure(figsize=(9.6 if wide else 1.4 + 3.8 * columns, height * rows))
    handles: dict[str, Any] = {}
    for k, (heading, draw) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, k, title=heading)
        draw(axes)
        handles |= {label: bars for bars, label in zip(*axes.get_legend_handles_labels())}
    known = [panel for panel, axes in zip(panels, figure.axes) if axes.has_data()]
    if known != panels:
        return _drawn(known, report, wide)
    if handles:
        lines = [line for line, *_ in handles.values()]
        figure.legend(lines, list(handles), loc="outside right upper")
    return figure


def _by_data(draw: Callable[..., None], **given: Any) -> Callable[[Report], Panels]:
    """draw: of the contenders of one setting of the data."""
    return lambda report: [
        (heading, partial(draw, report=report, rows=rows, **given))
        for heading, rows in report.panels.items()
    ]


def _trade(
    axes: Axes,
    report: Report,
    rows: Sequence[Row],
    x: Column,
    label: str,
    limit: float | None = None,
) -> None:
    """Quality, which is KID or the loss where KID ranks nothing, against x. limit: of x, where
    neither less nor more is better, so that there is no front."""
    y = TEST_LOSS if other_kind(rows, report.baselines) else KID
    spots: Lines = {}
    for row in rows:
        a, b = row.cell(x), row.cell(y)
        if None not in (a.value, b.value) and not (x is FORGOT and row.from_scratch):
            spots[row.name] = [(a.value, *b[:3], a.low, a.high)]
    if not spots:
        return
    centres = [spot[:2] for (spot,) in spots.values()]
    _draw_lines(axes, report, spots, label, y.heading, log_y=_spans(centres))
    axes.axvline(0, color=RULE, zorder=0)
    if limit:
        axes.axvline(limit, color=LIMIT, linestyle=":")
    else:
        axes.plot(*zip(*pareto(centres)), ":", color=MUTED, drawstyle="steps-post", zorder=1)


def pareto(points: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """The points that no other beats, being as low in both and lower in one; by x."""

    def beaten(x: float, y: float) -> bool:
        return any(u <= x and v <= y and (u, v) != (x, y) for u, v in points)

    return sorted(point for point in points if not beaten(*point))


def _against_steps(axes: Axes, report: Report, rows: Sequence[Row], key: str, label: str) -> None:
    """The mean over seeds, each seed faint. A run that was validated once, as zero_shot, is a
    level."""
    seeds = {}
    for row in rows:
        if curves := [curve for run in row.counted if (curve := run.curve(key))]:
            seeds[row.name] = curves
    means: Lines = {name: _mean_curve(curves) for name, curves in seeds.items()}
    if not any(len(points) > 1 for points in means.values()):
        return
    last = max(points[-1][0] for points in means.values() if points)
    levels = [name for name, points in means.items() if len(points) == 1 and points[0][0] < last]
    for name in levels:
        means[name].append((last, means[name][0][1]))
    log_y = _spans(chain(*chain(*seeds.values())))
    _draw_lines(axes, report, means, "step", label, log_y=log_y, dashed=levels)
    for name, curves in seeds.items():
        for curve in curves if len(curves) > 1 else ():
            axes.plot(*zip(*curve), color=report.looks[name]["color"], alpha=0.35, linewidth=0.7)


def _mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, Any]]:
    """Over seeds, at the steps that all of them have."""
    seeds = [dict(curve) for curve in curves]
    common = sorted(set(seeds[0]).intersection(*seeds))
    return [(step, np.mean([seed[step] for seed in seeds])) for step in common]


def _deciles(axes: Axes, report: Report, rows: Sequence[Row], domain: str) -> None:
    lines: Lines = {row.name: _decile_means([row], f"loss.{domain}.by_decile") for row in rows}
    if domain == "source" and any(lines.values()):
        lines["source before"] = _decile_means(rows, "loss.source_start.by_decile")
    _draw_lines(axes, report, lines, "decile of t (noise →)", "loss", log_y=True)
    axes.set_xticks(range(1, 11))


def _attacks(axes: Axes, report: Report, rows: Sequence[Row]) -> None:
    lines: Lines = {row.name: _decile_means([row], "membership.by_decile") for row in rows}
    if not any(lines.values()):
        return
    lines["untouched source"] = _decile_means(rows, "membership.source.by_decile")
    _draw_lines(axes, report, lines, "decile of t (noise →)", "membership AUC")
    axes.axhline(0.5, color=RULE, zorder=0)
    axes.set_xticks(range(1, 11))


def _decile_means(rows: Sequence[Row], path: str) -> list[tuple[int, Any]]:
    """Over all runs; deciles without a draw are left out."""
    lists = chain(*(_told(row, path) for row in rows))
    deciles = [[value for value in values if value is not None] for values in zip(*lists)]
    return [(k, np.mean(values)) for k, values in enumerate(deciles, 1) if values]


def _told(row: Row, path: str) -> list[Any]:
    """What the evaluations of a row's runs have there."""
    return [found for run in row.counted if (found := run.at(path))]


def _weights(axes: Axes, report: Report, rows: Sequence[Row]) -> None:
    """A heat map, strategies by parts of the network."""
    found = {row.name: runs for row in rows if (runs := _told(row, "forgetting.weights"))}
    parts = list(dict.fromkeys(chain(*chain(*found.values()))))
    if not parts:
        return

    def mean(runs: Sequence[dict[str, float]], part: str) -> Any:
        known = [run[part] for run in runs if part in run]
        return np.mean(known) if known else math.nan

    change = np.array([[mean(runs, part) for part in parts] for runs in found.values()])
    depth = (np.nan_to_num(change) / (np.nanmax(change) or 1.0)) ** 0.5  # small changes show too

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


def _heat_text(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.2g}" if value == 0 or value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def _shots(report: Report) -> Panels:
    rows = chain(*report.panels.values())
    return _sweeps(report, rows, "data.n_train", _first_known(report, KID, HELD_OUT))


def _rates(report: Report) -> Panels:
    rows = [row for row in report.table if row.finished]
    return _sweeps(report, rows, "optimizer.lr", _first_known(report, HELD_OUT, TEST_LOSS))


def _first_known(report: Report, *columns: Column) -> Column:
    return [*known_columns(columns, report.table), columns[-1]][0]


def _sweeps(report: Report, rows: Iterable[Row], path: str, column: Column) -> Panels:
    """A column against one setting, a panel for each of the other settings."""
    found: dict[str, Lines] = {}
    for row in rows:
        x, cell = row.settings.get(path, 0), row.cell(column)
        if x is None:  # all images, which an evaluation has counted
            x = row.counted[0].at("images.train")
        if x and cell.value is not None:
            shown = row.situation if path.startswith("data.") else row.settings.items()
            rest = " ".join(f"{name}={value}" for name, value in shown if name != path)
            found.setdefault(rest, {}).setdefault(row.name, []).append((x, *cell[:3]))
    return [
        (rest, partial(_sweep, report=report, lines=lines, path=path, column=column))
        for rest, lines in found.items()
        if max(map(len, lines.values())) > 1
    ]


def _sweep(axes: Axes, report: Report, lines: Lines, path: str, column: Column) -> None:
    """The strategies stand a little apart."""
    spots = list(chain(*lines.values()))
    shifted: Lines = {}
    for k, (name, line) in enumerate(lines.items()):
        apart = 1.02 ** (k - len(lines) / 2)
        shifted[name] = sorted((x * apart, *rest) for x, *rest in line)
    _draw_lines(axes, report, shifted, path, column.heading, log_x=True, log_y=_spans(spots))
    known = sorted({x for x, *_ in spots})
    axes.set_xticks(known, [f"{x:g}" for x in known])


def _bound(axes: Axes, report: Report, rows: Sequence[Row]) -> None:
    lines: Lines = {}
    for row in rows:
        terms = next(iter(_told(row, "bound.terms")), ())
        lines[row.name] = sorted(
            (term["t"], term["bits"] / term["steps"]) for term in terms if term["bits"] > 0
        )
    label = "bits per dimension and step"
    _draw_lines(axes, report, lines, "t", label, log_x=True, log_y=True)


def _draw_lines(
    axes: Axes,
    report: Report,
    lines: Lines,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    dashed: Collection[str] = (),
) -> None:
    """Points with their intervals, or curves, which have none and are marked at their end; muted
    and dashed, of what is no strategy."""
    other = {"color": MUTED, "marker": "", "linestyle": "--"}
    for name, points in lines.items():
        if points:
            whole = [(*point, *[None] * 4)[:6] for point in points]
            x, y, low, high, left, right = np.array(whole, float).T
            axes.errorbar(
                x,
                y,
                [y - low, high - y],
                [x - left, right - x],
                label=name,
                elinewidth=0.9,
                markevery=[-1] if len(points[0]) == 2 else None,
                **{"linestyle": "--" if name in dashed else "-"} | report.looks.get(name, other),
            )
    for axis, label, log in ((axes.xaxis, x_label, log_x), (axes.yaxis, y_label, log_y)):
        axis.set_label_text(label + " (log)" * log)
        if log:
            axes.set(**{f"{axis.axis_name}scale": "log"})
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())


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
        _by_data(_trade, x=FORGOT, label="source loss change (forgetting →)"),
    ),
    Plot(
        "memorization",
        "Quality against memorization",
        f"Lower is better; rho of new images is about 1. Left of the red line, {NEAR}, the model "
        "copies; far to the right its images are unlike the data. Bars: 95% intervals.{setting}",
        "needs evaluations with KID and rho: {evaluate}",
        _by_data(_trade, x=RHO, label="rho (← copying; 1: as new images)", limit=NEAR),
    ),
    Plot(
        "loss",
        "Held-out loss against steps",
        "Validation images, EMA weights; mean over seeds, each seed faint.",
        "needs more than one validation in training: a smaller run.checkpoint_every",
        _by_data(_against_steps, key="validation/loss", label="held-out loss"),
    ),
    Plot(
        "kid",
        "KID against steps",
        "To validation images, in training, of few samples: rough.",
        "needs run.kid_images above 0 in training",
        _by_data(_against_steps, key="validation/kid", label="KID, validation"),
    ),
    Plot(
        "deciles_target",
        "Loss by t-decile, target",
        "Decile 1 is the lowest noise.",
        "needs evaluations with the loss by decile: {evaluate}",
        _by_data(_deciles, domain="target"),
    ),
    Plot(
        "deciles_source",
        "Loss by t-decile, source",
        "Decile 1 is the lowest noise. Above the dashed line the loss rose: forgetting.",
        "needs evaluations with the loss on source images: {evaluate}",
        _by_data(_deciles, domain="source"),
    ),
    Plot(
        "membership",
        "Membership by t-decile",
        "How well the error at the t of each decile tells training images from held-out ones; 0.5 "
        "is chance, decile 1 the lowest noise. Where the untouched source, which saw neither, "
        "stands above 0.5, the images are of another kind.",
        "needs evaluations with membership: {evaluate}",
        _by_data(_attacks),
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
