"""What the numbers say, in a few sentences, each with its interval and its n."""

from __future__ import annotations

from collections.abc import Sequence

from reporting.columns import C_T, COPIES, FORGOT, HELD_OUT, KID, RHO, Column
from reporting.numbers import interval, number, share
from reporting.table import Cell, Row, difference

COPYING = ((RHO, lambda v: v < 0.5, "rho {} below 0.5"), (COPIES, lambda v: v > 0.05, "{} of its images are copies"),
           (C_T, lambda v: v < -3, "C_T {} below -3"))
SIGNS = "signs of copying"  # marked in the page
LEFT_ON_START = 0.1  # of the average's weight


def verdict(contenders: Sequence[Row], floors: Sequence[Row], samples: str) -> list[str]:
    """Two to five sentences on strategies under the same data, the best first. samples: what KID was measured on, in words."""
    column = KID if any(row.value(KID) is not None for row in contenders) else HELD_OUT
    judged = sorted((row for row in contenders if row.value(column) is not None), key=lambda row: row.value(column))
    if not judged:
        return ["No run is finished yet, so nothing can be said."]
    sentences = [ranking(judged, column, samples if column is KID else "validation images")]
    if column is KID:
        sentences += [forgetting(judged[0]), copying(judged)]
    else:
        sentences[0] = "Nothing is evaluated yet, so quality, copying and forgetting are unknown. " + sentences[0]
    caveats = " ".join(filter(None, [unsure_steps(judged), few_seeds(judged, column)]))
    return [*sentences, *filter(None, [caveats, beside_floors(judged[0], floors) if column is KID else ""])]


def named(row: Row) -> str:
    rest = [f"{path.split('.')[-1]} {value}" for path, value in row.settings.items() if not path.startswith("data.")]
    return row.name + (f" ({', '.join(rest)})" if rest else "")


def listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def with_interval(cell: Cell, column: Column) -> str:
    seeds = f"{cell.n} seeds" if cell.n > 1 else "one seed"
    return f"{cell.text(column)} ({', '.join(filter(None, [cell.band(column), seeds]))})"


def apart(cell: Cell) -> str:
    return (f"{number(cell.value, cell.low, cell.high, signed=True)} "
            f"{interval(cell.value, cell.low, cell.high, signed=True)}".rstrip() + f", {cell.n} seed{'s' * (cell.n > 1)}")


def ranking(judged: Sequence[Row], column: Column, samples: str) -> str:
    """Which is the best, which others are not told apart from it, which are worse."""
    best, *others = judged
    differences = [(row, difference(row, best, lambda r: r.by_seed(column))) for row in others]
    tied = [f"{named(row)} ({apart(d)})" for row, d in differences if d.low is not None and d.low <= 0]
    unknown = [named(row) for row, d in differences if d.low is None]
    worse = [named(row) for row, d in differences if d.low is not None and d.low > 0]
    begins = "is best, with the lowest" if worse and not tied and not unknown else "has the lowest"
    text = f"{named(best)} {begins} {column.heading}, {with_interval(best.cell(column), column)}, on {samples}"
    if tied:
        text += f"; not told apart from it by the paired interval of the difference: {listed(tied)}"
    if worse:
        text += f"; worse by an interval without 0: {listed(worse)}"
    if unknown:
        text += f"; not compared, as one run each gives no interval: {listed(unknown)}"
    return text + "."


def forgetting(best: Row) -> str:
    cell = best.cell(FORGOT)
    if cell.value is None:
        return f"What {named(best)} forgot was not measured."
    if best.from_scratch:
        return (f"{named(best)} starts from random weights and has nothing to forget: its loss on source images is "
                f"{with_interval(cell, FORGOT)} above the source's.")
    known = cell.low is not None and cell.high is not None
    if known and cell.low <= 0 <= cell.high:
        return f"{named(best)} forgot nothing that could be measured: the source's loss changed by {with_interval(cell, FORGOT)}."
    change = "rose" if cell.value > 0 else "fell"
    return f"{named(best)} {'forgot' if cell.value > 0 else 'did not forget'}: the loss on source images {change} by {with_interval(cell, FORGOT)}."


def copies(row: Row) -> list[str]:
    """The signs of copying that this row shows, in words."""
    return [words.format(with_interval(row.cell(column), column)) for column, sign, words in COPYING
            if row.value(column) is not None and sign(row.value(column))]


def copying(judged: Sequence[Row]) -> str:
    caught = {named(row): signs for row in judged if (signs := copies(row))}
    known = [row for row in judged if any(row.value(column) is not None for column, _, _ in COPYING)]
    if not known:
        return "Whether anything copies its training images was not measured."
    if not caught:
        rho, part = judged[0].cell(RHO), judged[0].cell(COPIES)
        numbers = [f"{column.heading} {with_interval(cell, column)}" for column, cell in ((RHO, rho), (COPIES, part)) if cell.value is not None]
        return f"No sign of copying in {'it' if len(known) == 1 else 'any'}" + (f"; {named(judged[0])}: {', '.join(numbers)}" if numbers else "") + "."
    text = "; ".join(f"{name} shows {SIGNS} its training images: {listed(signs)}" for name, signs in caught.items())
    clean = next((row for row in judged if row in known and named(row) not in caught), None)
    if named(judged[0]) in caught:
        text += (f". Its KID is worth little: take {named(clean)}, the best without a sign of copying ({KID.heading} "
                 f"{with_interval(clean.cell(KID), KID)})" if clean else ". None is without a sign of it")
    return text + "."


def improving(row: Row) -> bool:
    """Whether all its runs were best at their last step, of several that were judged."""
    runs = [run.result.values for run in row.counted]
    judged = min(len(run.curve("validation/loss")) for run in row.counted)
    return judged > 1 and all(v.get("best_step") is not None and v["best_step"] == v.get("step") for v in runs)


def lagging(row: Row) -> float | None:
    """The largest share of the averaged weights that still is the start, of runs that trained."""
    return max((v["ema_share_of_start"] for v in (run.result.values for run in row.counted)
                if v.get("step") and v.get("ema_share_of_start") is not None), default=None)


def unsure_steps(judged: Sequence[Row]) -> str:
    """What more steps would change."""
    better = [named(row) for row in judged if improving(row)]
    late = {named(row): left for row in judged if (left := lagging(row)) is not None and left > LEFT_ON_START}
    parts = []
    if better:
        parts.append(f"still improving at the last step, so that more steps may change the order: {listed(better)}")
    if late:
        parts.append("the averaged weights still are the start in part: " + listed([f"{name} {share(left)}" for name, left in late.items()]))
    return (text := "; ".join(parts)) and text[0].upper() + text[1:] + "."


def beside_floors(best: Row, floors: Sequence[Row]) -> str:
    said = [f"{row.name} {row.cell(KID).text(KID)}" for row in floors
            if row.situation == best.situation and row.value(KID) is not None]
    return f"Floors of KID test: {', '.join(said)}." if said else ""


def few_seeds(judged: Sequence[Row], column: Column) -> str:
    """What the intervals do and do not hold."""
    least = min(len(row.by_seed(column)) for row in judged)
    if least >= 3:
        return ""
    if least == 1:
        return ("One seed only (of one strategy or more): its interval is of the sampled images alone and says nothing of how another "
                "training would end; three seeds or more are needed for that.")
    return "Two seeds only: their t interval has one degree of freedom and is very wide; three or more are needed."
