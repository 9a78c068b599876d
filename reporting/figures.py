"""The figures of a report, by matplotlib: what each shows, or what is missing for it.

Each is one figure with a panel for each setting of the data. In the page its text, grid and
background follow light and dark; the files are on white, for a paper.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from metrics.memorization import NEAR
from reporting.columns import FORGOT, HELD_OUT, KID, RHO, TEST_LOSS, Column, learning_rate
from reporting.table import Row, other_kind

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

Draw = Callable[[Axes], None]
Panels = dict[str, list[Row]]  # setting of the data, in words -> contenders
Looks = dict[str, dict[str, Any]]  # strategy -> colour and marker
# strategy -> (x, y, y low, y high, x low, x high)
Lines = dict[str, list[tuple[float | None, ...]]]


@dataclass(frozen=True)
class Plot:
    """missing: what a figure that cannot be drawn needs."""

    name: str
    title: str
    caption: str
    missing: str
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


def figures(
    panels: Panels,
    table: Sequence[Row],
    indices: dict[str, int],
    command: str,
    baselines: Sequence[Row] = (),
) -> list[Plot]:
    """indices: of the strategies' colours and shapes. command: makes what evaluations lack.

    Quality is KID to the test images, or the loss where KID ranks nothing.
    """
    looks = {name: look(index) for name, index in indices.items()}
    chosen = any(len(row.settings) > len(row.situation) for row in table)
    setting = " Each strategy stands with the setting of its lowest held-out loss." * chosen
    evaluations = f"needs evaluations with {{}}: {command}"

    def by_data(draw: Callable[..., Draw | None], *given: Any) -> Iterator[tuple[str, Draw | None]]:
        return ((heading, draw(rows, looks, *given)) for heading, rows in panels.items())

    def trade(column: Column, label: str, limit: float | None = None):
        for heading, rows in panels.items():
            quality = TEST_LOSS if other_kind(rows, baselines) else KID
            rows = [row for row in rows if column is not FORGOT or not row.from_scratch]
            yield heading, _trade(rows, looks, column, quality, label, limit)

    shots_column = KID if any(row.value(KID) is not None for row in table) else HELD_OUT
    rates_column = HELD_OUT if any(row.value(HELD_OUT) is not None for row in table) else TEST_LOSS
    contenders = [row for rows in panels.values() for row in rows]
    finished = [row for row in table if row.finished]
    return [
        _figure(
            "forgetting",
            "Quality against forgetting",
            "Lower left is better. Strategies that start from random weights have nothing to "
            "forget and are left out. Bars: 95% intervals. Dotted: the Pareto front; no strategy "
            f"is better in both.{setting}",
            evaluations.format("KID and the loss on source images"),
            trade(FORGOT, "source loss change (forgetting →)"),
        ),
        _figure(
            "memorization",
            "Quality against memorization",
            f"Lower is better; rho of new images is about 1. Left of the red line, {NEAR}, the "
            "model copies; far to the right its images are unlike the data. Bars: 95% "
            f"intervals.{setting}",
            evaluations.format("KID and rho"),
            trade(RHO, "rho (← copying; 1: as new images)", NEAR),
        ),
        _figure(
            "loss",
            "Held-out loss against steps",
            "Validation images, EMA weights; mean over seeds, each seed faint.",
            "needs more than one validation in training: a smaller run.checkpoint_every",
            by_data(_against_steps, "validation/loss", "held-out loss"),
        ),
        _figure(
            "kid",
            "KID against steps",
            "To validation images, in training, of few samples: rough.",
            "needs run.kid_images above 0 in training",
            by_data(_against_steps, "validation/kid", "KID, validation"),
        ),
        _figure(
            "deciles_target",
            "Loss by t-decile, target",
            "Decile 1 is the lowest noise.",
            evaluations.format("the loss by decile"),
            by_data(_deciles, "target"),
        ),
        _figure(
            "deciles_source",
            "Loss by t-decile, source",
            "Decile 1 is the lowest noise. Above the dashed line the loss rose: forgetting.",
            evaluations.format("the loss on source images"),
            by_data(_deciles, "source"),
        ),
        _figure(
            "weights",
            "Weight change by layer",
            "‖w − w₀‖ / ‖w₀‖ of each part, in the order of the network; mean over seeds. –: the "
            "part has no counterpart in the source.",
            evaluations.format("the weight change"),
            by_data(_weights),
            height=0.7 + 0.27 * max(map(len, panels.values()), default=0),
        ),
        _figure(
            "shots",
            "Quality against shots",
            "Bars: 95% intervals.",
            "needs runs that differ in data.n_train: +sweep=shots",
            _sweeps(contenders, looks, "data.n_train", _image_count, shots_column),
        ),
        _figure(
            "rates",
            "Sensitivity to the learning rate",
            f"Bars: 95% intervals. The lowest {rates_column.heading} chooses the rate.",
            "needs runs of one strategy that differ in optimizer.lr: +sweep=learning_rate",
            _sweeps(finished, looks, "optimizer.lr", _learning_rate, rates_column),
        ),
        _figure(
            "bound",
            "Bits per dimension, by term",
            "The terms of the variational bound (Ho et al. 2020, eq. 5) at each t, mean of each "
            "stratum; of one seed.",
            evaluations.format("the bound"),
            by_data(_bound),
        ),
    ]


@rc_context(fname=STYLE)
def _figure(
    name: str,
    title: str,
    caption: str,
    needs: str,
    panels: Iterable[tuple[str, Draw | None]],
    height: float | None = None,
) -> Plot:
    """needs: what a figure without any panel needs. height: of a panel that is as wide as the
    page."""
    known = [(heading, draw) for heading, draw in panels if draw]
    if not known:
        return Plot(name, title, caption, needs)
    columns = 1 if height else min(3, len(known))
    rows = math.ceil(len(known) / columns)
    figure = Figure(figsize=(9.6 if height else 1.4 + 3.8 * columns, (height or 3.2) * rows))
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for (heading, draw), axes in zip(known, grid, strict=False):
        axes.set_title(heading)
        draw(axes)
    for axes in list(grid)[len(known) :]:
        axes.remove()
    pairs = (pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels()))
    handles = {label: handle[0] for handle, label in pairs}
    if handles:
        figure.legend(handles.values(), handles, loc="outside right upper")
    return Plot(name, title, caption, "", figure)


def _trade(
    rows: Sequence[Row],
    looks: Looks,
    x: Column,
    y: Column,
    label: str,
    limit: float | None = None,
) -> Draw | None:
    """limit: of x, where neither less nor more is better, so that there is no front."""
    cells = {row.name: (row.cell(x), row.cell(y)) for row in rows}
    known = {name: (a, b) for name, (a, b) in cells.items() if None not in (a.value, b.value)}
    spots = {name: [(a.value, *b[:3], a.low, a.high)] for name, (a, b) in known.items()}
    centres = [spot[:2] for (spot,) in spots.values()]

    def draw(axes: Axes) -> None:
        _lines(axes, spots, looks)
        axes.axvline(0, color=RULE, zorder=0)
        if limit:
            axes.axvline(limit, color=LIMIT, linestyle=":")
        else:
            axes.plot(*zip(*pareto(centres)), ":", color=MUTED, drawstyle="steps-post", zorder=1)
        _scales(axes, label, y.heading, log_y=_spans(y for _, y in centres))

    return draw if spots else None


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats, being as low in both and lower in one; by x."""

    def beaten(x: float, y: float) -> bool:
        return any(u <= x and v <= y and (u, v) != (x, y) for u, v in points)

    return sorted(point for point in points if not beaten(*point))


