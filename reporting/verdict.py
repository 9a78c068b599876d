"""What the numbers say, in a few sentences, each with its interval and its n."""

from __future__ import annotations

from collections.abc import Sequence

from reporting.columns import C_T, COPIES, FORGOT, HELD_OUT, KID, RHO, TEST_LOSS, Column
from reporting.numbers import interval, number, share
from reporting.table import Cell, Row, difference

COPYING = ((RHO, lambda v: v < 0.5, "rho {} below 0.5"), (COPIES, lambda v: v > 0.05, "{} copies"),
           (C_T, lambda v: v < -3, "C_T {} below -3"))
SIGNS = "Signs of copying"  # marked in the page
UNTOUCHED, REAL, HALVES = "untouched source", "train against test", "half of test against the other half"  # floors
LEFT_ON_START = 0.1  # of the average's weight


def verdict(contenders: Sequence[Row], floors: Sequence[Row], samples: str) -> list[str]:
    """Two to six sentences on strategies under the same data, the headline first. samples: what KID was measured on, in words."""
    column = KID if any(row.value(KID) is not None for row in contenders) else HELD_OUT
    apart_from_test = other_kind(contenders, floors) if column is KID else ""
    column = TEST_LOSS if apart_from_test else column
    judged = sorted((row for row in contenders if row.value(column) is not None), key=lambda row: row.value(column))
    if not judged:
        return ["No finished run was measured on held-out images yet, so nothing can be said."]
    best, *others = judged
    apart = [(row, difference(row, best, column)) for row in others]
    tied = [row for row, d in apart if d.low is not None and d.low <= 0]
    left = [row.name for row in contenders if row not in judged]
    where = {KID: samples, TEST_LOSS: samples.split(" in ")[0], HELD_OUT: "validation images"}[column]
    sentences = [headline(best, column, apart, left, where), apart_from_test, compared(apart, left)]
    if column is not HELD_OUT:
        sentences += [forgetting(best, tied), copying(judged, floors)]
    else:
        sentences.append("Nothing is evaluated yet, so quality, copying and forgetting are unknown.")
    sentences.append(" ".join(filter(None, [unsure_steps(judged), few_seeds(judged, column), chosen_on_test(judged)])))
    if column is not HELD_OUT:
        sentences.append(beside_floors(best, floors))
    return list(filter(None, sentences))


def other_kind(contenders: Sequence[Row], floors: Sequence[Row]) -> str:
    """Why KID to the test images ranks nothing, where these are of another kind than the training images, and so far from them that a
    perfect generator of training images would stand no better than a contender; "" where that is not so."""
    found = {row.name: row.cell(KID) for row in floors if row.situation == contenders[0].situation and row.cell(KID).low is not None}
    real, halves = found.get(REAL), found.get(HALVES)
    best = min((row.value(KID) for row in contenders if row.value(KID) is not None), default=None)
    if real is None or halves is None or best is None or real.low <= halves.high or best > real.high:
        return ""
    return (f"KID test ranks nothing here: the training images themselves are at {real.text(KID)} {real.band(KID)} from the test images, "
            f"and these at {halves.text(KID)} from one another, so that they are of another kind, and nearer to them is not better.")


def named(row: Row) -> str:
    """With the settings that it contends with."""
    rest = [f"{path.split('.')[-1]} {value}" for path, value in row.settings.items() if not path.startswith("data.")]
    return row.name + (f" ({', '.join(rest)})" if rest else "")


def listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def seeds_text(n: int) -> str:
    return f"{n} seeds" if n > 1 else "one seed"


def with_interval(cell: Cell, column: Column) -> str:
    return " ".join(filter(None, [cell.text(column), cell.band(column), f"({seeds_text(cell.n)})"]))


def headline(best: Row, column: Column, apart: Sequence[tuple[Row, Cell]], left: Sequence[str], samples: str) -> str:
    alone = apart and not left and all(d.low is not None and d.low > 0 for _, d in apart)
    return (f"{named(best)} {'is best, with the' if alone else 'has the'} lowest {column.heading}: "
            f"{with_interval(best.cell(column), column)}, on {samples}.")


def compared(apart: Sequence[tuple[Row, Cell]], left: Sequence[str]) -> str:
    """Who is not told apart from the best, and who is worse, by the paired interval of the difference. left: who was not measured."""
    known = [(row, d) for row, d in apart if d.low is not None]
    tied = [(row, d) for row, d in known if d.low <= 0 <= d.high]
    worse = [(row, d) for row, d in known if d.low > 0]
    ahead = [(row, d) for row, d in known if d.high < 0]
    unknown = [row.name for row, d in apart if d.low is None]
    parts = []
    if tied:
        parts.append(f"not told apart from it, the paired interval of the difference holding 0: {differences(tied)}")
    if ahead:
        parts.append(f"lower than it on the seeds that both have, though not on the average of its own: {differences(ahead)}")
    if worse:
        parts.append(f"worse: {differences(worse)}")
    if unknown:
        parts.append(f"not compared, as no interval of the difference is known: {listed(unknown)}")
    if left:
        parts.append(f"not measured, so that any of them may be better: {listed(left)}")
    return begun("; ".join(parts)) if parts else ""


