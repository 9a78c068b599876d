"""Splits in unusual places and spellings: asked about, and what is offered gives the right ones."""

import re
import shlex
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest

from config.overrides import CONF
from data.split_folders import splits_and_classes
from runtime.errors import UserError
from runtime.hydra_private import parse_overrides

ROOT = Path("/sets/x")
COVIDQU = "Infection Segmentation Data/" * 2, "Lung Segmentation Data/" * 2


def files(*parts: Sequence[str], count: int = 4, suffix: str = ".png") -> list[str]:
    """So many in each folder, of one name from each of the parts."""
    return [f"{''.join(each)}{k}{suffix}" for each in product(*parts) for k in range(count)]


def alike(classes: set[str], *splits: str) -> dict[str, set[str]]:
    return dict.fromkeys(splits, classes)


def asked(names: Sequence[str]) -> tuple[str, dict[str, object]]:
    """The message, and the settings that it names first of each kind."""
    with pytest.raises(UserError) as error:
        splits_and_classes(ROOT, names, True)
    message = str(error.value)
    words = [w for w in shlex.split(message.replace("; ", " ")) if re.match(r"data\.\w+=", w)]
    found: dict[str, object] = {}
    for each in parse_overrides(words, CONF):
        found.setdefault(each.key_or_group.removeprefix("data."), each.value())
    return message, found


def placed(names: Sequence[str], splits: object = None) -> dict[str | None, set[str]]:
    """The classes of each split."""
    found: dict[str | None, set[str]] = {}
    for split, class_name in zip(*splits_and_classes(ROOT, names, True, splits)):
        found.setdefault(split, set()).add(class_name)
    return found


INNER = {  # names, the folder that holds the splits, what is below it
    "kaggle": (
        files(["chest_xray/chest_xray/"], ["train/", "test/"], ["NORMAL/", "PNEUMONIA/"]),
        "chest_xray/chest_xray",
        {"train": {"NORMAL", "PNEUMONIA"}, "test": {"NORMAL", "PNEUMONIA"}},
    ),
    "ilsvrc": (
        files(["ILSVRC/Data/CLS-LOC/"], ["train/", "val/"], ["n01440/", "n01441/"]),
        "ILSVRC/Data/CLS-LOC",
        {"train": {"n01440", "n01441"}, "validation": {"n01440", "n01441"}},
    ),
    "train only": (files(["data/x/train/"], ["a/", "b/"]), "data/x", {"train": {"a", "b"}}),
}


@pytest.mark.parametrize("names, folder, classes", INNER.values(), ids=INNER)
def test_splits_deep_in_one_folder_are_asked_about(names, folder, classes):
    _, found = asked(names)
    assert found == {"path": str(ROOT / folder), "splits": {}}
    assert placed([name.removeprefix(f"{folder}/") for name in names]) == classes


DEEP = {  # names, data.splits, classes by split
    "modalities": (
        files(["CT/", "MR/"], ["images/"], ["train/", "test/"]),
        {"train": "*/images/train", "test": "*/images/test"},
        {"train": {"CT", "MR"}, "test": {"CT", "MR"}},
    ),
    "covidqu": (
        files(COVIDQU, ["Train/", "Val/", "Test/"], ["COVID-19/", "Normal/"], ["images/"]),
        {
            split: [f"{place}{name}" for place in COVIDQU]
            for split, name in (("train", "Train"), ("validation", "Val"), ("test", "Test"))
        },
        alike({"COVID-19", "Normal"}, "train", "validation", "test"),
    ),
    "catdog": (
        files(["training_set/training_set/", "test_set/test_set/"], ["cats/", "dogs/"]),
        {"train": "training_set/training_set", "test": "test_set/test_set"},
        alike({"cats", "dogs"}, "train", "test"),
    ),
    "intel": (
        files(["seg_train/seg_train/", "seg_test/seg_test/"], ["sea/", "street/"]),
        {"train": "seg_train/seg_train", "test": "seg_test/seg_test"},
        alike({"sea", "street"}, "train", "test"),
    ),
    "train in train": (
        files(["train/train/", "test/test/"]),
        {"train": "train/train", "test": "test/test"},
        alike({""}, "train", "test"),
    ),
    "eval": (
        files(["train_imgs/", "eval_imgs/"]),
        {"train": "train_imgs", "test": "eval_imgs"},
        alike({""}, "train", "test"),
    ),
    "holdout": (
        files(["development/", "holdout/"]),
        {"train": "development", "test": "holdout"},
        alike({""}, "train", "test"),
    ),
    "trn": (
        files(["trn/", "tst/"]),
        {"train": "trn", "test": "tst"},
        alike({""}, "train", "test"),
    ),
    "chinese": (
        files(["训练集/", "测试集/"], ["猫/", "狗/"]),
        {"train": "训练集", "test": "测试集"},
        alike({"猫", "狗"}, "train", "test"),
    ),
    "file names": (
        files(["train_", "test_"]),
        {"train": "train*", "test": "test*"},
        alike({""}, "train", "test"),
    ),
    "glas": (
        [*files(["train_", "testA_", "testB_"]), *files(["train_", "testA_"], suffix="_anno.bmp")],
        {"train": "train*", "test": "test*"},
        alike({""}, "train", "test"),
    ),
    "at the end": (
        files(["cat/", "dog/"], suffix="_train.png") + files(["cat/", "dog/"], suffix="_val.png"),
        {"train": "*/*train.*", "validation": "*/*val.*"},
        alike({"cat", "dog"}, "train", "validation"),
    ),
}


@pytest.mark.parametrize("names, splits, classes", DEEP.values(), ids=DEEP)
def test_splits_in_another_place_or_spelling_are_asked_about(names, splits, classes):
    message, found = asked(names)
    assert found["splits"] == splits and "data.splits='{}' takes them for" in message
    assert placed(names, splits) == classes


@pytest.mark.parametrize(
    "names",
    [
        files(["car/", "bus/", "trains/"]),
        files(["land/", "air/"], ["car/", "train/"]),
        files(["train_", "car_", "bus_"]),
        files(["test_tube_", "train_station_"]),
        files(["test_"]),
        files(["tr_", "te_", "en_"]),
        files(["cat/", "dog/"], ["test 1/", "test 2/"]),
        files(["development/"], ["a/", "b/"]),
    ],
)
def test_names_that_sound_like_splits_are_none(names):
    assert {*placed(names)} <= {None, "train"}


def test_a_class_called_train_has_its_way_out():
    names = files(["vehicles/land/"], ["car/", "bus/", "train/"])
    assert "data.splits='{}' says that they are none" in asked(names)[0]
    assert placed(names, {}) == {None: {"vehicles"}}


def test_a_folder_called_train_may_have_a_class_called_train():
    names = files(["train/"], ["car/", "bus/", "train/"])
    assert placed(names) == {"train": {"car", "bus", "train"}}
