"""Folds, and validation images taken out of what a run trains on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from config.overrides import composed
from config.run_config import RunConfig
from data.dataset import open_dataset
from data.splits import draw_folds, take_validation
from runtime.errors import UserError
from tests.helpers import folder_runs


def rows_of(folder: Path, *more: str):
    """The splits of a folder, by names of files."""
    sizes = ["data.size=8", "data.channels=1", "data.validation=0"]
    config = RunConfig(composed("train", ["data=folder", f"data.path={folder}", *sizes, *more]))
    reader = config.data.open_reader(folder.parent / "cache")
    dataset = open_dataset(config.data, reader, config.seed, folder.parent / "cache")
    return {s: [reader.item_name(r) for r in rows] for s, rows in dataset.splits.items()}, dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes, 18 and 9 images; of each patient three."""
    root = tmp_path_factory.mktemp("folds")
    for name, n in (("benign", 18), ("malignant", 9)):
        (root / "images" / name).mkdir(parents=True)
        for k in range(n):
            file = root / "images" / name / f"P{name[0]}{k // 3}_{k}.png"
            folder_runs.ramp(k, 9 * k).save(file)
    return root / "images"


def test_each_image_is_tested_once_and_never_by_a_run_that_saw_it(folder):
    tested = []
    for k in range(3):
        fold = ["data.test=0", f"data.fold=[{k},3]", "data.validation_of_train=0.3"]
        splits, dataset = rows_of(folder, *fold)
        names = [name for split in splits.values() for name in split]
        assert len(names) == len(set(names)) == 27, "no image stands in two splits"
        assert len(splits["test"]) == 9 and len(splits["validation"]) in (5, 6)
        test_labels = dataset.labels[dataset.splits["test"]]
        assert (test_labels == 0).sum() == 6, "each class has its share"
        tested += splits["test"]
    assert len(tested) == len(set(tested)) == 27


def test_a_patient_is_in_one_split(folder):
    for k in range(3):
        fold = ["data.test=0", f"data.fold=[{k},3]", "data.validation_of_train=0.3"]
        splits, _ = rows_of(folder, 'data.patient="(P[a-z]\\d+)_"', *fold)
        owners = {s: {Path(n).name.split("_")[0] for n in names} for s, names in splits.items()}
        assert all(owners.values())
        assert sum(map(len, owners.values())) == 9, "nine patients, each in one"


def test_a_run_that_asks_for_neither_has_the_splits_that_it_had(folder):
    assert rows_of(folder)[0] == rows_of(folder, "data.fold=null")[0]
    plain = RunConfig(composed("train", ["data=folder", f"data.path={folder}"]))
    assert plain.data.fold is None and plain.data.validation_of_train is None


def test_validation_images_are_those_of_the_subset(folder):
    few = ["data.test=0", "data.n_train=12", "data.validation_of_train=0.2"]
    splits, _ = rows_of(folder, *few)
    assert len(splits["train"]) == 7 and len(splits["validation"]) == 5, "five at least"
    without, _ = rows_of(folder, *few[:2])
    assert set(splits["train"]) | set(splits["validation"]) == set(without["train"])


@pytest.mark.parametrize(("n", "taken"), [(8, 4), (10, 5), (12, 5), (25, 5), (50, 10), (100, 20)])
def test_how_many_are_taken(n, taken):
    train, validation = take_validation(np.arange(n), [0] * n, range(n), 0.2)
    assert len(validation) == taken and len(train) == n - taken
    assert not set(train) & set(validation)


def test_folds_are_about_of_one_size():
    labels = np.random.default_rng(1).integers(0, 4, 103).tolist()
    folds = draw_folds(np.arange(103), labels, range(103), 5)
    assert {len(fold) for fold in folds} <= {20, 21}
    counts = np.array([np.bincount(np.array(labels)[fold], minlength=4) for fold in folds])
    assert (counts.max(0) - counts.min(0) <= 2).all()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["data.fold=[5,5]"], "counted from 0"),
        (["data.fold=[0,5]"], "has 3 test images already"),
        (["data.test=0", "data.fold=[0,40]"], "do not fill 40 folds"),
        (["data.validation_of_train=0.9"], "at most"),
    ],
)
def test_what_cannot_be_is_said(folder, more, said):
    with pytest.raises(UserError, match=said):
        rows_of(folder, *more)


def test_given_test_folders_are_the_test(tmp_path):
    for split, n in (("train", 12), ("test", 6)):
        (tmp_path / "images" / split / "a").mkdir(parents=True)
        for k in range(n):
            folder_runs.ramp(k, 9 * n + k).save(tmp_path / f"images/{split}/a/{split}{k}.png")
    with pytest.raises(UserError, match="has 6 test images already"):
        rows_of(tmp_path / "images", "data.test=0", "data.fold=[0,5]")
    splits, _ = rows_of(tmp_path / "images", "data.test=0", "data.validation_of_train=0.2")
    assert [len(splits[s]) for s in ("train", "validation", "test")] == [7, 5, 6]
