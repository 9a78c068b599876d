"""A study whose images are of patients: how many judge, what is told apart, and that draws of
images and of patients are not mixed."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from config.overrides import composed
from config.run_config import RunConfig
from data.splits import draw_folds
from runtime.errors import UserError
from studies.which_layers.answer import answer
from studies.which_layers.images import Images, look_at
from studies.which_layers.judge import differences, loss_of, of_images
from studies.which_layers.table import COLUMNS, table_of
from tests.helpers.made_up_studies import compared
from tests.helpers.smooth_images import smooth

ARGUMENTS = ["+experiment=which_layers", "data.path=mine"]
SPLITS = ["validation", "test"]
ONE_SPLIT = {"folds": None, "repeats": 5}  # as a study has it


def slices(patients: int, each: int, trial: int):
    """Losses of two strategies that are equal: two images of one patient correlate by 1/2, in the
    difference, too."""

    def loss_of_run(name, k, size, rate):
        hard = np.random.default_rng(trial).normal(0, 0.01, patients * each)
        own = np.random.default_rng([trial, *name.encode()])
        of_patients = own.normal(0, 0.003, patients).repeat(each)
        of_images = own.normal(0, 0.003, patients * each)
        training = np.random.default_rng([trial, k, *name.encode()]).normal(0, 0.0005)
        return 0.08 + hard + of_patients + of_images + training, 13

    return loss_of_run


@pytest.mark.parametrize("patients", [4, 10])
def test_equal_strategies_are_told_apart_as_seldom_as_5_of_100(patients):
    """By one split whose test images are of few patients, 20 slices each, and five seeds."""
    wrong = {}
    for known in (patients, None):
        wrong[known] = 0
        for trial in range(100):
            made = compared(
                slices(patients, 20, trial), ["full", "again"], patients=known, **ONE_SPLIT
            )
            wrong[known] += not answer(made, {}, ARGUMENTS).tied
    print(patients, "patients:", wrong, "of 100 told apart")
    assert wrong[patients] <= 10 and wrong[None] >= 20


def test_draws_of_images_and_of_patients_are_not_mixed():
    made = compared(slices(4, 5, 0), ["full", "again"], patients=4, **ONE_SPLIT)
    runs = {name: sizes[None] for name, sizes in made.found.items()}
    assert differences(runs, "full", False) and loss_of(runs["full"], False)
    old = {k: replace(judged, images=20, of_images=None) for k, judged in runs["again"].items()}
    with pytest.raises(UserError, match="earlier version.*does not compare with 5 runs"):
        differences(runs | {"again": old}, "full", False)
    one_old = runs["full"] | {0: replace(runs["full"][0], images=20, of_images=None)}
    with pytest.raises(UserError, match="earlier version"):
        loss_of(one_old, False)
    all_old = {"full": {k: replace(j, of_images=None) for k, j in runs["full"].items()}}
    assert differences(all_old | {"again": old}, "full", False), "as before"
    # of a fold whose test images happen to be of as many patients
    folds = {name: {**own, 0: replace(own[0], of_images=None)} for name, own in runs.items()}
    assert differences(folds, "full", True)


def test_the_table_counts_images():
    made = compared(slices(4, 5, 0), ["full", "again"], patients=4, **ONE_SPLIT)
    made_of_images = compared(slices(4, 5, 0), ["full", "again"], **ONE_SPLIT)
    column = COLUMNS.index("judged_by")
    for found in (made, made_of_images):
        assert {line[column] for line in table_of(found)[1:]} == {20}
    sd = COLUMNS.index("loss_sd")
    run = made.found["full"][None][0]
    expected = np.std(run.replicates) * (4 / 3) ** 0.5
    assert float(table_of(made)[1][sd]) == pytest.approx(expected, rel=1e-5)


def test_the_plan_says_how_many_patients_judge():
    given = Images("", 90, 80, SPLITS, patients=12, judges=(80, 4))
    assert "judged by 80 test images of 4 patients of their own, 5 seeds" in given.told(None, 5)
    assert "80 test images of 4 patients judge" in given.warned(None, 5)
    split = Images("", 1000, 0, SPLITS, test=0.2, patients=50, judges=(196, 9))
    assert "5 seeds, judged by 196 test images of 9 patients; a run" in split.told(None, 5)
    folded = Images("", 100, 0, SPLITS, patients=20)
    said = folded.told(5, 3)
    assert "5 folds, 3 of them judged, judged by 60 test images of 12 patients; a run" in said
    assert not split.warned(None, 5) and not folded.warned(5, 5)
    few = Images("", 100, 0, SPLITS, patients=4)
    assert few.folds(5) == 4 and few.warned(4, 4) and not few.warned(None, 5)
    alone = Images("", 100, 0, SPLITS)
    assert alone.folds(5) == 5 and not alone.warned(5, 5) and "patients" not in alone.told(5, 5)


def test_folds_are_of_fewer_than_200_patients_however_many_their_images():
    """One split of 40 patients would be judged by 8 of them, and its seeds by the same 8."""
    slices = Images("", 4000, 0, SPLITS, patients=40)
    assert slices.folds(5) == 5 and Images("", 4000, 0, SPLITS, patients=200).folds(5) is None
    assert slices.judged_by(5, 5) == (4000, 40)
    asked = Images("", 4000, 0, SPLITS, test=0.25, patients=40)
    assert asked.folds(5) is None and asked.repeat(0, None)[1] == "data.test=0.25"
    assert Images("", 100, 0, SPLITS, test=0.25).folds(5) is None, "a share that is asked for"


def folder(root, *splits: tuple[str, int, int], each: int = 6):
    """splits: (folder, first patient, last)."""
    for split, first, last in splits:
        (root / split).mkdir(parents=True, exist_ok=True)
        for p in range(first, last):
            for k in range(each):
                smooth(10 * p + k, 8).save(root / split / f"P{p}_{k}.png")
    return root


def looked_at(images, *more: str) -> Images:
    patient = 'data.patient="(P\\d+)_"'
    line = ["+experiment=which_layers", f"data.path={images}", patient, "data.classes=false", *more]
    return look_at(composed("train", line), line)


def test_patients_are_counted(tmp_path):
    own = looked_at(folder(tmp_path / "own", ("train", 0, 9), ("test", 9, 12)))
    assert (own.count, own.patients, own.judges) == (54, 9, (18, 3))
    drawn = looked_at(folder(tmp_path / "drawn", ("", 0, 40)), "data.test=0.25")
    assert (drawn.count, drawn.patients, drawn.judges) == (240, 40, (60, 10))
    assert drawn.folds(5) is None
    alone = looked_at(folder(tmp_path / "alone", ("", 0, 30), each=1))
    assert alone.patients is None and alone.judges is None


def test_the_drawn_test_images_are_those_of_the_runs(tmp_path):
    """Of patients of unequal sizes, as the reader of a run splits them."""
    root = folder(tmp_path / "mine", ("", 0, 30), each=7)
    folder(root, ("", 30, 33), each=2)
    found, own = looked_at(root), ["data.test=0.2", "data.validation=0"]
    line = [f"data.path={root}", 'data.patient="(P\\d+)_"', "data.classes=false", *own]
    config = RunConfig(composed("train", ["+experiment=which_layers", *line]))
    reader = config.data.open_reader(tmp_path / "cache")
    rows = reader.splits["test"]
    assert found.judges == (len(rows), len({reader.groups[row] for row in rows}))


def test_what_would_tell_is_said_in_patients_too():
    """As many times as many of them as of images."""
    equal = slices(8, 5, 3)

    def loss_of_run(name, k, size, rate):
        losses, step = equal(name, k, size, rate)
        return losses + 0.004 * (name == "again"), step

    made = compared(loss_of_run, ["full", "again"], patients=8, **ONE_SPLIT)
    made.images = replace(made.images, patients=20, judges=(20, 4))  # of 100 images
    text = answer(made, {}, ARGUMENTS).text
    images, patients = map(
        int, re.search(r"About (\d+) test images of (\d+) patients", text).groups()
    )
    assert patients == math.ceil(images / 5) or patients == math.ceil((images - 1) / 5)


def test_one_patient_a_fold_tells_nothing_of_how_many_would():
    """Nor a standard deviation, which the bootstrap of one has not."""

    def loss_of_run(name, k, size, rate):
        return slices(1, 5, trial=k)(name, k, size, rate)

    made = compared(loss_of_run, ["full", "again"], patients=1)
    runs = {name: sizes[None] for name, sizes in made.found.items()}
    assert of_images(runs, "again", "full", True) is None
    found = answer(made, {}, ARGUMENTS)
    assert found.tied and "would" not in found.text
    columns = [COLUMNS.index(name) for name in ("loss_sd", "minus_reference_sd")]
    assert {line[c] for line in table_of(made)[1:] for c in columns} == {""}


def test_each_fold_has_a_patient():
    labels, groups = [0] * 24, np.arange(4).repeat(6)
    folds = draw_folds(
        np.arange(24), labels, groups, Images("", 24, 0, SPLITS, patients=4).folds(5)
    )
    assert [len(set(groups[rows])) for rows in folds] == [1] * 4
