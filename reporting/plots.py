"""The plots of the page: what each draws, and what is missing where it cannot be drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from evaluation.intervals import over_seeds
from reporting.columns import FORGOT, HELD_OUT, KID, RHO, TEST_LOSS, Column, learning_rate
from reporting.svg import (BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale, bar, fixed, frame, line, marker, picture, place, scale, spread,
                           style, text, text_width, titled)
from reporting.table import Row
from reporting.verdict import named, with_interval


class Figure(NamedTuple):
    """panels: (heading, SVG). wide: takes the width of the page."""

    name: str
    title: str
    caption: str
    panels: Sequence[tuple[str, str]]
    wide: bool = False


class Absent(NamedTuple):
    title: str
    why: str


@dataclass(frozen=True)
class Series:
    """points: (x, mean, low, high). faint: the single seeds."""

    name: str
    index: int
    points: Sequence[tuple[float, float, float | None, float | None]]
    faint: Sequence[Sequence[tuple[float, float]]] = ()
    dash: str = ""


Panels = dict[str, list[Row]]  # what the data are, in words -> contenders


def figures(panels: Panels, table: Sequence[Row], indices: dict[str, int], evaluate: str) -> list[Figure | Absent]:
    """evaluate: the command that makes what evaluations lack. indices: strategy -> its colour and shape."""
    needs = f"needs evaluations with {{}}: {evaluate}"
    best_seed = "Each strategy stands with the setting of its lowest held-out loss."
    several = best_seed if any(len(row.settings) > len(row.situation) for row in table) else ""
    scatter = f"95% intervals; the dotted line is the Pareto front: what lies on it is beaten in both by none. {several}"

    def figure(name: str, title: str, caption: str, why: str, draw: Callable[[list[Row]], str | None], wide: bool = False):
        drawn = [(heading, svg) for heading, rows in panels.items() if (svg := draw(rows))]
        return Figure(name, title, caption.strip(), drawn, wide) if drawn else Absent(title, why)

    return [
        figure("forgetting", "Quality against forgetting", f"Lower left is better; what starts from random weights has nothing to forget and is left out. {scatter}", needs.format("KID and the source's loss"),
               lambda rows: trade([r for r in rows if not r.from_scratch], FORGOT, indices, "source loss change (forgetting →)")),
        figure("memorization", "Quality against memorization", f"Lower right is better; left of 0.5 is copying. {scatter}",
               needs.format("KID and rho"), lambda rows: trade(rows, RHO, indices, "rho (← copying)", higher=True, mark=0.5)),
        figure("loss", "Held-out loss against steps", "Mean over seeds, each seed faint. Validation images, averaged weights.",
               "needs a second look at a validation set in training: a smaller run.checkpoint_every",
               lambda rows: against_steps(rows, "validation/loss", "held-out loss (log)", indices, log=True)),
        figure("kid", "KID against steps", "To validation images, in training: few images, so take the differences within a curve as rough.",
               "needs run.kid_images above 0 in training",
               lambda rows: against_steps(rows, "validation/kid", "KID, validation", indices)),
        figure("deciles_target", "Loss by t-decile, target", "1 is the lowest noise, 10 the highest. Dashed: the source as it was.",
               needs.format("the loss by decile"), lambda rows: deciles(rows, "target", indices)),
        figure("deciles_source", "Loss by t-decile, source", "Above the dashed line, the source as it was, is what was forgotten.",
               needs.format("the source's loss by decile"), lambda rows: deciles(rows, "source", indices)),
        figure("weights", "Weight change by layer", "‖w − w₀‖ / ‖w₀‖ of the part, mean over seeds; the parts in the order of the network.",
               needs.format("the weight change"), weights, wide=True),
        shots(table, panels, indices),
        rates(table, indices),
        figure("bound", "Bits per dimension, by term", "The terms of the variational bound (Ho et al. 2020, eq. 5) at each t; of the lowest seed.", needs.format("the bound (bound=...)"), lambda rows: bound(rows, indices)),
    ]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other beats: as low in both, and lower in one. By the first coordinate."""
    front = [k for k, (x, y) in enumerate(points)
             if not any(u <= x and v <= y and (u, v) != (x, y) for u, v in points)]
    return sorted(front, key=lambda k: points[k])


