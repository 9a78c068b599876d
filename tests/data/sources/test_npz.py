"""Arrays in .npz files: which key is what, which number becomes which level, how they are split,
and what is refused."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest

import data.sources.npz
import data.sources.npz_content
import data.sources.npz_labels
from config.overrides import CONF, check_overrides, composed
from config.run_config import RunConfig
from data.dataset import open_dataset
from data.file_cache import FileCache
from data.settings import OWN_KEYS, DataSettings, reader_keys
from data.sources.npz import Npz
from runtime.errors import UserError
from tests.helpers.caches import new_cache
from training.config_checks import check_run_config

MEMORY = new_cache()
SPLITS = ("train", "validation", "test")
RANDOM = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def save(root: Path, save_with=np.savez, **arrays) -> Path:
    path = root / "images.npz"
    save_with(path, **arrays)
    return path


def opened(path: Path, **settings) -> Npz:
    return Npz(FileCache(MEMORY.folder), str(path), **settings)  # as another start does


def refused(path: Path, **settings) -> str:
    with pytest.raises(UserError) as raised:
        opened(path, **settings)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def pixels(source: Npz, item: int) -> np.ndarray:
    return np.asarray(source.read_image(item))


def assert_partition(source) -> None:
    assert sorted(item for split in SPLITS for item in source.splits[split]) == list(
        range(len(source))
    )


# Keys


def test_medmnists_keys(tmp_path):
    arrays = {
        f"{split}_images": noise(n, 7, 9) for split, n in (("train", 6), ("val", 3), ("test", 4))
    }
    labels = {
        f"{split}_labels": RANDOM.integers(0, 3, (n, 1))
        for split, n in (("train", 6), ("val", 3), ("test", 4))
    }
    labels["train_labels"][:3, 0] = 0, 1, 2
    source = opened(save(tmp_path, np.savez_compressed, **arrays, **labels))
    assert [list(source.splits[split]) for split in SPLITS] == [
        list(range(6)),
        [6, 7, 8],
        [9, 10, 11, 12],
    ]
    expected = np.concatenate([arrays["train_images"], arrays["val_images"], arrays["test_images"]])
    for item in range(13):
        assert (
            np.array_equal(pixels(source, item), expected[item])
            and source.read_image(item).mode == "L"
        )
    assert (
        source.labels
        == np.concatenate(
            [labels[f"{split}_labels"][:, 0] for split in ("train", "val", "test")]
        ).tolist()
    )
    assert source.classes == ["0", "1", "2"]
    assert source.item_name(7).endswith("images.npz: val_images[1]")


def test_keras_keys_draw_validation_from_train_alone(tmp_path):
    images = {"x_train": noise(40, 8, 8), "x_test": noise(10, 8, 8)}
    source = opened(
        save(tmp_path, **images, y_train=np.arange(40) % 4, y_test=np.arange(10) % 4),
        validation=0.2,
        test=0.5,
    )
    assert [len(source.splits[split]) for split in SPLITS] == [32, 8, 10]
    assert_partition(source)
    assert set(source.splits["validation"]) < set(range(40)) and list(
        source.splits["test"]
    ) == list(range(40, 50))
    assert np.array_equal(pixels(source, 43), images["x_test"][3])


@pytest.mark.parametrize("keys", [("images", "labels"), ("arr_0", "arr_1")])
def test_images_and_labels_and_the_form_of_guided_diffusions_samples(tmp_path, keys):
    images, labels = noise(30, 8, 8, 3), np.arange(30) % 3
    source = opened(save(tmp_path, **dict(zip(keys, (images, labels), strict=True))))
    assert [len(source.splits[split]) for split in SPLITS] == [24, 3, 3]
    assert source.labels == labels.tolist() and source.read_image(0).mode == "RGB"
    assert all(np.array_equal(pixels(source, item), images[item]) for item in range(30))


@pytest.mark.parametrize("key", ["arr_0", "images", "anything"])
def test_a_single_array_needs_no_name(tmp_path, key):
    source = opened(save(tmp_path, **{key: noise(20, 8, 8)}), validation=0.25, test=0.1)
    assert [len(source.splits[split]) for split in SPLITS] == [13, 5, 2]
    assert_partition(source)
    assert source.classes == [] and source.labels == [0] * 20
    again = opened(tmp_path / "images.npz", validation=0.25, test=0.1)
    assert again.splits == source.splits and again.fingerprint == source.fingerprint
    assert opened(tmp_path / "images.npz").fingerprint != source.fingerprint


def test_unknown_keys_are_listed_with_the_options_that_name_them(tmp_path):
    images, kinds = noise(10, 8, 8), np.array(["cat", "dog"] * 5)
    path = save(tmp_path, scans=images, kinds=kinds)
    message = refused(path)
    for part in ("scans [10, 8, 8] uint8", "kinds [10] <U3", "data.images=KEY", "data.labels=KEY"):
        assert part in message
    source = opened(path, images="scans", labels="kinds")
    assert source.classes == ["cat", "dog"] and source.labels == [0, 1] * 5
    assert opened(path, images="scans").classes == []
    assert "data.images=scan" in refused(path, images="scan") and "did you mean scans" in refused(
        path, images="scan"
    )
    assert "data.labels=kind:" in refused(path, images="scans", labels="kind")
    assert "needs data.images" in refused(path, labels="kinds")


def test_what_is_not_used_is_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        opened(save(tmp_path, x_train=noise(10, 8, 8), x_hold=noise(5, 8, 8), more=np.ones(3)))
    warning, info = [r for r in caplog.records if "not used" in r.message]
    assert warning.levelname == "WARNING" and "not used: x_hold [5, 8, 8] uint8" in warning.message
    assert "x_val" in warning.message
    assert info.levelname == "INFO" and "not used: more [3] float64" in info.message


# Shapes


@pytest.mark.parametrize(
    "shape, mode",
    [
        ((9, 8, 6), "L"),
        ((9, 8, 6, 1), "L"),
        ((9, 8, 6, 3), "RGB"),
        ((9, 1, 8, 6), "L"),
        ((9, 3, 8, 6), "RGB"),
        ((3, 3, 8, 6), "RGB"),
        ((1, 8, 6), "L"),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_shapes(tmp_path, shape, mode, order):
    images = np.asarray(noise(*shape), order=order)
    source = opened(save(tmp_path, images=images), validation=0, test=0)
    expected = images
    if len(shape) == 4 and shape[1] in (1, 3):
        expected = np.stack([images[:, channel] for channel in range(shape[1])], axis=-1)
    if expected.shape[3:] == (1,):
        expected = expected[:, :, :, 0]
    for item in range(shape[0]):
        assert source.read_image(item).mode == mode and np.array_equal(
            pixels(source, item), expected[item]
        )


@pytest.mark.parametrize(
    "shape, why",
    [
        ((5, 28, 28, 28), "volumes"),
        ((5, 28, 28, 28, 1), "volumes"),
        ((64, 64, 3), "one image"),
        ((5, 3, 8, 3), "which number is"),
        ((5, 784), "reshape"),
        ((5,), "reshape"),
        ((), "reshape"),
        ((0, 8, 8), "no images in it"),
        ((5, 0, 8), "no images in it"),
    ],
)
def test_shapes_that_are_no_images_or_could_be_two_are_refused(tmp_path, shape, why):
    message = refused(save(tmp_path, images=np.zeros(shape, np.uint8)))
    assert why in message and str(list(shape)) in message and "images.npz: images" in message


# Numbers


def levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255


BYTES = noise(20, 8, 8)
BYTES[0, 0, :2] = 3, 250
DARK = RANDOM.normal(2000, 400, (20, 8, 8)).round().clip(300, 4000)


@pytest.mark.parametrize(
    "images, low, high",
    [
        (BYTES.astype(np.int64), 0, 255),
        (BYTES.astype(np.float32), 0, 255),
        ((BYTES / 255).astype(np.float32), 0, 1),
        (BYTES / 255, 0, 1),
        ((BYTES / 127.5 - 1).astype(np.float32), -1, 1),
        ((BYTES / 255).astype(np.float16), 0, 1),
        (BYTES > 127, 0, 1),
        (DARK.astype(np.uint16), DARK.min(), DARK.max()),
        (DARK.astype(">u2"), DARK.min(), DARK.max()),
        (DARK.astype(np.int16) - 1024, DARK.min() - 1024, DARK.max() - 1024),
        (DARK / 4095 * 0.5 - 0.1, None, None),
    ],
)
def test_numbers_of_any_type_are_measured_and_the_range_is_said(
    tmp_path, caplog, images, low, high
):
    source = opened(save(tmp_path, images=images), validation=0, test=0)
    low, high = (images.min(), images.max()) if low is None else (low, high)
    with caplog.at_level(logging.INFO):
        found = np.stack([pixels(source, item) for item in range(20)])
    expected = levels(images, low, high)
    np.testing.assert_allclose(found, expected, atol=0.51 if images.dtype == np.float16 else 1e-3)
    assert f"black is {low:g} and white {high:g}" in caplog.text and "data.range" in caplog.text


def test_floats_of_bytes_become_the_bytes_again(tmp_path):
    for images in (
        (BYTES / 255).astype(np.float32),
        (BYTES / 127.5 - 1).astype(np.float32),
        BYTES.astype(np.int32),
    ):
        source = opened(save(tmp_path, images=images))
        settings = DataSettings(Npz, 8, 1, True)
        assert np.array_equal(
            open_dataset(settings, source, 0, tmp_path / "cache").images[..., 0], BYTES
        )


def test_colour_of_16_bits(tmp_path):
    images = RANDOM.integers(0, 4096, (10, 8, 8, 3)).astype(np.uint16)
    source = opened(save(tmp_path, images=images))
    for item in range(10):
        assert source.read_image(item).mode == "RGB"
        np.testing.assert_allclose(
            pixels(source, item), levels(images, images.min(), images.max())[item], atol=0.51
        )


def test_a_range_that_is_given_is_kept_to(tmp_path, caplog):
    source = opened(save(tmp_path, images=DARK.astype(np.uint16)), range_=[1000, 3000])
    with caplog.at_level(logging.INFO):
        np.testing.assert_allclose(pixels(source, 3), levels(DARK, 1000, 3000)[3], atol=1e-3)
    assert not caplog.text
    reversed_ = opened(tmp_path / "images.npz", range_=[3000, 1000])
    np.testing.assert_allclose(pixels(reversed_, 3), 255 - levels(DARK, 1000, 3000)[3], atol=1e-3)
    assert (
        len(
            {source.fingerprint, reversed_.fingerprint, opened(tmp_path / "images.npz").fingerprint}
        )
        == 3
    )
    for wrong in ([1], [1, 1], [1, 2, 3]):
        assert "data.range" in refused(tmp_path / "images.npz", range_=wrong)


def test_hot_pixels_do_not_darken_the_rest(tmp_path, caplog):
    images = RANDOM.integers(0, 4096, (50, 32, 32)).astype(np.uint16)
    images[7, 3, 3] = images[30, 0, 0] = 65535
    source = opened(save(tmp_path, images=images))
    assert 100 < pixels(source, 0).mean() < 150
    assert "far outside" in caplog.text and "data.range=[0,65535]" in caplog.text


def test_the_range_is_that_of_training_whatever_is_read_first(tmp_path):
    train, test = DARK[:15].astype(np.uint16), (DARK[15:] * 2).astype(np.uint16)
    source = opened(save(tmp_path, x_train=train, x_test=test))
    # a tenth of x_train is held out as validation, and not measured
    learned = train[source.splits["train"]]
    assert len(learned) < len(train)
    np.testing.assert_allclose(
        pixels(source, 16), levels(test, learned.min(), learned.max())[1], atol=1e-3
    )
    settings = DataSettings(Npz, 8, 1, False)
    images = open_dataset(settings, opened(tmp_path / "images.npz"), 0, tmp_path / "cache").images[
        ..., 0
    ]
    expected = levels(np.concatenate([train, test]), learned.min(), learned.max())
    assert np.abs(images - expected).max() <= 0.51


def test_bytes_that_are_all_dark_are_remarked_on(tmp_path, caplog):
    source = opened(save(tmp_path, images=(BYTES > 127).astype(np.uint8)))
    assert pixels(source, 0).max() == 1
    assert "all will be dark" in caplog.text and "data.range=[0,1]" in caplog.text
    assert pixels(opened(tmp_path / "images.npz", range_=[0, 1]), 0).max() == 255


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_images_of_one_value_are_refused(tmp_path, value, monkeypatch):
    calls, real = [], data.sources.npz.measured_range
    monkeypatch.setattr(
        data.sources.npz,
        "measured_range",
        lambda *arguments: (calls.append(1), real(*arguments))[1],
    )
    source = opened(save(tmp_path, images=np.full((5, 8, 8), value)))
    for item in range(5):
        with pytest.raises(UserError, match="nothing to learn from"):
            source.read_image(item)
    assert len(calls) == 1


def test_splits_of_different_types_are_refused(tmp_path):
    message = refused(save(tmp_path, x_train=BYTES, x_test=BYTES / 255))
    assert "x_train [20, 8, 8] uint8" in message and "x_test [20, 8, 8] float64" in message


# Labels


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(12) % 3,
        (np.arange(12) % 3)[:, None],
        (np.arange(12) % 3).astype(np.float32),
        np.eye(3)[np.arange(12) % 3],
        (np.arange(12) % 3).astype(np.uint8),
    ],
)
def test_labels_as_numbers_columns_floats_and_one_hot(tmp_path, labels):
    source = opened(save(tmp_path, images=noise(12, 8, 8), labels=labels))
    assert source.classes == ["0", "1", "2"] and source.labels == [0, 1, 2] * 4
    named = opened(tmp_path / "images.npz", classes=["a", "b", "c"])
    assert named.classes == ["a", "b", "c"] and named.labels == [0, 1, 2] * 4


def test_labels_with_gaps_and_names(tmp_path):
    source = opened(save(tmp_path, images=noise(6, 8, 8), labels=[7, 2, 7, 2, 2, 2]))
    assert source.classes == ["2", "7"] and source.labels == [1, 0, 1, 0, 0, 0]
    message = refused(tmp_path / "images.npz", classes=["a", "b"])
    assert "data.classes=['a', 'b']" in message and "7" in message
    save(tmp_path, images=noise(4, 8, 8), labels=["normal", "ill", "ill", "normal"])
    assert opened(tmp_path / "images.npz").classes == ["ill", "normal"]
    assert opened(tmp_path / "images.npz", classes=["normal", "ill"]).labels == [0, 1, 1, 0]


@pytest.mark.parametrize(
    "labels, why",
    [
        (np.array([[1, 1, 0], [0, 0, 0]] * 6), "a table of 3 columns"),
        (np.linspace(0, 1, 12), "not whole numbers"),
        (None, "no labels"),
    ],
)
def test_labels_that_are_no_classes_are_left_out_and_that_is_said(tmp_path, caplog, labels, why):
    with caplog.at_level(logging.INFO):
        source = opened(
            save(tmp_path, images=noise(12, 8, 8), **({} if labels is None else {"labels": labels}))
        )
    assert source.classes == [] and source.labels == [0] * 12
    assert labels is None or ("no classes" in caplog.text and why in caplog.text)
    assert why in refused(tmp_path / "images.npz", classes=["a", "b"])


def test_a_split_without_labels_leaves_no_classes(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        source = opened(
            save(
                tmp_path, x_train=noise(12, 8, 8), y_train=np.arange(12) % 2, x_test=noise(3, 8, 8)
            )
        )
    assert source.classes == [] and "x_test without labels" in caplog.text


@pytest.mark.parametrize(
    "labels", [np.zeros(11, int), np.zeros((11, 1), int), np.int64(3), np.zeros((11, 8, 8))]
)
def test_labels_of_another_length_are_refused(tmp_path, labels):
    message = refused(save(tmp_path, images=noise(12, 8, 8), labels=labels))
    assert (
        "images is [12, 8, 8] uint8" in message
        and str(list(labels.shape)) in message
        and "data.images=images" in message
    )


# Splits


@pytest.mark.parametrize("labels", [{}, {"labels": np.arange(12) % 2}])
def test_shares_that_leave_nothing_to_train_on_are_refused(tmp_path, labels):
    path = save(tmp_path, images=noise(12, 8, 8), **labels)
    for validation, test in ((0.5, 0.5), (-0.1, 0.1), (0.1, 1.0)):
        assert "shares" in refused(path, validation=validation, test=test)


# The file


def test_nothing_is_decompressed_until_an_image_is_read(tmp_path, monkeypatch):
    path = save(
        tmp_path,
        np.savez_compressed,
        x_train=noise(12, 8, 8),
        y_train=np.arange(12) % 2,
        x_test=noise(3, 8, 8),
        y_test=[0, 1, 0],
    )
    read, real = [], data.sources.npz_content.read_array
    for module in (data.sources.npz, data.sources.npz_content, data.sources.npz_labels):
        monkeypatch.setattr(
            module, "read_array", lambda path, key: (read.append(key), real(path, key))[1]
        )
    source = opened(path)
    assert read == ["y_train", "y_test"]
    open_dataset(DataSettings(Npz, 8, 1, False), source, 0, tmp_path / "cache")
    assert read[2:] == ["x_train", "x_test"]  # each once, on however many threads
    assert not source._arrays._future.cache_info().currsize  # and none is kept through the training
    source.read_image(0)
    assert read[4:] == ["x_train"]


class Harmful:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("key", ["images", "labels"])
def test_objects_are_never_unpickled(tmp_path, key):
    arrays = {"images": noise(2, 8, 8), "labels": np.arange(2)} | {
        key: np.array([Harmful(tmp_path / "harm"), None], dtype=object)
    }
    message = refused(save(tmp_path, **arrays))
    assert f"{key} holds Python objects" in message and "can run code" in message
    assert not (tmp_path / "harm").exists()


def test_foreign_files_are_named(tmp_path):
    good = save(tmp_path, np.savez_compressed, images=noise(50, 16, 16)).read_bytes()
    np.save(tmp_path / "single.npy", BYTES)
    cases = {
        "short.npz": (good[: len(good) // 2], "cut short"),
        "page.npz": (b"<!DOCTYPE html><html>quota", "web page"),
        "empty.npz": (b"", "another kind"),
        "single.npz": ((tmp_path / "single.npy").read_bytes(), "single .npy"),
    }
    for name, (content, why) in cases.items():
        (tmp_path / name).write_bytes(content)
        assert why in refused(tmp_path / name) and str(tmp_path / name) in refused(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "pictures.npz", "w") as archive:
        archive.writestr("1.jpg", b"...")
    assert "without arrays" in refused(tmp_path / "pictures.npz") and "data=folder" in refused(
        tmp_path / "pictures.npz"
    )
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("images.npy", b"not an array")
    assert "cannot be read as an .npz" in refused(tmp_path / "text.npz")


@pytest.mark.parametrize("save_with", [np.savez, np.savez_compressed])
def test_a_damaged_array_is_one_message(tmp_path, save_with, monkeypatch):
    path = save(tmp_path, save_with, images=noise(50, 16, 16))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    source, read, real = opened(path), [], data.sources.npz.read_array
    monkeypatch.setattr(
        data.sources.npz, "read_array", lambda path, key: (read.append(key), real(path, key))[1]
    )
    for item in range(5):
        with pytest.raises(UserError, match=r"images.npz: the array images is damaged"):
            source.read_image(item)
    assert read == ["images"]


def test_a_missing_file_lists_those_that_are_there(tmp_path):
    save(tmp_path, images=BYTES)
    for path in (tmp_path / "image.npz", tmp_path):
        message = refused(path)
        assert f"data.path={path}" in message and str(tmp_path / "images.npz") in message
    assert "no such file" in refused(tmp_path / "absent/x.npz")


def test_the_fingerprint_is_of_the_content_and_the_settings(tmp_path):
    (tmp_path / "moved").mkdir()
    path = save(tmp_path, images=BYTES, more=BYTES, labels=np.arange(20) % 2)
    moved = tmp_path / "moved/other.npz"
    moved.write_bytes(path.read_bytes())
    assert opened(path).fingerprint == opened(moved).fingerprint
    settings = [
        {},
        {"validation": 0.2},
        {"test": 0.2},
        {"images": "images"},
        {"images": "more"},
        {"range_": [0, 100]},
    ]
    assert len({opened(path, **s).fingerprint for s in settings}) == len(settings)
    # a name changes no number
    assert opened(path, classes=["a", "b"]).fingerprint == opened(path).fingerprint
    texts = save(tmp_path / "moved", images=BYTES, labels=["a", "b"] * 10)
    assert opened(texts, classes=["b", "a"]).fingerprint != opened(texts).fingerprint
    changed = BYTES.copy()
    changed[3, 3, 3] ^= 1
    save(tmp_path, images=changed, more=BYTES, labels=np.arange(20) % 2)
    assert opened(path).fingerprint != opened(moved).fingerprint


def test_a_range_without_an_end_is_refused(tmp_path):
    path = save(tmp_path, images=BYTES)
    for setting in ([0, float("inf")], [float("nan"), 1], [1, 1], [1]):
        with pytest.raises(UserError, match="two different numbers"):
            opened(path, range_=setting)


# The configs of the sources that need files


@pytest.mark.parametrize("name", ["celeba", "cifar10", "eurosat", "npz", "medmnist"])
def test_a_config_opens_with_a_command_and_has_every_option(name, tmp_path, monkeypatch):
    command = (
        (CONF / f"data/{name}.yaml")
        .read_text()
        .splitlines()[0]
        .removeprefix("# python train.py ")
        .split("  ")[0]
        .split()
    )
    check_overrides("train", command)
    config = composed("train", command)
    check_run_config(config)
    assert reader_keys(config["data"]) == config["data"].keys() - {*OWN_KEYS, "_target_"}
    monkeypatch.chdir(tmp_path)
    # and the files are looked for where it says
    with pytest.raises(UserError, match=r"datasets/|FILE\.npz"):
        RunConfig(config).data.open_reader(tmp_path / "cache")