def _against_steps(rows: Sequence[Row], looks: Looks, key: str, label: str) -> Draw | None:
    """A run that was validated once, as zero_shot, is a level."""
    seeds = {row.name: [curve for run in row.counted if (curve := run.curve(key))] for row in rows}
    means = {name: _mean_curve(curves) for name, curves in seeds.items() if curves}
    if not any(len(points) > 1 for points in means.values()):
        return None
    last = max(points[-1][0] for points in means.values() if points)

    def draw(axes: Axes) -> None:
        for name, points in means.items():
            for curve in seeds[name] if len(seeds[name]) > 1 else ():
                axes.plot(*zip(*curve), color=looks[name]["color"], alpha=0.35, linewidth=0.7)
            level = len(points) == 1 and points[0][0] < last
            drawn = [*points, (last, points[0][1])] if level else points
            _lines(axes, {name: drawn}, looks, markevery=[-1], linestyle="--" if level else "-")
        every = [y for curves in (*seeds.values(), [*means.values()]) for c in curves for _, y in c]
        _scales(axes, "step", label, log_y=_spans(every))

    return draw


def _mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[float, float]]:
    """Over seeds, at the steps that all of them have."""
    by_step: dict[int, list[float]] = {}
    for step, value in (point for curve in curves for point in curve):
        by_step.setdefault(step, []).append(value)
    whole = sorted((s, values) for s, values in by_step.items() if len(values) == len(curves))
    return [(step, sum(values) / len(values)) for step, values in whole]


def _deciles(rows: Sequence[Row], looks: Looks, domain: str) -> Draw | None:
    lines = {row.name: _decile_means([row], domain) for row in rows}
    start = _decile_means(rows, "source_start") if domain == "source" else []

    def draw(axes: Axes) -> None:
        _lines(axes, lines, looks, markevery=[-1])
        dashed = {"color": MUTED, "marker": ""}
        _lines(axes, {"source before": start}, {"source before": dashed}, linestyle="--")
        axes.set_xticks(range(1, 11))
        _scales(axes, "decile of t (noise →)", "loss", log_y=True)

    return draw if any(lines.values()) else None


def _decile_means(rows: Sequence[Row], domain: str) -> list[tuple[float, float]]:
    """Over all runs; deciles without a draw are left out."""
    runs = [run for row in rows for run in row.counted]
    lists = [found for run in runs if (found := run.at(f"loss.{domain}.by_decile"))]
    columns = enumerate(zip(*lists, strict=False), 1)
    known = [(k, [v for v in values if v is not None and v > 0]) for k, values in columns]
    return [(k, sum(values) / len(values)) for k, values in known if values]


