"""What in a data set is suspicious: each kind a function, which names the images."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.check.alike import copies_across, nearest
from data.check.look import Looks
from data.mask_pixels import are_masks
from data.resize import Unfit

FEW = 5  # images, of which none can be called rare
RARE = 0.05  # what fewer images than this share are is not what the set is made of
FAR = 4.0  # so many times as far from the median as one image in a hundred lies
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
) -> list[Finding]:
    """All findings; those of the very same images are one.

    Args:
        attributes: of the files, by name, each one an item.
    """
    texts: dict[str, Sequence[str] | np.ndarray] = {
        **attributes,
        "size": [f"{height}x{width}" for height, width in looks.size],
        "colours": np.where(looks.colour, "in colour", "gray"),
    }
    found = [
        *_refused(looks),
        *_without_information(looks),
        *_few_levels(looks),
        *(each for name, values in texts.items() for each in _rare(name, values, looks)),
        *_far("shape (height : width)", looks.size[:, 0] / looks.size[:, 1].clip(1), looks),
        *_far("mean brightness", looks.mean, looks),
        *_far("contrast (standard deviation)", looks.deviation, looks),
        *_negatives(looks),
        *_copies(looks, splits),
    ]
    return _joined(found)


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
    """What a run would refuse, by the reason."""
    by_kind: dict[type, list[int]] = {}
    for item, error in sorted(looks.failures.items()):
        by_kind.setdefault(type(error), []).append(item)
    for items in by_kind.values():
        error = looks.failures[items[0]]
        cure = error.cure if isinstance(error, Unfit) else "data.skip_broken=true leaves them out."
        yield Finding(f"refused: {error}", [(item,) for item in items], cure)


def _without_information(looks: Looks) -> Iterator[Finding]:
    if cases := _cases(looks.uniform):
        yield Finding("of one colour: without information", cases)


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


def _far(name: str, values: np.ndarray, looks: Looks) -> Iterator[Finding]:
    """Values so far from the median that the tails of what is seen do not explain them."""
    low, median, high = np.quantile(values[looks.readable], (0.01, 0.5, 0.99))
    below, above = median - FAR * (median - low), median + FAR * (high - median)
    if cases := _cases(looks.readable & ((values < below) | (values > above))):
        found = [values[item] for (item,) in cases]
        least, most = f"{min(found):.3g}", f"{max(found):.3g}"
        its = least if least == most else f"{least} to {most}"
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


def _copies(looks: Looks, splits: Mapping[str, Sequence[int]]) -> Iterator[Finding]:
    if pairs := copies_across(looks.thumbnails, [*map(np.asarray, splits.values())]):
        yield Finding(
            "nearly the same as an image of another split, so held-out numbers will look better "
            "than they are",
            pairs,
            "data.patient=REGEX keeps together what belongs together; or make the splits yourself.",
        )
