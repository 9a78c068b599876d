"""Training, validation and test images, drawn where nobody has separated them."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from statistics import mode
from typing import TypeVar

import numpy as np
import torch

from runtime.errors import UserError
from runtime.seeds import generator

SPLITS = ("train", "validation", "test")
FEWEST_TO_STOP_BY = 5  # validation images
Splits = dict[str, Sequence[int]]  # items by split
Part = TypeVar("Part", bound=Hashable)


def items_by_split(split_of: Iterable[str | None]) -> Splits:
    """The items of each split. split_of: by item; None for one that is in no split yet."""
    splits: dict[str, list[int]] = {split: [] for split in SPLITS}
    for item, split in enumerate(split_of):
        if split:
            splits[split].append(item)
    return {**splits}


def check_shares(validation: float, test: float) -> None:
    if not (validation >= 0 and test >= 0 and validation + test < 1):  # nor NaN
        raise UserError(
            f"data: validation={validation} and test={test} must be shares that leave some for "
            "training."
        )


def strata(
    items: Sequence[int], labels: Sequence[int], groups: Sequence[Hashable]
) -> dict[int, list[list[int]]]:
    """The items of each group, by class. A group, such as a patient, may have images of several:
    the most frequent counts, and of these the first."""
    members: defaultdict[Hashable, list[int]] = defaultdict(list)
    for item in items:
        members[groups[item]].append(item)
    found: defaultdict[int, list[list[int]]] = defaultdict(list)
    for inside in members.values():
        found[mode(sorted(labels[i] for i in inside))].append(inside)
    return found


def complete_splits(
    given: Splits,
    labels: Sequence[int],
    groups: Sequence[Hashable],
    validation: float,
    test: float,
) -> Splits:
    """The given validation and test images, and what is missing of either drawn from the given
    training images: a function of what is given, the same at every start.

    Dealt so that shares hold within every class and over all of them; the first of a class goes to
    training.

    Args:
        labels: of all items.
        groups: of all items; a group, such as a patient, is never split.
        validation: the share of the training images, 0 to 1, where none are given.
        test: as validation; what both leave is for training.

    Raises:
        UserError: where the shares leave nothing for training.
    """
    drawn = {"validation": validation, "test": test}
    kept = {split: given[split] for split in drawn if given[split]}
    drawn |= dict.fromkeys(kept, 0)
    check_shares(**drawn)
    shares = {"train": 1 - drawn["validation"] - drawn["test"], **drawn}
    found = strata(given["train"], labels, groups)
    split_of = deal(found, shares, "split", "folder", first="train")
    return items_by_split(map(split_of.get, range(len(labels)))) | kept


def deal(
    members_of: Mapping[int, list[list[int]]],
    shares: Mapping[Part, float],
    *key: int | str,
    first: Part | None = None,
) -> dict[int, Part]:
    """Item -> its part. Class by class, its groups in random order, drawn by key, go each to the
    part that is owed most, of equals to the first. members_of: see strata. first: the part that
    gets the first group of each class."""
    owed = dict.fromkeys(shares, 0.0)
    part_of: dict[int, Part] = {}
    for label, members in sorted(members_of.items()):
        order = torch.randperm(len(members), generator=generator(*key, label)).tolist()
        for place, k in enumerate(order):
            for part in shares:
                owed[part] += shares[part] * len(members[k])
            chosen = max(shares, key=lambda part: round(owed[part], 6))
            chosen = first if first is not None and not place else chosen
            owed[chosen] -= len(members[k])
            part_of |= dict.fromkeys(members[k], chosen)
    return part_of


def draw_folds(
    rows: np.ndarray, labels: Sequence[int], groups: Sequence[Hashable], count: int
) -> list[np.ndarray]:
    """The rows in so many parts of about the same size, each class in about the same shares, in
    rising order; a group is never split. labels, groups: of all items."""
    shares = dict.fromkeys(range(count), 1 / count)
    fold_of = deal(strata(rows.tolist(), labels, groups), shares, "fold")
    return [np.array([r for r in rows.tolist() if fold_of[r] == k], np.int64) for k in range(count)]


def take_validation(
    rows: np.ndarray, labels: Sequence[int], groups: Sequence[Hashable], share: float
) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, rows taken out of them for validation), in rising order: this share and at
    least FEWEST_TO_STOP_BY, but no more than half. As draw_folds."""
    share = min(max(share, FEWEST_TO_STOP_BY / len(rows)), 0.5)
    shares = {"train": 1 - share, "validation": share}
    part_of = deal(strata(rows.tolist(), labels, groups), shares, "validation of train")
    taken = np.array([part_of[row] == "validation" for row in rows.tolist()], bool)
    return rows[~taken], rows[taken]


def tell_empty(splits: Splits, shares: Mapping[str, float]) -> list[str]:
    """A word for each split that was to have a share of the images and got none."""
    return [
        f"too few images for any in {split} at data.{split}={share}"
        for split, share in shares.items()
        if share and not splits[split]
    ]


def draw_subset(rows: np.ndarray, count: int, *key: int | str) -> np.ndarray:
    """[count], in rising order: so many of the rows, drawn by key."""
    order = torch.randperm(len(rows), generator=generator(*key)).numpy()
    return np.sort(rows[order[:count]])


def spread(rows: np.ndarray, count: int, labels: np.ndarray | None = None) -> np.ndarray:
    """count of the rows, or all where there are fewer, in order: one at random in each of so many
    equal parts of a class, so that a regular order, such as ten slices a volume, is not met in
    step.

    Of each class the floor or the ceiling of its share; of a stretch of neighbours inside a class,
    such as a patient, less than two from it. A function of the number of rows, of the labels and of
    count alone.

    Args:
        labels: of all images, [*]; None takes all for one class.

    Source: Cochran 1977, chapter 5, stratified sampling with proportional allocation.
    """
    count = min(count, len(rows))
    classes = np.zeros(len(rows)) if labels is None else labels[rows]
    order = np.argsort(classes, kind="stable")
    members = np.split(rows[order], np.flatnonzero(np.diff(classes[order])) + 1)
    ends = np.cumsum([0, *map(len, members)]) * count
    # the shares, rounded so that they add up to count
    taken = np.diff((2 * ends + len(rows)) // max(2 * len(rows), 1))
    parts = []
    for k, (inside, n) in enumerate(zip(members, taken)):
        ends = np.arange(n + 1) * len(inside) // max(n, 1)
        u = torch.rand(n, generator=generator("spread", k), dtype=torch.float64).numpy()
        parts.append(inside[ends[:-1] + (u * np.diff(ends)).astype(np.int64)])
    return np.concatenate(parts)