def differences(apart: Sequence[tuple[Row, Cell]], most: int = 6) -> str:
    """Each with its interval and how many seeds it is over; of many the first, which are the nearest."""
    shown, rest = (apart, []) if len(apart) <= most + 1 else (apart[:most], apart[most:])
    counts = {d.n for _, d in apart}
    each = [f"{row.name} {number(*d[:3], signed=True)} {interval(*d[:3], signed=True)}"
            + (f" ({seeds_text(d.n)})" if len(counts) > 1 else "") for row, d in shown]
    if rest:
        each.append(f"{len(rest)} more, by {number(rest[0][1].value, signed=True)} and up")
    return listed(each) + (f" ({seeds_text(counts.pop())})" if len(counts) == 1 else "")


def begun(text: str) -> str:
    """As a sentence."""
    return text[0].upper() + text[1:] + "."


def forgetting(best: Row, tied: Sequence[Row]) -> str:
    """What the best forgot; and which of those not told apart from it forgot least."""
    cell = best.cell(FORGOT)
    change = with_interval(cell, FORGOT)
    if best.from_scratch:
        text = f"{best.name} starts from random weights, with nothing to forget"
    elif cell.value is None:
        text = f"What {best.name} forgot was not measured"
    elif cell.low is not None and cell.low <= 0 <= cell.high:
        text = f"{best.name} forgot nothing that could be measured: the loss on source images changed by {change}"
    else:
        text = f"{best.name} {'forgot' if cell.value > 0 else 'did not forget'}: the loss on source images changed by {change}"
    least = min((row for row in tied if row.value(FORGOT) is not None), key=lambda row: row.value(FORGOT), default=None)
    if least and (cell.value is None or least.value(FORGOT) < cell.value):
        text += f"; of those not told apart from it {least.name} forgot least, {with_interval(least.cell(FORGOT), FORGOT)}"
    return text + "."


def copies(row: Row, rules: Sequence[tuple]) -> str:
    """The signs of copying that this row shows, in words; "" for none."""
    signs = [(column, words) for column, sign, words in rules if row.value(column) is not None and sign(row.value(column))]
    said = [words.format(f"{row.cell(column).text(column)} {row.cell(column).band(column)}".strip()) for column, words in signs]
    return f"{row.name} ({', '.join(said)}; {seeds_text(row.cell(signs[0][0]).n)})" if signs else ""


def outright(row: Row) -> bool:
    """More than near: copies by pixels, or half of the images at a tenth of the distance of new ones."""
    share, ratio = row.value(COPIES), row.value(RHO)
    return (share is not None and share > 0.05) or (ratio is not None and ratio < 0.1)


def copying(judged: Sequence[Row], floors: Sequence[Row]) -> str:
    known = [row for row in judged if any(row.value(column) is not None for column, _, _ in COPYING)]
    if not known:
        return "Whether anything copies its training images was not measured."
    innocent = next((row for row in floors if row.name == UNTOUCHED and row.situation == judged[0].situation), None)
    void = [rule for rule in COPYING if innocent and innocent.value(rule[0]) is not None and rule[1](innocent.value(rule[0]))]
    rules = [rule for rule in COPYING if rule not in void]
    said = copying_by(rules, judged[0], known)
    said += "".join(f" {column.heading} is no sign here: the untouched source, which saw none of the images, has "
                    f"{innocent.cell(column).text(column)}." for column, _, _ in void)
    return said


def copying_by(rules: Sequence[tuple], best: Row, known: Sequence[Row]) -> str:
    caught = {row.name: signs for row in known if (signs := copies(row, rules))}
    if not caught:
        numbers = [f"{column.heading} {with_interval(best.cell(column), column)}" for column, _, _ in rules
                   if best.value(column) is not None]
        return "No sign of copying" + (f"; {best.name}: {', '.join(numbers)}" if numbers else "") + "."
    text = f"{SIGNS} the training images: {'; '.join(caught.values())}"
    if not any(outright(row) for row in known if row.name in caught):
        return text + ". Images without detail are near to all others too, and few are copies outright: look at the closest pairs."
    if outright(best):
        clean = next((row for row in known if row.name not in caught), None)
        text += (f". The KID of {best.name} is worth little then: take {named(clean)}, the best without a sign of copying ({KID.heading} "
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
    better = [row.name for row in judged if improving(row)]
    late = {row.name: left for row in judged if (left := lagging(row)) is not None and left > LEFT_ON_START}
    parts = []
    if better:
        parts.append(f"still improving at the last step, so that more steps may change the order: {listed(better)}")
    if late:
        lags = [f"{name} {share(left)}" for name, left in late.items()]
        parts.append(f"the averaged weights, which are what is judged, still are the start in part: {listed(lags)}")
    return begun("; ".join(parts)) if parts else ""


def chosen_on_test(judged: Sequence[Row]) -> str:
    """Where validation images stand for the test."""
    if not any(run.at("protocol", "held_out") == "validation" for row in judged for run in row.counted):
        return ""
    return "There is no test split: checkpoints and settings were chosen by the very images that they are judged on, which flatters them."


def beside_floors(best: Row, floors: Sequence[Row]) -> str:
    said = [f"{row.name} {row.cell(KID).text(KID)} {row.cell(KID).band(KID)}".strip() for row in floors
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
