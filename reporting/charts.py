"""The two kinds of chart: points with a Pareto front, and lines with their names at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from reporting.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    bar,
    frame,
    line,
    marker,
    picture,
    place,
    scale,
    spread,
    style,
    text,
    text_width,
)

Point = tuple[float, float, float | None, float | None]  # x, mean, low, high


class Spot(NamedTuple):
    """A point with both intervals. index: of its colour and shape."""

    name: str
    index: int
    x: tuple[float, float | None, float | None]
    y: tuple[float, float | None, float | None]
    title: str


@dataclass(frozen=True)
class Series:
    """faint: the single seeds. index: of its colour and shape, None for gray."""

    name: str
    index: int | None
    points: Sequence[Point]
    faint: Sequence[Sequence[tuple[float, float]]] = ()
    dash: str = ""

    @property
    def color(self) -> str:
        return "var(--muted)" if self.index is None else style(self.index)


def axes(xs: Sequence[float], ys: Sequence[float], log_x=False, log_y=False, right: float = RIGHT, zero_x=False) -> tuple[Scale, Scale]:
    return scale(xs, LEFT, WIDTH - right, log_x, zero_x), scale(ys, HEIGHT - BOTTOM, TOP, log_y)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other beats, being as low in both and lower in one. In the order of the first coordinate."""
    front = [k for k, (x, y) in enumerate(points) if not any(u <= x and v <= y and (u, v) != (x, y) for u, v in points)]
    return sorted(front, key=lambda k: points[k])


def staircase(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Through the points of a front: between two of them the corner that both beat."""
    path = list(points[:1])
    for (_, y0), (x1, y1) in pairwise(points):
        path += [(x1, y0), (x1, y1)]
    return path


def spans(values: Sequence[float]) -> bool:
    """Whether a log axis shows them better."""
    return min(values, default=0) > 0 and max(values) > 5 * min(values)


def scatter(spots: Sequence[Spot], x_label: str, y_label: str, mark: float | None = None) -> str:
    """Lower y is better, and lower x. mark: a limit of x, of which neither more nor less is better then, so that there is no front."""
    means = [s.y[0] for s in spots]
    log = spans(means)
    tall = [max(v, min(means) / 2) if log else v for s in spots for v in s.y if v is not None]
    x, y = axes([v for s in spots for v in s.x if v is not None] + ([mark] if mark else []), tall, log_y=log, zero_x=True)
    parts = frame(x, y, x_label, y_label + (" (log)" if log else ""))
    if mark:
        parts.append(line([(x(mark), y.start), (x(mark), y.stop)], "var(--bad)", 1.2, "2 4", title=f"{mark}"))
    else:
        front = pareto([(s.x[0], s.y[0]) for s in spots])
        parts.append(line(staircase([(x(spots[k].x[0]), y(spots[k].y[0])) for k in front]), "var(--muted)", 1.5, "2 3"))
    bars = []
    for s in spots:
        px, py = x(s.x[0]), y(s.y[0])
        if s.x[1] is not None:
            bars.append((x(s.x[1]), py, x(s.x[2]), py, s.index))
        if s.y[1] is not None:
            bars.append((px, y.inside(s.y[1]), px, y.inside(s.y[2]), s.index))
    parts += [bar(*ends, style(index)) for *ends, index in bars]
    parts += [marker(x(s.x[0]), y(s.y[0]), s.index, s.title) for s in spots]
    crossed = [(min(a, c), min(b, d) - 1, max(a, c), max(b, d) + 1) for a, b, c, d, _ in bars]
    places = place([(x(s.x[0]), y(s.y[0])) for s in spots], [s.name for s in spots], x, y, crossed)
    for (left, base), s in zip(places, spots, strict=True):
        parts += [leader(x(s.x[0]), y(s.y[0]), left, base, text_width(s.name)), text(left, base, s.name, kind="name")]
    return picture(parts, f"{y_label} against {x_label}")


def leader(px: float, py: float, left: float, base: float, width: float) -> str:
    """From a point to its label, where that is not beside it."""
    near_x, near_y = min(max(px, left), left + width), min(max(py, base - 9), base + 2)
    return line([(px, py), (near_x, near_y)], "var(--muted)", 0.7) if (px - near_x) ** 2 + (py - near_y) ** 2 > 15**2 else ""


def curves(series: Sequence[Series], x_label: str, y_label: str, title: str, log_x=False, log_y=False, marks=False,
           ticks: Sequence[tuple[float, str]] = ()) -> str | None:
    """Lines with their names at the right end. None where there is no point. marks: each point with its interval."""
    series = [s for s in series if s.points]
    if not series:
        return None
    least = min(p[1] for s in series for p in s.points) / 2  # on a log axis an interval may reach down to 0
    ys = [max(v, least) if log_y else v for s in series for p in s.points for v in p[1:] if v is not None]
    ys += [v for s in series for f in s.faint for _, v in f]
    right = 16 + max(text_width(s.name) for s in series)
    x, y = axes([p[0] for s in series for p in s.points], ys, log_x, log_y, right=min(right, 170))
    parts = frame(x, y, x_label, y_label, ticks)
    for s in series:
        parts += [line([(x(u), y.inside(v)) for u, v in f], s.color, 1, opacity=0.35) for f in s.faint]
        parts.append(line([(x(p[0]), y.inside(p[1])) for p in s.points], s.color, 2, s.dash, title=s.name))
        if marks:
            parts += [bar(x(u), y.inside(low), x(u), y.inside(high), s.color) for u, _, low, high in s.points if low is not None]
        if s.index is not None:
            parts += [marker(x(p[0]), y.inside(p[1]), s.index, f"{s.name}, {x_label} {p[0]:g}: {p[1]:.4g}", 3.8)
                      for p in (s.points if marks else s.points[-1:])]
    ends = [y.inside(s.points[-1][1]) for s in series]
    for s, end, at in zip(series, ends, spread(ends, 13, y.stop + 4, y.start - 4), strict=True):
        last = x(s.points[-1][0])
        if abs(at - end) > 3 or last < x.stop - 12:
            parts.append(line([(last + 5, end), (x.stop + 8, at)], "var(--muted)", 0.7))
        parts.append(text(x.stop + 10, at + 4, s.name, kind="name"))
    return picture(parts, title)
