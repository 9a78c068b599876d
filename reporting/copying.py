"""The sentence about copies of training images; the criteria stand in metrics.memorization."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
from reporting.numbers import join_names
from reporting.runs import value_of
from reporting.table import UNTOUCHED, Row, find_baseline, known_columns
from training.result import percent

SIGNS = "Signs of copying"  # marked in the page


def copying_sentence(rows: Sequence[Row], baselines: Sequence[Row]) -> str:
    """rows: the best first."""
    known = [row for row in rows if known_columns((RHO, COPIES), [row])]
    if not known:
        return "Whether anything copies its training images was not measured."
    untouched = find_baseline(UNTOUCHED, rows[0], baselines)
    signs = {row.label: found for row in known if (found := signs_of_copying(row, untouched))}
    copiers = [row for row in known if row.label in signs]
    parts = [_copiers_text(copiers, signs, known, rows[0]) if copiers else _none_text(rows[0])]
    clean = [row for row in known if row not in copiers]
    if alike := [row.name for row in clean if signs_of_copying(row, None)]:
        parts.append(
            f"No sign: {join_names(alike)} {'comes' if len(alike) == 1 else 'come'} no nearer to "
            "the training images than the untouched source, which saw none of them (rho "
            f"{untouched.cell(RHO).text_and_band})."
        )
    most = innocent_share(_test_shares(rows[0]), _band(untouched, COPIES))
    if rows[0].value(COPIES) is not None and most > COPIED:
        parts.append(
            f"Up to {percent(most)} of copies by pixels would not be a sign here: with so few test "
            "images, images that copy nothing may have as many."
        )
    if earlier := [row.name for row in known if _went_on(row)]:
        parts.append(
            "Not of the last step, which samples.png and sample.py show (`select=last` evaluates "
            f"it): {join_names(earlier)}."
        )
    return " ".join(parts)


def signs_of_copying(row: Row, untouched: Row | None) -> list[str]:
    near, copied = _band(row, RHO), _band(row, COPIES)
    signs = []
    if near and near_sign(near, _band(untouched, RHO)):
        signs.append(f"rho {row.cell(RHO).text_and_band} below {NEAR}")
    if copied and copy_sign(copied, _test_shares(row), _band(untouched, COPIES)):
        signs.append(f"{row.cell(COPIES).text_and_band} copies")
    return signs


def _copiers_text(
    copiers: Sequence[Row], signs: dict[str, list[str]], known: Sequence[Row], best: Row
) -> str:
    def outright(row: Row) -> bool:
        """Copies by pixels, or half of the images at a tenth of the distance of new ones."""
        rho = row.value(RHO)
        return signs[row.label][-1].endswith("copies") or (rho is not None and rho < OUTRIGHT)

    counted = {
        row.label: row.cell(known_columns((RHO, COPIES), [row])[0]).counted for row in copiers
    }
    each = [f"{r.name} ({', '.join(signs[r.label])}; {counted[r.label]})" for r in copiers]
    text = f"{SIGNS} the training images: {'; '.join(each)}."
    if not any(map(outright, copiers)):
        return text + (
            " Images without detail are near to all others too, and few are copies outright: look "
            "at the closest pairs."
        )
    if best not in copiers or not outright(best):
        return text
    clean = next((row for row in known if row not in copiers), None)
    if not clean:
        return f"{text} None is without a sign of it."
    return (
        f"{text} The KID of {best.name} is worth little then: take {clean.title}, the best without "
        "a sign of copying."
    )


def _none_text(best: Row) -> str:
    found = known_columns((RHO, COPIES), [best])
    numbers = [f"{c.heading} {best.cell(c).in_words}" for c in found]
    return "No sign of copying" + (f"; {best.name}: {', '.join(numbers)}" if numbers else "") + "."


def _test_shares(row: Row) -> Band | None:
    """The share of test images that look like copies: mean over runs, outermost limits."""
    path = "memorization.pixels.copy_share_test"
    found = [value for run in row.counted if (value := value_of(run.at(path)))]
    if not found:
        return None
    lows = (v.value if v.low is None else v.low for v in found)
    highs = (v.value if v.high is None else v.high for v in found)
    return Band(sum(v.value for v in found) / len(found), min(lows), max(highs))


def _band(row: Row | None, column: Column) -> Band | None:
    return Band(*row.cell(column)[:3]) if row and row.value(column) is not None else None


def _went_on(row: Row) -> bool:
    """Whether a run went on after its evaluated step: from few images the last steps copy most."""
    return any(
        (run.at("checkpoint.step") or math.inf) < (run.result.values.get("step") or 0)
        for run in row.counted
    )