def axes(xs: Sequence[float], ys: Sequence[float], log_x=False, log_y=False, right: float = RIGHT, zero_x=False) -> tuple[Scale, Scale]:
    return scale(xs, LEFT, WIDTH - right, log_x, zero_x), scale(ys, HEIGHT - BOTTOM, TOP, log_y)


def trade(rows: Sequence[Row], column: Column, indices, label: str, higher: bool = False, mark: float | None = None) -> str | None:
    """KID to the test images against another column, with the front of the two."""
    found = [(row, row.cell(column), row.cell(KID)) for row in rows]
    found = [(row, a, b) for row, a, b in found if a.value is not None and b.value is not None]
    if not found:
        return None
    wide = [v for _, a, _ in found for v in a[:3] if v is not None] + ([mark] if mark else [])
    means = [b.value for _, _, b in found]
    log = min(means) > 0 and max(means) > 8 * min(means)
    tall = [max(v, min(means) / 2) if log else v for _, _, b in found for v in b[:3] if v is not None]
    x, y = axes(wide, tall, log_y=log, zero_x=True)
    parts = frame(x, y, label, "KID test (log)" if log else "KID test")
    if mark:
        parts += [line([(x(mark), y.start), (x(mark), y.stop)], "var(--bad)", 1.2, "2 4", title="rho 0.5")]
    front = pareto([(-a.value if higher else a.value, b.value) for _, a, b in found])
    parts.append(line(staircase([(x(found[k][1].value), y(found[k][2].value)) for k in front]), "var(--muted)", 1.5, "2 3"))
    for row, a, b in found:
        color, px, py = style(indices[row.name]), x(a.value), y(b.value)
        if a.low is not None:
            parts.append(bar(x(a.low), py, x(a.high), py, color))
        if b.low is not None:
            parts.append(bar(px, y.inside(b.low), px, y.inside(b.high), color))
    for row, a, b in found:
        title = f"{named(row)}: KID test {with_interval(b, KID)}, {column.heading} {with_interval(a, column)}"
        parts.append(marker(x(a.value), y(b.value), indices[row.name], title))
    names = [named(row) for row, _, _ in found]
    places = place([(x(a.value), y(b.value)) for _, a, b in found], names, x, y)
    parts += [text(px, py, name, anchor, "name") for (px, py, anchor), name in zip(places, names, strict=True)]
    return picture(parts, f"KID test against {column.heading}")


