"""A table as a picture: each measure's rows as points with their intervals, in the file's order,
which is that of a depth or of a number of steps where there is one; and what the paper has."""

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reporting.figures import RULE, STYLE, TEXT, Plot
from studies.ablation.measured import Found
from studies.ablation.settings import Measure, Row


@rc_context(fname=STYLE)
def figure(
    rows: Sequence[Row], found: dict[str, Found], measures: Sequence[Measure], expects: bool
) -> Plot | None:
    """None where nothing was measured. expects: whether the paper's numbers can be met."""
    known = [m for m in measures if any(of.mean(m.path) for of in found.values())]
    if not known:
        return None
    whole = Figure(figsize=(9.6, 1.1 + 0.24 * len(rows)))
    panels = whole.subplots(1, len(known), sharey=True, squeeze=False)[0]
    for axes, measure in zip(panels, known, strict=True):
        for place, row in enumerate(rows):
            _draw(axes, place, found[row.name], measure)
            if expects:
                _draw_expected(axes, place, row, measure)
        axes.set(xlabel=measure.name)
        axes.grid(axis="x", color=RULE)
    panels[0].set_yticks(range(len(rows)), [row.name for row in rows])
    panels[0].invert_yaxis()
    caption = "Points: as measured, with 95% intervals."
    if expects:
        caption += " Bars behind them: the paper's number in its band."
    return Plot("rows", "Rows", caption, "", lambda report: [], figure=whole)


def _draw(axes: Axes, place: int, found: Found, measure: Measure) -> None:
    mean, values = found.mean(measure.path), [*found.values(measure.path).values()]
    if mean is None:
        return
    low, high = mean.interval() if mean.n > 1 else (values[0].low, values[0].high)
    half = None
    if low is not None and high is not None:
        half = [[mean.value - low], [high - mean.value]]
    axes.errorbar(mean.value, place, xerr=half, fmt="o", color=TEXT, capsize=2, linewidth=1.2)


def _draw_expected(axes: Axes, place: int, row: Row, measure: Measure) -> None:
    expected = row.expects(measure.name)
    if expected is None or expected.band is None or isinstance(expected.value, str):
        return
    low, high = expected.band
    axes.barh(place, high - low, left=low, height=0.6, color=RULE, zorder=0)
