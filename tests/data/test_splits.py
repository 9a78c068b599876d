"""Drawn splits: shares within every class and over all of them, groups whole."""

from __future__ import annotations

import numpy as np
import pytest

from data.splits import SPLITS, complete_splits


def draw_splits(items, labels, groups, validation, test):
    """All of the items are to be separated."""
    given = {"train": items, "validation": [], "test": []}
    return complete_splits(given, labels, groups, validation, test)


@pytest.mark.parametrize(
    ("validation", "test"),
    [(0.1, 0.1), (0.2, 0.05), (0.0, 0.3), (0.25, 0.0), (0.0, 0.0), (0.29, 0.57)],
)
def test_each_class_gives_its_share(validation, test):
    sizes = [100, 40, 10, 1, 349]
    labels = np.random.default_rng(0).permutation(np.repeat(range(5), sizes)).tolist()
    items = list(range(500))
    splits = draw_splits(items, labels, items, validation, test)
    assert sorted(splits["train"] + splits["validation"] + splits["test"]) == items
    assert draw_splits(items, labels, items, validation, test) == splits
    for split, share in (("validation", validation), ("test", test)):
        assert abs(len(splits[split]) - 500 * share) <= 2
        for label, size in enumerate(sizes):
            assert abs(sum(labels[item] == label for item in splits[split]) - size * share) < 2.5
    assert {labels[i] for i in splits["train"]} == set(range(5))
    if test:
        assert splits["test"] != items[: len(splits["test"])]


def test_many_small_classes_still_leave_something_to_judge_by():
    splits = draw_splits(range(400), [k // 4 for k in range(400)], range(400), 0.1, 0.1)
    assert [len(splits[split]) for split in SPLITS] == [320, 40, 40]


def test_a_group_is_never_split():
    groups = [k // 7 for k in range(300)]
    splits = draw_splits(range(300), [0] * 300, groups, 0.2, 0.2)
    owners = {split: {groups[i] for i in splits[split]} for split in SPLITS}
    assert (
        not owners["train"] & owners["test"]
        and not owners["train"] & owners["validation"]
        and not owners["validation"] & owners["test"]
    )
    assert all(
        abs(len(splits[split]) - share * 300) <= 7
        for split, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2))
    )


def test_only_the_items_that_are_given_are_cut():
    splits = draw_splits([5, 9, 20, 30], [0] * 40, range(40), 0.25, 0.25)
    assert (
        sorted(splits["train"] + splits["validation"] + splits["test"]) == [5, 9, 20, 30]
        and len(splits["train"]) == 2
    )
