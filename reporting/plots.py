"""The plots of the page: what each draws, and what is missing where it cannot be drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from evaluation.memorization import NEAR
from reporting.charts import Point, Series, Spot, curves, scatter, spans
from reporting.columns import FORGOT, HELD_OUT, KID, RHO, TEST_LOSS, Column, learning_rate
from reporting.svg import fixed, picture, text, text_width, titled
from reporting.table import Row, other_kind
from reporting.verdict import named, with_interval

Panels = dict[str, list[Row]]  # what the data are, in words -> contenders
Indices = dict[str, int]  # strategy -> its colour and shape


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


def figures(panels: Panels, table: Sequence[Row], indices: Indices, evaluate: str, floors: Sequence[Row] = ()) -> list[Figure | Absent]:
    """evaluate: the command that makes what evaluations lack. Quality is KID to the test images, or the loss where KID ranks nothing."""
    chosen = "Each strategy stands with the setting of its lowest held-out loss." if any(
        len(row.settings) > len(row.situation) for row in table) else ""
    front = f"Bars: 95% intervals. Dotted: the Pareto front; no strategy beats one on it in both. {chosen}"

    def figure(name: str, title: str, caption: str, needs: str, draw: Callable[[list[Row]], str | None], wide: bool = False):
        drawn = [(heading, svg) for heading, rows in panels.items() if (svg := draw(rows))]
        return Figure(name, title, caption.strip(), drawn, wide) if drawn else Absent(title, needs)

    def quality(rows: Sequence[Row]) -> Column:
        return TEST_LOSS if other_kind(rows, floors) else KID

    def evaluations(what: str) -> str:
        return f"needs evaluations with {what}: {evaluate}"

    return [
        figure("forgetting", "Quality against forgetting",
               f"Lower left is better. What starts from random weights has nothing to forget and is left out. {front}",
               evaluations("KID and the loss on source images"),
               lambda rows: trade([r for r in rows if not r.from_scratch], quality(rows), FORGOT, indices,
                                  "source loss change (forgetting →)")),
        figure("memorization", "Quality against memorization",
               f"Lower is better; rho is right at about 1: left of the red line, {NEAR}, is copying, and far to the right is away from the "
               f"data. Bars: 95% intervals. {chosen}", evaluations("KID and rho"),
               lambda rows: trade(rows, quality(rows), RHO, indices, "rho (← copying; 1: as new images)", mark=NEAR)),
        figure("loss", "Held-out loss against steps", "Validation images, averaged weights; mean over seeds, each seed faint.",
               "needs more than one look at validation images in training: a smaller run.checkpoint_every",
               lambda rows: against_steps(rows, "validation/loss", "held-out loss", indices)),
        figure("kid", "KID against steps", "To validation images, in training, of few samples: rough.",
               "needs run.kid_images above 0 in training", lambda rows: against_steps(rows, "validation/kid", "KID, validation", indices)),
        figure("deciles_target", "Loss by t-decile, target", "Decile 1 is the lowest noise.", evaluations("the loss by decile"),
               lambda rows: deciles(rows, "target", indices)),
        figure("deciles_source", "Loss by t-decile, source", "Decile 1 is the lowest noise. What lies above the dashed line was forgotten.",
               evaluations("the loss on source images"), lambda rows: deciles(rows, "source", indices)),
        figure("weights", "Weight change by layer", "‖w − w₀‖ / ‖w₀‖ of each part, in the order of the network; mean over seeds.",
               evaluations("the weight change"), weights, wide=True),
        shots(table, panels, indices),
        rates(table, indices),
        figure("bound", "Bits per dimension, by term",
               "The terms of the variational bound (Ho et al. 2020, eq. 5) at each t, mean of each stratum; of one seed.",
               evaluations("the bound"), lambda rows: bound(rows, indices)),
    ]


def trade(rows: Sequence[Row], quality: Column, column: Column, indices: Indices, label: str, mark: float | None = None) -> str | None:
    """Quality against another column: less of which is better, or which has a right value and a mark at its limit."""
    spots = []
    for row in rows:
        a, b = row.cell(column), row.cell(quality)
        if a.value is not None and b.value is not None:
            title = f"{named(row)}: {quality.heading} {with_interval(b, quality)}, {column.heading} {with_interval(a, column)}"
            spots.append(Spot(row.name, indices[row.name], a[:3], b[:3], title))
    return scatter(spots, label, quality.heading, mark) if spots else None


def against_steps(rows: Sequence[Row], key: str, label: str, indices: Indices) -> str | None:
    """What was looked at once, as zero_shot, is a level. None where nothing was looked at more than once."""
    series = []
    for row in rows:
        seeds = [curve for run in row.counted if (curve := run.curve(key))]
        by_step: dict[int, list[float]] = {}
        for step, value in (pair for curve in seeds for pair in curve):
            by_step.setdefault(step, []).append(value)
        mean = [(step, sum(v) / len(v), None, None) for step, v in sorted(by_step.items()) if len(v) == len(seeds)]
        series.append(Series(row.name, indices[row.name], mean, seeds if len(seeds) > 1 else ()))
    series = [s for s in series if s.points]
    if not any(len(s.points) > 1 for s in series):
        return None
    last = max(p[0] for s in series for p in s.points)
    series = [s if len(s.points) > 1 or s.points[0][0] == last else
              Series(s.name, s.index, [*s.points, (last, *s.points[0][1:])], dash="6 4") for s in series]
    log = spans([p[1] for s in series for p in s.points] + [v for s in series for f in s.faint for _, v in f])
    return curves(series, "step", label + (" (log)" if log else ""), label, log_y=log)


def deciles(rows: Sequence[Row], domain: str, indices: Indices) -> str | None:
    series = []
    for row in rows:
        if lists := [found for run in row.counted if (found := run.at("loss", domain, "by_decile"))]:
            series.append(Series(row.name, indices[row.name], by_decile(lists)))
    if not series:
        return None
    starts = [found for row in rows for run in row.counted if (found := run.at("loss", "source_start", "by_decile"))]
    if domain == "source" and starts:
        series.append(Series("source as it was", None, by_decile(starts), dash="6 4"))
    return curves(series, "decile of t (noise →)", "loss (log)", f"loss by decile of t, {domain}", log_y=True,
                  ticks=[(k, str(k)) for k in range(1, 11)])


def by_decile(lists: Sequence[Sequence[float | None]]) -> list[Point]:
    """Mean over seeds; deciles that no draw fell into are left out."""
    known = [(k, [v for v in values if v is not None and v > 0]) for k, values in enumerate(zip(*lists, strict=False), 1)]
    return [(k, sum(values) / len(values), None, None) for k, values in known if values]


def weights(rows: Sequence[Row]) -> str | None:
    """A heat map, strategies by parts of the network."""
    found = {row.name: runs for row in rows if (runs := [w for run in row.counted if (w := run.at("forgetting", "weights"))])}
    parts = list(dict.fromkeys(part for runs in found.values() for run in runs for part in run))
    change = {name: {p: sum(known) / len(known) for p in parts if (known := [run[p] for run in runs if p in run])}
              for name, runs in found.items()}
    if not parts:
        return None
    most = max(v for values in change.values() for v in values.values()) or 1.0
    left, width, height = 16 + max(text_width(name) for name in change), 62, 26
    drawn = [text(left + (k + 0.5) * width, 16, part, "middle", "tick") for k, part in enumerate(parts)]
    for n, (name, values) in enumerate(change.items()):
        y = 26 + n * height
        drawn.append(text(left - 8, y + height / 2 + 4, name, "end", "name"))
        for k, part in enumerate(parts):
            value = values.get(part)
            depth = ((value or 0) / most) ** 0.5  # a root, so that small changes are seen too
            said = f"{name}, {part}: " + ("no counterpart in the source" if value is None else f"{value:.4g}")
            drawn.append(f'<rect x="{fixed(left + k * width + 1)}" y="{y + 1}" width="{width - 2}" height="{height - 2}" rx="3" '
                         f'style="fill:var(--heat)" fill-opacity="{0.05 + 0.95 * depth:.2f}">{titled(said)}</rect>')
            kind = "heat deep" if depth > 0.78 else "heat"
            drawn.append(text(left + (k + 0.5) * width, y + height / 2 + 4, heat_text(value), "middle", kind))
    return picture(drawn, "weight change by layer", left + len(parts) * width + 6, 32 + len(change) * height)


def heat_text(value: float | None) -> str:
    return "–" if value is None else "0" if value == 0 else f"{value:.2g}" if value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def shots(table: Sequence[Row], panels: Panels, indices: Indices) -> Figure | Absent:
    """KID, or where it is unknown the held-out loss, against data.n_train."""
    title = "Quality against shots"
    column = KID if any(row.value(KID) is not None for row in table) else HELD_OUT
    found: dict[str, dict[str, list[Point]]] = {}
    for row in (row for rows in panels.values() for row in rows):
        cell, n = row.cell(column), images_of(row)
        if cell.value is not None and n and "data.n_train" in row.settings:
            rest = " ".join(f"{path}={value}" for path, value in row.situation if path != "data.n_train")
            found.setdefault(rest, {}).setdefault(row.name, []).append((n, *cell[:3]))
    log = spans([p[1] for by_name in found.values() for points in by_name.values() for p in points])
    drawn = [(rest, curves([Series(name, indices[name], sorted(points)) for name, points in by_name.items()], "training images (log)",
                           column.heading + " (log)" * log, title, log_x=True, log_y=log, marks=True, ticks=counts(by_name.values())))
             for rest, by_name in found.items() if any(len(points) > 1 for points in by_name.values())]
    if not drawn:
        return Absent(title, "needs runs that differ in data.n_train: +sweep=shots")
    return Figure("shots", title, "Bars: 95% intervals.", drawn)


def images_of(row: Row) -> float | None:
    """How many images it trained on; null is all, which an evaluation has counted."""
    n = row.settings.get("data.n_train")
    return n if n is not None else row.counted[0].at("images", "train")


def counts(series) -> list[tuple[float, str]]:
    return [(n, f"{n:g}") for n in sorted({point[0] for points in series for point in points})]


def rates(table: Sequence[Row], indices: Indices) -> Figure | Absent:
    """Sensitivity to optimizer.lr, a panel for each of the other settings."""
    title = "Sensitivity to the rate"
    column = HELD_OUT if any(row.value(HELD_OUT) is not None for row in table) else TEST_LOSS
    found: dict[str, dict[str, list[Point]]] = {}
    for row in table:
        cell, lr = row.cell(column), learning_rate(row.counted[0])
        if "optimizer.lr" in row.settings and cell.value is not None and lr and row.finished:
            rest = " ".join(f"{path}={value}" for path, value in row.settings.items() if path != "optimizer.lr")
            found.setdefault(rest, {}).setdefault(row.name, []).append((lr.value, *cell[:3]))
    drawn = [(rest, curves([Series(name, indices[name], sorted(points)) for name, points in by_name.items()], "optimizer.lr (log)",
                           f"{column.heading} (log)", title, log_x=True, log_y=True, marks=True))
             for rest, by_name in found.items() if any(len(points) > 1 for points in by_name.values())]
    if not drawn:
        return Absent(title, "needs runs of one strategy that differ in optimizer.lr: +sweep=learning_rate")
    return Figure("rates", title, f"Bars: 95% intervals. The lowest {column.heading} chooses the rate.", drawn)


def bound(rows: Sequence[Row], indices: Indices) -> str | None:
    series = []
    for row in rows:
        if terms := next((found for run in row.counted if (found := run.at("bound", "terms"))), None):
            points = [(term["t"], term["bits"] / term.get("steps", 1), None, None)
                      for term in sorted(terms, key=lambda term: term["t"]) if term["bits"] > 0]
            series.append(Series(row.name, indices[row.name], points))
    return curves(series, "t (log)", "bits per dimension and step (log)", "bits per dimension", log_x=True, log_y=True)