def staircase(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Through the points of a front: between two of them the corner that both beat."""
    path = list(points[:1])
    for (_, y0), (x1, y1) in zip(points, points[1:], strict=False):
        path += [(x1, y0), (x1, y1)]
    return path


def curves(series: Sequence[Series], x_label: str, y_label: str, title: str, log_x=False, log_y=False, marks=False,
           ticks: Sequence[tuple[float, str]] = ()) -> str | None:
    """Lines with their names at the right end."""
    series = [s for s in series if s.points]
    if not series:
        return None
    ys = [v for s in series for p in s.points for v in p[1:] if v is not None] + [v for s in series for f in s.faint for _, v in f]
    right = 16 + max(text_width(s.name) for s in series)
    x, y = axes([p[0] for s in series for p in s.points], ys, log_x, log_y, right=min(right, 170))
    parts = frame(x, y, x_label, y_label, ticks)
    for s in series:
        color = style(s.index) if s.index >= 0 else "var(--muted)"
        parts += [line([(x(u), y.inside(v)) for u, v in f], color, 1, opacity=0.3) for f in s.faint]
        parts.append(line([(x(p[0]), y.inside(p[1])) for p in s.points], color, 2, s.dash, title=s.name))
        if marks:
            parts += [bar(x(u), y.inside(low), x(u), y.inside(high), color) for u, _, low, high in s.points if low is not None]
            parts += [marker(x(p[0]), y.inside(p[1]), s.index, f"{s.name}, {x_label} {p[0]:g}: {p[1]:.4g}", 4) for p in s.points]
        elif s.index >= 0:
            parts.append(marker(x(s.points[-1][0]), y.inside(s.points[-1][1]), s.index, s.name, 3.5))
    ends = [y.inside(s.points[-1][1]) for s in series]
    for s, end, at in zip(series, ends, spread(ends, 13, y.stop + 4, y.start - 4), strict=True):
        last = x(s.points[-1][0])
        if abs(at - end) > 3 or last < x.stop - 12:
            parts.append(line([(last + 5, end), (x.stop + 8, at)], "var(--muted)", 0.7))
        parts.append(text(x.stop + 10, at + 4, s.name, kind="name"))
    return picture(parts, title)


def mean_band(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    return over_seeds(values)[:3]


def against_steps(rows: Sequence[Row], key: str, label: str, indices, log: bool = False) -> str | None:
    """Only of strategies that were looked at more than once; zero_shot, which was not, is a level."""
    series = []
    for row in rows:
        seeds = [curve for run in row.counted if (curve := run.curve(key))]
        by_step: dict[int, list[float]] = {}
        for curve in seeds:
            for step, value in curve:
                by_step.setdefault(step, []).append(value)
        mean = [(step, sum(v) / len(v), None, None) for step, v in sorted(by_step.items()) if len(v) == len(seeds)]
        series.append(Series(named(row), indices[row.name], mean, seeds if len(seeds) > 1 else ()))
    if not any(len(s.points) > 1 for s in series):
        return None
    last = max(p[0] for s in series for p in s.points)
    level = [s if len(s.points) > 1 or s.points[0][0] == last else
             Series(s.name, s.index, [*s.points, (last, *s.points[0][1:])], dash="6 4") for s in series if s.points]
    positive = all(p[1] > 0 for s in level for p in s.points)
    return curves(level, "step", label, label, log_y=log and positive)


def deciles(rows: Sequence[Row], domain: str, indices) -> str | None:
    series = []
    for row in rows:
        if lists := [found for run in row.counted if (found := run.at("loss", domain, "by_decile"))]:
            series.append(Series(named(row), indices[row.name], by_decile(lists)))
    if not series:
        return None
    if domain == "source" and (starts := [s for row in rows for run in row.counted if (s := run.at("loss", "source_start", "by_decile"))]):
        series.append(Series("source as it was", -1, by_decile(starts), dash="6 4"))
    return curves(series, "decile of t (noise →)", "loss (log)", f"loss by decile of t, {domain}", log_y=True,
                  ticks=[(k, str(k)) for k in range(1, 11)])


def by_decile(lists: Sequence[Sequence[float | None]]) -> list[tuple[float, float, None, None]]:
    known = [(k, [v for v in values if v is not None and v > 0]) for k, values in enumerate(zip(*lists, strict=False), 1)]
    return [(k, sum(values) / len(values), None, None) for k, values in known if values]


def weights(rows: Sequence[Row]) -> str | None:
    """A heat map, strategies by parts."""
    parts: list[str] = []
    change: dict[str, dict[str, float]] = {}
    for row in rows:
        runs = [found for run in row.counted if (found := run.at("forgetting", "weights"))]
        for part in (p for found in runs for p in found if p not in parts):
            parts.append(part)
        if runs:
            change[named(row)] = {p: sum(f[p] for f in runs if p in f) / n for p in parts if (n := sum(p in f for f in runs))}
    if not change:
        return None
    most = max((v for found in change.values() for v in found.values()), default=0) or 1.0
    left, width, height = 16 + max(text_width(name) for name in change), 62, 26
    drawn = [text(left + (k + 0.5) * width, 16, part, "middle", "tick") for k, part in enumerate(parts)]
    for n, (name, found) in enumerate(change.items()):
        y = 26 + n * height
        drawn.append(text(left - 8, y + height / 2 + 4, name, "end", "name"))
        for k, part in enumerate(parts):
            value = found.get(part)
            depth = 0 if value is None else (value / most) ** 0.5
            title = f"{name}, {part}: " + ("not compared" if value is None else f"{value:.4g}")
            drawn.append(f'<rect x="{fixed(left + k * width + 1)}" y="{y + 1}" width="{width - 2}" height="{height - 2}" rx="3" '
                         f'style="fill:var(--heat)" fill-opacity="{0.05 + 0.95 * depth:.2f}">{titled(title)}</rect>')
            drawn.append(text(left + (k + 0.5) * width, y + height / 2 + 4, heat_text(value), "middle", "heat dark" if depth > 0.6 else "heat"))
    return picture(drawn, "weight change by layer", left + len(parts) * width + 6, 32 + len(change) * height)


def heat_text(value: float | None) -> str:
    return "–" if value is None else "0" if value == 0 else f"{value:.2g}" if value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def shots(table: Sequence[Row], panels: Panels, indices) -> Figure | Absent:
    """KID, or where it is unknown the held-out loss, against data.n_train."""
    title = "Quality against shots"
    column = KID if any(row.value(KID) is not None for row in table) else HELD_OUT
    series: dict[str, list[tuple]] = {}
    for row in (row for rows in panels.values() for row in rows):
        cell, n = row.cell(column), images_of(row)
        if cell.value is not None and n and any(path == "data.n_train" for path, _ in row.situation):
            series.setdefault(row.name, []).append((n, *cell[:3]))
    if not any(len({p[0] for p in points}) > 1 for points in series.values()):
        return Absent(title, "needs runs that differ in data.n_train: +sweep=shots")
    drawn = curves([Series(name, indices[name], sorted(points)) for name, points in series.items()], "training images (log)", column.heading,
                   title, log_x=True, marks=True, ticks=[(n, f"{n:g}") for n in sorted({p[0] for s in series.values() for p in s})])
    return Figure("shots", title, "95% intervals.", [("", drawn)])


def images_of(row: Row) -> float | None:
    """How many images it trained on; null is all, which an evaluation has counted."""
    n = dict(row.situation).get("data.n_train")
    return n if n is not None else row.counted[0].at("images", "train")


def rates(table: Sequence[Row], indices) -> Figure | Absent:
    """Sensitivity to optimizer.lr, a panel for each of the other settings."""
    title = "Sensitivity to the rate"
    column = HELD_OUT if any(row.value(HELD_OUT) is not None for row in table) else TEST_LOSS
    panels: dict[str, dict[str, list[tuple[Any, ...]]]] = {}
    for row in table:
        cell, lr = row.cell(column), learning_rate(row.counted[0])
        if "optimizer.lr" in row.settings and cell.value is not None and lr and row.finished:
            rest = " ".join(f"{path}={value}" for path, value in row.settings.items() if path != "optimizer.lr")
            panels.setdefault(rest, {}).setdefault(row.name, []).append((lr.value, *cell[:3]))
    drawn = [(rest, curves([Series(name, indices[name], sorted(points)) for name, points in found.items()], "optimizer.lr (log)",
                           column.heading, title, log_x=True, log_y=True, marks=True))
             for rest, found in panels.items() if any(len(points) > 1 for points in found.values())]
    return (Figure("rates", title, f"95% intervals; the lowest {column.heading} chooses the rate.", drawn) if drawn
            else Absent(title, "needs runs of one strategy that differ in optimizer.lr: +sweep=learning_rate"))


def bound(rows: Sequence[Row], indices) -> str | None:
    series = []
    for row in rows:
        if terms := next((found for run in row.counted if (found := run.at("bound", "terms"))), None):
            points = [(term["t"], term["bits"], None, None) for term in sorted(terms, key=lambda term: term["t"]) if term["bits"] > 0]
            series.append(Series(named(row), indices[row.name], points))
    return curves(series, "t (log)", "bits per dimension (log)", "bits per dimension", log_x=True, log_y=True)