def _weights(rows: Sequence[Row], looks: Looks) -> Draw | None:
    """A heat map, strategies by parts of the network."""
    found = {row.name: [run.at("forgetting.weights") or {} for run in row.counted] for row in rows}
    found = {name: runs for name, runs in found.items() if any(runs)}
    parts = list(dict.fromkeys(part for runs in found.values() for run in runs for part in run))
    if not parts:
        return None
    change = np.array([[_mean_of(runs, part) for part in parts] for runs in found.values()])
    depth = (np.nan_to_num(change) / (np.nanmax(change) or 1.0)) ** 0.5  # small changes show too

    def draw(axes: Axes) -> None:
        axes.pcolormesh(
            depth,
            vmin=0,
            vmax=1,
            edgecolor="#ffffff",
            linewidth=1.5,
            cmap=LinearSegmentedColormap.from_list("", [HEAT + "0d", HEAT]),
        )
        for (row, column), value in np.ndenumerate(change):
            axes.text(
                column + 0.5,
                row + 0.5,
                _heat_text(value),
                ha="center",
                va="center",
                color="#fefefe" if depth[row, column] > 0.78 else TEXT,
            )
        axes.set_xticks(np.arange(len(parts)) + 0.5, parts)
        axes.set_yticks(np.arange(len(found)) + 0.5, found)
        axes.tick_params(length=0, labelcolor=TEXT)
        axes.xaxis.tick_top()
        axes.invert_yaxis()
        axes.spines[:].set_visible(False)
        axes.grid(False)

    return draw


def _mean_of(runs: Sequence[dict[str, float]], part: str) -> float:
    values = [run[part] for run in runs if part in run]
    return sum(values) / len(values) if values else math.nan


def _heat_text(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.2g}" if value == 0 or value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def _sweeps(
    rows: Sequence[Row],
    looks: Looks,
    path: str,
    x_of: Callable[[Row], float | None],
    column: Column,
) -> Iterator[tuple[str, Draw | None]]:
    """A column against one setting, a panel for each of the other settings."""
    found: dict[str, Lines] = {}
    for row in rows:
        x, cell = x_of(row), row.cell(column)
        if path in row.settings and x and cell.value is not None:
            shown = row.situation if path.startswith("data.") else row.settings.items()
            rest = " ".join(f"{name}={value}" for name, value in shown if name != path)
            found.setdefault(rest, {}).setdefault(row.name, []).append((x, *cell[:3]))

    def draw(axes: Axes, lines: Lines) -> None:
        for k, (name, line) in enumerate(lines.items()):
            apart = 1.02 ** (k - len(lines) / 2)
            _lines(axes, {name: sorted((x * apart, *rest) for x, *rest in line)}, looks)
        points = [point for points in lines.values() for point in points]
        ticks = sorted({x for x, *_ in points})
        _scales(axes, path, column.heading, log_x=True, log_y=_spans(y for _, y, *_ in points))
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])

    for rest, lines in found.items():
        if any(len(points) > 1 for points in lines.values()):
            yield rest, lambda axes, lines=lines: draw(axes, lines)


def _image_count(row: Row) -> float | None:
    """Null is all, which an evaluation has counted."""
    n = row.settings.get("data.n_train")
    return n if n is not None else row.counted[0].at("images.train")


def _learning_rate(row: Row) -> float | None:
    rate = learning_rate(row.counted[0])
    return rate and rate.value


def _bound(rows: Sequence[Row], looks: Looks) -> Draw | None:
    lines: Lines = {}
    for row in rows:
        terms = next((found for run in row.counted if (found := run.at("bound.terms"))), ())
        lines[row.name] = sorted(
            (term["t"], term["bits"] / term.get("steps", 1)) for term in terms if term["bits"] > 0
        )

    def draw(axes: Axes) -> None:
        _lines(axes, lines, looks, markevery=[-1])
        _scales(axes, "t", "bits per dimension and step", log_x=True, log_y=True)

    return draw if any(lines.values()) else None


def _lines(axes: Axes, lines: Lines, looks: Looks, **how: Any) -> None:
    """Each with the intervals of its points, as far as they have any."""
    for name, points in lines.items():
        if points:
            whole = [(*point, *[None] * 4)[:6] for point in points]
            x, y, low, high, left, right = np.array(whole, float).T
            bars = {"yerr": [y - low, high - y], "xerr": [x - left, right - x], "elinewidth": 0.9}
            axes.errorbar(x, y, label=name, **bars, **looks[name], **how)


def _spans(values: Iterable[float]) -> bool:
    """Whether a log axis shows them better."""
    found = list(values)
    return min(found) > 0 and max(found) > 5 * min(found)


def _scales(axes: Axes, x_label: str, y_label: str, log_x=False, log_y=False) -> None:
    for which, label, log in (("x", x_label, log_x), ("y", y_label, log_y)):
        axes.set(**{f"{which}label": label + " (log)" * log})
        if log:
            axes.set(**{f"{which}scale": "log"})
            axis = getattr(axes, f"{which}axis")
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
