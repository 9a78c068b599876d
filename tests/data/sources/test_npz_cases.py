"""Arrays as people have saved them: axes in another order, values that are no numbers, and images
far from all others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.dataset import open_dataset
from data.file_cache import FileCache
from data.settings import DataSettings
from data.sources.npz import Npz
from runtime.content import sha256_of
from runtime.errors import UserError

RANDOM = np.random.default_rng(0)


def smooth(n: int, height: int, width: int) -> np.ndarray:
    """Images that have nothing in common, of pixels that depend on each other. [N, H, W]"""
    y, x = np.mgrid[0:height, 0:width]
    phase = RANDOM.uniform(0, 6, (n, 2))
    waves = [np.sin(y / 4 + a) + np.sin(x / 5 + b) for a, b in phase]
    return (63 * (np.stack(waves) + 2)).astype(np.uint8)


@pytest.fixture
def opened(tmp_path):
    def opened(**content) -> Npz:
        settings = {"validation": 0, "test": 0} | content.pop("settings", {})
        np.savez(tmp_path / "x.npz", **content)
        return Npz(FileCache(tmp_path / ".memory"), str(tmp_path / "x.npz"), **settings)

    return opened


def read(source: Npz) -> np.ndarray:
    return np.stack([np.asarray(source.read_image(k)) for k in range(len(source))])


# Axes


@pytest.mark.parametrize("n, height, width", [(40, 24, 24), (40, 24, 30), (24, 30, 40)])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_images_along_the_third_axis_are_told(opened, n, height, width, colour, kind):
    images = smooth(n, height, width).astype(kind)
    moved = images.transpose(1, 2, 0)
    if colour:
        moved = np.repeat(moved[..., None], 3, 3)
    with pytest.raises(UserError) as raised:
        opened(images=moved)
    order, axis = ("[H, W, N, 3]", 2) if colour else ("[H, W, N]", -1)
    assert f"looks like {order}" in str(raised.value)
    assert f"numpy.moveaxis(images, {axis}, 0)" in str(raised.value)
    found = read(opened(images=np.moveaxis(moved, axis, 0), settings={"range_": [0, 255]}))
    assert np.abs((found[..., 0] if colour else found) - images).max() <= 0.51


def test_noise_is_told_by_two_equal_sides_in_front(opened):
    noise = RANDOM.integers(0, 256, (24, 24, 40)).astype(np.uint8)
    with pytest.raises(
        UserError, match=r"images is \[24, 24, 40\] uint8, and looks like \[H, W, N\]"
    ):
        opened(images=noise)
    assert np.array_equal(read(opened(images=np.moveaxis(noise, -1, 0))), noise.transpose(2, 0, 1))
    # what the message says of an array whose first axis does count images
    assert np.array_equal(read(opened(images=noise[..., None])), noise)
    assert np.array_equal(read(opened(images=noise, labels=np.arange(24) % 2)), noise)


@pytest.mark.parametrize(
    "images",
    [
        smooth(24, 24, 40),  # as many images as rows
        RANDOM.integers(0, 256, (24, 30, 40)).astype(np.uint8),
        RANDOM.integers(0, 256, (24, 24, 24)).astype(np.uint8),
        np.sort(smooth(40, 24, 30), axis=0),  # frames of a film: alike in all directions
        np.zeros((5, 8, 9), np.uint8),
    ],
)
def test_other_arrays_are_taken_as_they_are(opened, images):
    assert np.array_equal(read(opened(images=images)), images)


@pytest.mark.parametrize(
    "shape, order, cure",
    [
        ((24, 30, 3, 40), "[H, W, C, N]", "images.transpose(3, 0, 1, 2)"),
        ((24, 24, 1, 40), "[H, W, C, N]", "images.transpose(3, 0, 1, 2)"),
        ((3, 24, 30, 40), "[C, H, W, N]", "images.transpose(3, 1, 2, 0)"),
    ],
)
def test_images_along_the_fourth_axis_are_told(opened, shape, order, cure):
    with pytest.raises(UserError) as raised:
        opened(images=np.zeros(shape, np.uint8))
    assert order in str(raised.value) and cure in str(raised.value)


def test_labels_that_count_the_last_axis_tell_it(opened):
    with pytest.raises(UserError, match=r"save them as numpy.moveaxis\(images, -1, 0\)"):
        opened(images=smooth(40, 24, 30).transpose(1, 2, 0), labels=np.arange(40) % 2)


# Values


def test_what_is_no_number_is_black_counts_for_no_range_and_is_told(opened, tmp_path, caplog):
    images = RANDOM.uniform(200, 300, (20, 8, 9)).astype(np.float32)
    images[4, 2, 2], images[9, 0, 0], images[9, 0, 1] = np.nan, np.inf, -np.inf
    source = opened(images=images)
    found = open_dataset(DataSettings(Npz, [8, 9], 1, False), source, 0, tmp_path / "cache")
    finite = images[np.isfinite(images)]
    low, high = finite.min(), finite.max()
    with np.errstate(invalid="ignore"):
        expected = np.clip((images - low) / (high - low) * 255, 0, 255)
    expected[4, 2, 2] = 0
    assert np.abs(found.images[..., 0] - expected).max() <= 0.51
    [line] = [r.message for r in caplog.records if "NaN" in r.message]
    assert "2 of the 20 images of images" in line and "images[4]" in line


def test_a_value_that_seems_to_be_none_is_told(opened, caplog):
    images = RANDOM.uniform(200, 300, (20, 8, 9)).astype(np.float32)
    images[:, :2] = -9999
    low, high = np.quantile(images[:, 2:].astype(float), [0.001, 0.999])
    read(opened(images=images))
    [line] = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert "25.0% of the pixels" in line and "the value -9999, far" in line
    assert f"data.range=[{low:g},{high:g}]" in line


@pytest.mark.parametrize("n", [3, 6, 60])
def test_one_image_does_not_decide_the_range_of_all(opened, caplog, n):
    images = RANDOM.integers(0, 4096, (n, 30, 31)).astype(np.uint16)
    images[1] = RANDOM.integers(0, 65536, (30, 31))
    source = opened(images=images)
    rest = np.delete(images, 1, 0).astype(float)
    low, high = rest.min(), rest.max()
    np.testing.assert_allclose(
        read(source), np.clip((images - low) / (high - low), 0, 1) * 255, atol=1e-3
    )
    [line] = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert f"1 of {n} images lie far" in line and "images[1]" in line and "data.range" in line


def floats(n: int) -> np.ndarray:
    """0..255, each image of contrast."""
    return smooth(n, 30, 31).astype(np.float32)


def warned(caplog) -> list[str]:
    return [r.message for r in caplog.records if r.levelname == "WARNING"]


@pytest.mark.parametrize("every", [2, 10, 40])
@pytest.mark.parametrize("unit", [255, 65535])
def test_images_in_another_unit_than_others_are_told(opened, caplog, every, unit):
    images = floats(40) * (unit / 255)
    images[::every] /= unit
    opened(images=images)
    [line] = warned(caplog)
    assert f"{40 // every} of 40 images fill less than an eighth" in line
    assert "images[0] (" in line and "save all in one" in line and "data.range=[LOW" in line


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("scale", [255, 1 / 255])
def test_a_split_in_another_unit_than_others_is_refused(opened, split, scale):
    arrays = {f"{k}_images": floats(n) for k, n in (("train", 20), ("val", 5), ("test", 6))}
    arrays[f"{split}_images"] *= scale
    with pytest.raises(UserError, match=r"train_images has values .* in different units.*range="):
        opened(**arrays)
    opened(**arrays, settings={"range_": [0, 255]})


def test_some_images_of_another_split_in_another_unit_are_told(opened, caplog):
    train, test = floats(20) / 255, floats(10) / 255
    test[[3, 7]] *= 255
    opened(x_train=train, x_test=test)
    [line] = warned(caplog)
    assert "2 of 30 images lie far" in line and "x_test[3]" in line


def test_images_that_differ_in_brightness_are_no_alarm(opened, caplog):
    bright = np.linspace(0.05, 1, 40, dtype=np.float32)[:, None, None]
    opened(x_train=floats(40) * bright, x_test=floats(5) * 0.4)
    opened(images=np.concatenate([floats(3), np.zeros((9, 30, 31), np.float32)]))
    assert not warned(caplog)


def test_the_fingerprint_is_as_it_was_where_no_image_is_far(opened, tmp_path):
    def then(path: Path) -> str:
        digest = FileCache(tmp_path / ".other").sha256([path])[0]
        keys = [("train", ("images", None))]
        return sha256_of(["npz", 1, digest, keys, 0, 0, None, [0] * 5])

    images = RANDOM.integers(0, 4096, (5, 30, 31)).astype(np.uint16)
    assert opened(images=images).fingerprint == then(tmp_path / "x.npz")
    images[1, :3] = 65535
    assert opened(images=images).fingerprint != then(tmp_path / "x.npz")


# Spellings


@pytest.mark.parametrize(
    "images, labels, words",
    [
        ("x_{}", "y_{}", ("train", "valid", "test")),
        ("X_{}", "y_{}", ("train", "val", "test")),
        ("X_{}", "Y_{}", ("train", "dev", "test")),
        ("{}_images", "{}_labels", ("training", "validation", "testing")),
    ],
)
def test_splits_are_known_by_their_usual_spellings(opened, caplog, images, labels, words):
    counts, content = (12, 4, 5), smooth(21, 24, 26)
    parts = np.split(content, np.cumsum(counts)[:-1])
    classes = np.split(np.arange(21) % 3, np.cumsum(counts)[:-1])
    arrays = {images.format(word): part for word, part in zip(words, parts)}
    arrays |= {labels.format(word): part for word, part in zip(words, classes)}
    source = opened(**arrays, settings={"validation": 0.2, "test": 0.2})
    assert {k: list(v) for k, v in source.splits.items()} == {
        "train": [*range(12)],
        "validation": [*range(12, 16)],
        "test": [*range(16, 21)],
    }
    assert source.labels == (np.arange(21) % 3).tolist()
    assert np.array_equal(read(source), content) and not caplog.records


def test_of_two_spellings_the_first_counts_and_the_other_is_told(opened, caplog):
    source = opened(x_train=smooth(9, 24, 26), x_valid=smooth(4, 24, 26), x_val=smooth(3, 24, 26))
    assert source.keys["validation"] == ("x_val", None)
    assert "not used: x_valid [4, 24, 26]" in caplog.text and warned(caplog)


# Whose images are


@pytest.mark.parametrize("key", ["patient_id", "patients", "Subject", "donors", "train_cases"])
@pytest.mark.parametrize("kind", [int, str, float])
def test_images_of_one_patient_are_drawn_into_one_split(opened, caplog, key, kind):
    whose = (np.arange(60) // 4).astype(kind)
    arrays = {"x_train": smooth(60, 24, 26), "y_train": np.arange(60) % 3, key: whose}
    source = opened(**arrays, settings={"validation": 0.2, "test": 0.2})
    sets = [set(whose[list(rows)]) for rows in source.splits.values()]
    assert sum(map(len, sets)) == len(set(whose)) == 15 and all(sets)
    assert sorted(i for rows in source.splits.values() for i in rows) == [*range(60)]
    assert not warned(caplog)
    without = opened(
        **{k: v for k, v in arrays.items() if k != key}, settings={"validation": 0.2, "test": 0.2}
    )
    assert without.fingerprint != source.fingerprint


def test_images_of_nobody_stand_for_themselves(opened):
    whose = ["a", "a", *[""] * 58]
    shares = {"validation": 0.3, "test": 0.3}
    source = opened(images=smooth(60, 24, 26), patient=whose, settings=shares)
    split_of = {item: split for split, rows in source.splits.items() for item in rows}
    assert split_of[0] == split_of[1] and len({*map(split_of.get, range(2, 60))}) == 3


@pytest.mark.parametrize("whose", [np.zeros(60), np.arange(60)])
def test_owners_that_say_nothing_change_nothing(opened, whose):
    arrays, shares = {"images": smooth(60, 24, 26)}, {"validation": 0.2, "test": 0.2}
    plain = opened(**arrays, settings=shares)
    assert opened(**arrays, patients=whose, settings=shares).splits == plain.splits


def test_a_split_that_gets_no_patient_is_told(opened, caplog):
    shares = {"validation": 0.1, "test": 0.1}
    opened(images=smooth(60, 24, 26), subject=np.arange(60) // 30, settings=shares)
    assert "too few images for any in" in caplog.text


ARMS = {  # an array that would leave a split empty, and whether it is taken for patients
    "arms of a trial": ("group", np.arange(80) % 4, False),
    "the labels": ("case", np.arange(80) % 4, True),
    "few": ("subject", np.arange(80) // 27, True),
}


@pytest.mark.parametrize("key, values, told", ARMS.values(), ids=ARMS)
def test_no_array_takes_the_held_out_images_away(opened, caplog, key, values, told):
    arrays = {"images": smooth(80, 24, 26), "labels": np.arange(80) % 4}
    shares = {"validation": 0.1, "test": 0.1}
    plain = opened(**arrays, settings=shares)
    caplog.clear()
    source = opened(**arrays, **{key: values}, settings=shares)
    assert source.splits == plain.splits and all(source.splits.values())
    assert source.owners is None
    said = [line for line in warned(caplog) if "image by image" in line]
    assert len(said) == len(warned(caplog)) == told
