"""What is said of copies of training images; the criteria stand in metrics.memorization."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from metrics.memorization import (
    COPIED,
    NEAR,
    OUTRIGHT,
    Band,
    copy_sign,
    innocent_share,
    near_sign,
)
from reporting.columns import COPIES, RHO, Column
from reporting.runs import value_of
from reporting.table import UNTOUCHED, Cell, Row, find_baseline, known_columns


def copying(rows: Sequence[Row], baselines: Sequence[Row]) -> dict[str, Any]:
    """What verdict.txt.j2 says of copies. rows: the best first."""
    known = [row for row in rows if _numbers(row)]
    untouched = find_baseline(UNTOUCHED, rows[0], baselines)
    judged = [(row, signs_of_copying(row, untouched)) for row in known]
    copiers = [(row, signs) for row, signs in judged if signs]
    clean = [row for row, signs in judged if not signs]
    innocent = innocent_share(_test_shares(rows[0]), _band(untouched, COPIES))
    few = rows[0].value(COPIES) is not None and innocent > COPIED
    return {
        "known": known,
        "signs": [(row, signs, _numbers(row)[0].counted) for row, signs in copiers],
        "outright": [row for row, signs in copiers if _outright(row, signs)],
        "clean": clean,
        "numbers": _numbers(rows[0]),
        "alike": [row.name for row in clean if signs_of_copying(row, None)],
        "untouched": untouched and untouched.cell(RHO),
        "innocent": innocent if few else None,
        "earlier": [row.name for row in known if _went_on(row)],
    }


def _numbers(row: Row) -> list[Cell]:
    return [row.cell(column) for column in known_columns((RHO, COPIES), [row])]


def signs_of_copying(row: Row, untouched: Row | None) -> list[str]:
    near, copied = _band(row, RHO), _band(row, COPIES)
    signs = []
    if near and near_sign(near, _band(untouched, RHO)):
        signs.append(f"rho {row.cell(RHO).text_and_band} below {NEAR}")
    if copied and copy_sign(copied, _test_shares(row), _band(untouched, COPIES)):
        signs.append(f"{row.cell(COPIES).text_and_band} copies")
    return signs


def _outright(row: Row, signs: Sequence[str]) -> bool:
    """Copies by pixels, or half of the images at a tenth of the distance of new ones."""
    rho = row.value(RHO)
    return signs[-1].endswith("copies") or (rho is not None and rho < OUTRIGHT)


def _test_shares(row: Row) -> Band | None:
    """The share of test images that look like copies: mean over runs, outermost limits."""
    path = "memorization.pixels.copy_share_test"
    found = [value for run in row.counted if (value := value_of(run.at(path)))]
    if not found:
        return None
    values, lows, highs, *_ = zip(*found)
    return Band(fmean(values), min(lows), max(highs))


def _band(row: Row | None, column: Column) -> Band | None:
    value, low, high = row.cell(column)[:3] if row else (None, None, None)
    return None if value is None else Band(value, low, high)


def _went_on(row: Row) -> bool:
    """Whether a run went on after its evaluated step: from few images the last steps copy most."""
    return any(
        (run.at("checkpoint.step") or math.inf) < (run.came_to("step") or 0) for run in row.counted
    )
