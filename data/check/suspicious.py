"""What in a data set is suspicious: each kind a function, which names the images."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.check.alike import copies_across, nearest
from data.check.attributes import NO_DEFECTS
from data.check.look import Looks
from data.mask_pixels import are_masks
from data.resize import Unfit
from runtime.errors import numbers_as_0

FEW = 5  # images, of which none can be called rare
RARE = 0.05  # what fewer files than this share are is not what the set is made of
TAILED = 20  # values, of which fewer have no tails
TAIL = 0.01  # the share of the values, at least two, that are beyond what is usual
FAR = 4.0  # times as far from the median as the tail begins
COMPARED = 5000  # images that each is compared with, to find negatives
# by how much images are more like others than like their negatives: radiographs of the chest 0.86,
# of hands 0.9, photographs of faces 0.3
ALIGNED, INVERTED = 0.5, 0.2


@dataclass(frozen=True)
class Finding:
    """One kind of what is suspicious.

    Attributes:
        said: what it is, to stand after the number of cases.
        cases: items; two of each case where it is that they are alike.
        cure: where leaving them out is not the only one.
    """

    said: str
    cases: Sequence[tuple[int, ...]]
    cure: str = ""


def find_suspicious(
    looks: Looks,
    attributes: Mapping[str, Sequence[str]],
    splits: Mapping[str, Sequence[int]],
    files: np.ndarray,
    together: str,
) -> list[Finding]:
    """All findings; those of the very same images are one. A file of many images, such as a volume,
    is judged as one among the files, too: it is no tail of its own images.

    Args:
        attributes: of the files, by name, each one an item.
        files: the number of each image's file [N], 0 .. M - 1.
        together: the cure of near-copies in several splits, see ImageReader.
    """
    of_files = looks.by_file(files)
    order = np.argsort(files, kind="stable")
    images = np.split(order, np.flatnonzero(np.diff(files[order])) + 1)
    firsts = [each[0] for each in images]
    texts: dict[str, Sequence[str] | np.ndarray] = {
        **{
            name: [values[first] for first in firsts]
            for name, values in attributes.items()
            if name not in NO_DEFECTS
        },
        "size": [f"{height}x{width}" for height, width in of_files.size],
        "colours": np.where(of_files.colour, "in colour", "gray"),
    }
    found = [
        *_refused(looks),
        *_damaged(looks),
        *_without_information(looks),
    ]
    odd_files = [
        *_few_levels(of_files),
        *(each for name, values in texts.items() for each in _rare(name, values, of_files)),
        *_far_in_all(of_files),
        *_negatives(of_files),
    ]
    for each in odd_files:
        cases = [(item,) for (k,) in each.cases for item in images[k].tolist()]
        found.append(Finding(each.said, cases, each.cure))
    if len(firsts) < len(files):
        found += _far_in_all(looks)
    return _joined([*found, *_copies(looks, splits, together)])


def _joined(found: Sequence[Finding]) -> list[Finding]:
    by_cases: dict[tuple[tuple[int, ...], ...], list[Finding]] = {}
    for each in found:
        by_cases.setdefault(tuple(each.cases), []).append(each)
    return [
        Finding("; ".join(each.said for each in same), cases, same[0].cure)
        for cases, same in by_cases.items()
    ]


def _cases(items: np.ndarray) -> list[tuple[int, ...]]:
    return [(item,) for item in np.flatnonzero(items).tolist()]


def _refused(looks: Looks) -> Iterator[Finding]:
    """What a run would refuse, by the reason: what differs in its numbers alone is one."""
    by_reason: dict[str, list[int]] = {}
    for item, error in sorted(looks.failures.items()):
        by_reason.setdefault(numbers_as_0(str(error)), []).append(item)
    for items in by_reason.values():
        error = looks.failures[items[0]]
        cure = error.cure if isinstance(error, Unfit) else "data.skip_broken=true leaves them out."
        yield Finding(f"refused: {error}", [(item,) for item in items], cure)


def _without_information(looks: Looks) -> Iterator[Finding]:
    if cases := _cases(looks.uniform):
        yield Finding("of one colour: without information", cases)


def _damaged(looks: Looks) -> Iterator[Finding]:
    if cases := _cases(looks.damaged):
        yield Finding("a JPEG that opens, and lacks a part: cut short, or zeros within", cases)


def _few_levels(looks: Looks) -> Iterator[Finding]:
    if cases := _cases(are_masks(looks.likeness_to_mask)):
        yield Finding("few levels of gray beside others with many: a mask?", cases)


def _rare(name: str, values: Sequence[str] | np.ndarray, looks: Looks) -> Iterator[Finding]:
    values = np.asarray(values)
    counts = Counter(values[looks.readable].tolist()).most_common()
    others = sum(n for _, n in counts[1:])
    if len(values) < FEW or not 0 < others <= max(1, RARE * len(values)):
        return
    usual = counts[0][0]
    rare = ", ".join(f"{value or 'none'} {n}" for value, n in counts[1:5])
    cases = _cases(looks.readable & (values != usual))
    yield Finding(f"{name}: {rare}; all others are {usual or 'without'}", cases)


def far_cases(values: np.ndarray) -> np.ndarray:
    """Where values [N] lie so far from their median that the tails of the others do not explain
    them."""
    if len(values) < TAILED:
        return np.zeros(0, np.int64)
    ordered = np.sort(values)
    beyond = max(2, int(TAIL * len(values)))
    low, median, high = ordered[beyond], np.median(values), ordered[-1 - beyond]
    below, above = median - FAR * (median - low), median + FAR * (high - median)
    return np.flatnonzero((values < below) | (values > above))


def _far_in_all(looks: Looks) -> Iterator[Finding]:
    height, width = looks.size.clip(1).T
    yield from _far("shape (height : width)", np.log(height / width), looks, np.exp)
    yield from _far("mean brightness", looks.mean, looks)
    yield from _far("contrast (standard deviation)", looks.deviation, looks)
    yield from _far("roughness of neighbouring pixels (noise: 1.3)", looks.roughness, looks)


def _far(
    name: str,
    values: np.ndarray,
    looks: Looks,
    shown: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Iterator[Finding]:
    readable = np.flatnonzero(looks.readable)
    values = values[readable]
    if len(far := far_cases(values)):
        least, most = (f"{limit:.3g}" for limit in shown(np.quantile(values[far], (0, 1))))
        low, high = shown(np.quantile(np.delete(values, far), (0.01, 0.99)))
        its = least if least == most else f"{least} to {most}"
        cases = [(item,) for item in readable[far].tolist()]
        yield Finding(f"{name} {its}, others {low:.3g} to {high:.3g}", cases)


def _negatives(looks: Looks) -> Iterator[Finding]:
    drawn = np.random.default_rng(0).permutation(len(looks.thumbnails))[:COMPARED]
    whole = len(drawn) == len(looks.thumbnails)
    others = looks.thumbnails if whole else looks.thumbnails[drawn]
    _, alike, least = nearest(looks.thumbnails, others, "looking for negatives")
    gap = alike + least  # by which an image is more like others than like their negatives
    aligned = np.median(gap) > ALIGNED  # else light and dark mean nothing
    if aligned and (cases := _cases(gap < -INVERTED)):
        yield Finding("more like the negatives of others than like others: inverted?", cases)


def _copies(looks: Looks, splits: Mapping[str, Sequence[int]], together: str) -> Iterator[Finding]:
    if pairs := copies_across(looks.thumbnails, [*map(np.asarray, splits.values())]):
        yield Finding(
            "nearly the same as an image of another split, so held-out numbers will look better "
            "than they are",
            pairs,
            together,
        )
