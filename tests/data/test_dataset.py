"""From image files to batches: what a pixel becomes, which image is where, and what is refused."""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import data.memory_map
from data.batches import Batches
from data.dataset import Dataset, open_dataset
from data.file_cache import FileCache
from data.image_reader import ImageReader
from data.memory_map import open_memory_map
from data.pixels import to_uint8, to_x0
from data.resize import to_array
from data.settings import DataSettings
from data.sources.bundled import Faces, Tissue
from data.sources.folder import Folder
from runtime.content import sha256_of
from runtime.errors import UserError
from runtime.files import write_sealed
from tests.helpers.caches import new_cache
from tests.helpers.runs import _context as processes
from tests.helpers.runs import sha256

MEMORY = new_cache()

SPLITS = ("train", "validation", "test")


def noise_image(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    """size: width, height."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode
    )


def make_folder(root: Path, names: list[str], size: tuple[int, int] = (12, 12)) -> Path:
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise_image(size, seed=k).save(root / name)
    return root


def assert_partition(source) -> None:
    """Every item is in exactly one split."""
    items = [item for split in SPLITS for item in source.splits[split]]
    assert sorted(items) == list(range(len(source)))


# The bundled images


def test_faces():
    faces = Faces(MEMORY)
    assert_partition(faces)
    assert [len(faces.splits[split]) for split in SPLITS] == [90, 5, 5]
    original = skimage.data.lfw_subset()
    for item in (0, 57, 99):
        np.testing.assert_allclose(
            np.asarray(faces.read_image(item)) / 255, original[item], atol=0.5 / 255 + 1e-6
        )
    # no face is in two splits
    assert len({np.asarray(faces.read_image(item)).tobytes() for item in range(100)}) == 100


@pytest.mark.parametrize("window, stride", [(48, 8), (96, 16), (32, 5), (1, 40)])
def test_tissue_that_is_judged_by_was_never_trained_on(window, stride):
    tissue = Tissue(MEMORY, window, stride)
    assert_partition(tissue)
    shown = {split: np.zeros((512, 512), bool) for split in SPLITS}
    for split in SPLITS:
        assert len(tissue.splits[split]) > 0
        for item in tissue.splits[split]:
            x, y = tissue.corners[item]
            assert 0 <= x <= 512 - window and 0 <= y <= 512 - window
            shown[split][y : y + window, x : x + window] = True
    assert not (shown["train"] & (shown["validation"] | shown["test"])).any()
    assert not (shown["validation"] & shown["test"]).any()


def test_a_patch_of_tissue_is_what_its_corner_says():
    tissue, original = Tissue(MEMORY, 48, 8), skimage.data.immunohistochemistry()
    for split in SPLITS:
        for item in (tissue.splits[split][0], tissue.splits[split][-1]):
            x, y = tissue.corners[item]
            assert np.array_equal(
                np.asarray(tissue.read_image(item)), original[y : y + 48, x : x + 48]
            )


@pytest.mark.parametrize("window, stride", [(0, 8), (97, 8), (48, 0)])
def test_tissue_that_cannot_be_cut_is_refused(window, stride):
    with pytest.raises(ValueError, match="window"):
        Tissue(MEMORY, window, stride)


# A folder


def test_a_plain_folder_is_split_at_random(tmp_path):
    source = Folder(
        MEMORY,
        str(make_folder(tmp_path, [f"{k:03d}.png" for k in range(50)])),
        validation=0.2,
        test=0.1,
    )
    assert_partition(source)
    assert [len(source.splits[split]) for split in SPLITS] == [35, 10, 5]
    assert list(source.classes) == [] and set(source.labels) == {0}
    assert list(source.splits["validation"]) != list(range(35, 45))
    again = Folder(MEMORY, str(tmp_path), validation=0.2, test=0.1)
    assert again.splits == source.splits and again.fingerprint == source.fingerprint
    for item in range(50):  # the order of the items is that of the names
        assert np.array_equal(
            np.asarray(source.read_image(item)), np.asarray(noise_image((12, 12), seed=item))
        )


@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
def test_folders_that_are_splits(tmp_path, validation):
    names = (
        [f"train/{k}.png" for k in range(20)]
        + [f"{validation}/{k}.png" for k in range(3)]
        + [f"test/deep/{k}.jpg" for k in range(4)]
    )
    source = Folder(MEMORY, str(make_folder(tmp_path, names)))
    assert_partition(source)
    assert [len(source.splits[split]) for split in SPLITS] == [20, 3, 4]
    for split, folder in zip(SPLITS, ("train", validation, "test"), strict=True):
        assert {
            source.files[item].relative_to(tmp_path).parts[0] for item in source.splits[split]
        } == {folder}


def test_a_split_that_is_missing_is_drawn_from_train_alone(tmp_path):
    names = [f"train/{k}.png" for k in range(20)] + [f"test/{k}.png" for k in range(5)]
    source = Folder(MEMORY, str(make_folder(tmp_path, names)), 0.25, 0.5)
    assert_partition(source)
    assert [len(source.splits[split]) for split in SPLITS] == [15, 5, 5]
    assert all(source.files[item].parent.name == "test" for item in source.splits["test"])
    assert all(source.files[item].parent.name == "train" for item in source.splits["validation"])


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_the_first_level_of_folders_gives_the_classes(tmp_path, prefix):
    names = [f"{prefix}{name}/{k}.png" for name in ("dog", "cat", "bird/small") for k in range(4)]
    source = Folder(MEMORY, str(make_folder(tmp_path, names)))
    assert list(source.classes) == ["bird", "cat", "dog"]
    for item, file in enumerate(source.files):
        assert file.relative_to(tmp_path / prefix).parts[0] == source.classes[source.labels[item]]


def test_a_single_folder_above_the_classes_is_told(tmp_path, caplog):
    make_folder(tmp_path, [f"test/{name}/{k}.png" for name in "ab" for k in range(4)])
    assert Folder(MEMORY, str(tmp_path)).classes == ["test"]
    assert f"data.path={tmp_path}/test takes the folders in it for classes" in caplog.text
    caplog.clear()
    assert Folder(MEMORY, str(tmp_path / "test")).classes == ["a", "b"]
    Folder(MEMORY, str(tmp_path), classes=False)
    assert "for classes" not in caplog.text


def test_a_class_named_test_is_a_class_where_there_is_no_train(tmp_path):
    source = Folder(
        MEMORY,
        str(
            make_folder(
                tmp_path, [f"{name}/{k}.png" for name in ("test", "rest") for k in range(5)]
            )
        ),
        0.2,
        0.2,
    )
    assert list(source.classes) == ["rest", "test"]
    assert_partition(source)
    assert [len(source.splits[split]) for split in SPLITS] == [6, 2, 2]


@pytest.mark.parametrize("stray", ["stray.png", "other/stray.png"])
def test_a_stray_file_beside_the_splits_is_refused(tmp_path, stray):
    make_folder(tmp_path, ["train/1.png", "test/1.png", stray])
    with pytest.raises(UserError, match="stray.png"):
        Folder(MEMORY, str(tmp_path))


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        Folder(MEMORY, str(tmp_path / "absent"))
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match="no images in it"):
        Folder(MEMORY, str(tmp_path))


@pytest.mark.parametrize(
    "validation, test", [(0.5, 0.5), (-0.1, 0.1), (0.1, 1.0), (float("nan"), 0.1)]
)
def test_shares_that_leave_nothing_to_train_on_are_refused(tmp_path, validation, test):
    with pytest.raises(UserError, match="shares"):
        Folder(MEMORY, str(make_folder(tmp_path, ["1.png", "2.png"])), validation, test)


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(tmp_path):
    """Files of one size, as those of a folder of BMP or PGM are: only their content tells that they
    were processed again."""
    make_folder(tmp_path / "a", [f"{k}.bmp" for k in range(6)])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, moved = (Folder(MEMORY, str(tmp_path / name)).fingerprint for name in "ab")
    assert first == moved
    file = tmp_path / "b/3.bmp"

    def opened(name: str, **settings) -> str:
        """The fingerprint at another start."""
        return Folder(FileCache(MEMORY.folder), str(tmp_path / name), **settings).fingerprint

    data = bytearray(file.read_bytes())
    data[-5] ^= 255
    file.write_bytes(data)
    assert opened("b") != first
    shutil.copy(tmp_path / "a/3.bmp", file)
    assert opened("b") == first
    file.rename(tmp_path / "b/9.bmp")
    assert opened("b") != first
    assert opened("a", test=0.3) != first


BROKEN = {
    "empty.png": lambda good: b"",
    "text.jpg": lambda good: b"not an image",
    "short.png": lambda good: good["png"][:-30],
    "chunk.png": lambda good: good["png"][:50] + b"\0" * 20 + good["png"][70:],
    "short.jpg": lambda good: good["jpg"][:200],
    "short.tif": lambda good: good["tif"][:100],
    "short.gif": lambda good: good["gif"][:40],
    "short.bmp": lambda good: good["bmp"][:60],
    "huge.bmp": lambda good: (
        good["bmp"][:18] + (50_000).to_bytes(4, "little") * 2 + good["bmp"][26:]
    ),
}


@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_broken_files_are_all_listed_at_once(tmp_path):
    make_folder(tmp_path / "images", [f"good{k}.png" for k in range(5)])
    make_folder(
        tmp_path / "good", [f"x.{kind}" for kind in ("png", "jpg", "tif", "gif", "bmp")], (40, 40)
    )
    good = {file.suffix[1:]: file.read_bytes() for file in (tmp_path / "good").iterdir()}
    for name, broken in BROKEN.items():
        (tmp_path / "images" / name).write_bytes(broken(good))
    with pytest.raises(UserError) as raised:
        open_dataset(
            DataSettings(Folder, 8, 3, False),
            Folder(MEMORY, str(tmp_path / "images")),
            0,
            tmp_path / "cache",
        )
    assert f"{len(BROKEN)} of {len(BROKEN) + 5} images" in str(raised.value)
    for name in BROKEN:
        assert str(tmp_path / "images" / name) in str(raised.value)
    assert "good0" not in str(raised.value)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"]


# One image


def lanczos(array: np.ndarray, length: int, axis: int) -> np.ndarray:
    """One axis resampled by the windowed sinc of 3 lobes, stretched by the scale so that it removes
    what cannot be shown."""
    n = array.shape[axis]
    scale = n / length
    stretch = max(scale, 1.0)
    weights = np.zeros((length, n))
    for k in range(length):
        u = (np.arange(n) + 0.5 - (k + 0.5) * scale) / stretch
        weights[k] = np.where(np.abs(u) < 3, np.sinc(u) * np.sinc(u / 3), 0)
    weights /= weights.sum(1, keepdims=True)
    return np.moveaxis(np.tensordot(weights, array.astype(np.float64), (1, axis)), 0, axis)


@pytest.mark.parametrize(
    "source, size",
    [((40, 40), (16, 16)), ((33, 50), (16, 16)), ((64, 48), (12, 20)), ((10, 12), (16, 16))],
)
def test_an_image_is_scaled_by_its_shorter_side_and_cut_at_the_centre(source, size):
    """source: width, height. size: height, width."""
    image = noise_image(source, seed=3)
    scale = max(size[0] / source[1], size[1] / source[0])
    width, height = (max(size[1], round(source[0] * scale)), max(size[0], round(source[1] * scale)))
    horizontal = np.clip(np.round(lanczos(np.asarray(image), width, 1)), 0, 255)
    expected = np.clip(np.round(lanczos(horizontal, height, 0)), 0, 255)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    expected = expected[top : top + size[0], left : left + size[1]]
    ours = to_array(image, size, 3, upscale=True)
    assert ours.shape == (*size, 3) and ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    "source, box",
    [
        ((30, 20), (slice(0, 20), slice(5, 25))),
        ((20, 29), (slice(4, 24), slice(0, 20))),
        ((20, 20), (slice(0, 20), slice(0, 20))),
    ],
)
def test_an_image_of_the_right_size_keeps_its_pixels(source, box):
    image = noise_image(source)
    assert np.array_equal(to_array(image, (20, 20), 3, False), np.asarray(image)[box])


def test_modes_become_rgb():
    gray, rgba = noise_image((9, 9), "L"), noise_image((9, 9), "RGBA")
    assert np.array_equal(
        to_array(gray, (9, 9), 3, False), np.repeat(np.asarray(gray)[..., None], 3, 2)
    )
    colour, alpha = np.split(np.asarray(rgba).astype(float), [3], axis=2)
    on_white = colour * alpha / 255 + 255 - alpha
    assert np.abs(to_array(rgba, (9, 9), 3, False) - on_white).max() <= 1
    palette = Image.fromarray(np.arange(81, dtype=np.uint8).reshape(9, 9), "P")
    colors = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    palette.putpalette(colors.tobytes())
    assert np.array_equal(to_array(palette, (9, 9), 3, False), colors[np.asarray(palette)])
    bits = Image.fromarray(np.eye(9, dtype=bool))
    assert np.array_equal(
        to_array(bits, (9, 9), 3, False),
        np.repeat(np.eye(9, dtype=np.uint8)[..., None] * 255, 3, 2),
    )


def test_modes_become_gray():
    color = noise_image((9, 9))
    luma = np.asarray(color) @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    ours = to_array(color, (9, 9), 1, False)
    assert ours.shape == (9, 9, 1) and np.abs(ours[..., 0] - luma).max() <= 1
    assert np.array_equal(
        to_array(noise_image((9, 9), "L"), (9, 9), 1, False)[..., 0],
        np.asarray(noise_image((9, 9), "L")),
    )


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_more_than_8_bits_are_refused(kind):
    """Pillow would turn all above 255 white, and a radiograph has most of its values there."""
    image = Image.fromarray(np.linspace(0, 60000, 81).reshape(9, 9).astype(kind))
    with pytest.raises(UserError, match="8 bits"):
        to_array(image, (9, 9), 1, False)


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_in_floats_is_rounded_once_and_at_the_end(channels):
    values = np.random.default_rng(0).uniform(-20, 275, (40, 40)).astype(np.float32)
    expected = np.clip(np.round(lanczos(lanczos(values, 16, 1), 16, 0)), 0, 255)
    ours = to_array(Image.fromarray(values), (16, 16), channels, False)
    assert ours.shape == (16, 16, channels) and ours.dtype == np.uint8
    difference = np.abs(ours.astype(int) - expected[..., None])
    assert difference.max() <= 1 and (difference > 0).mean() < 0.002  # a half, in float32
    exact = np.linspace(0, 255, 64 * 64, dtype=np.float32).reshape(64, 64)
    assert np.array_equal(
        to_array(Image.fromarray(exact), (64, 64), 1, False)[..., 0], np.round(exact)
    )


def test_images_are_scaled_by_the_filter_that_is_asked_for():
    """Bilinear, antialiased: the preprocessing of CelebA in DDIM."""
    image = noise_image((40, 40), seed=5)
    u = (np.arange(40) + 0.5 - (np.arange(16)[:, None] + 0.5) * 2.5) / 2.5
    weights = np.clip(1 - np.abs(u), 0, None)
    weights /= weights.sum(1, keepdims=True)
    expected = np.einsum("yh,xw,hwc->yxc", weights, weights, np.asarray(image).astype(float))
    assert np.abs(to_array(image, (16, 16), 3, False, "bilinear") - expected).max() <= 1
    assert not np.array_equal(
        to_array(image, (16, 16), 3, False, "bilinear"), to_array(image, (16, 16), 3, False)
    )


@pytest.mark.parametrize("size", [(20, 21), (21, 20)])
def test_small_images_are_refused_unless_they_may_be_enlarged(size):
    image = noise_image(size)
    with pytest.raises(
        UserError, match=rf"{size[1]} high and {size[0]} wide, smaller than data.size=\[21, 21\]"
    ):
        to_array(image, (21, 21), 3, False)
    assert to_array(image, (21, 21), 3, True).shape == (21, 21, 3)


# The memory map


class Counted(ImageReader):
    """Ten images; every read is noted in a file. slow: seconds that a read takes."""

    name, classes = "counted", ()

    def __init__(self, notes: Path, slow: float = 0.0, n: int = 10):
        self.notes, self.slow, self.n = notes, slow, n
        self.fingerprint = sha256_of(["counted", n])
        self.splits = {"train": range(n), "validation": (), "test": ()}
        self.labels = [0] * n

    def __len__(self) -> int:
        return self.n

    def read_image(self, item: int) -> Image.Image:
        with open(self.notes, "a") as file:
            file.write(f"{item}\n")
        time.sleep(self.slow)
        return noise_image((8, 8), seed=item)

    def expected(self) -> np.ndarray:
        return np.stack([np.asarray(noise_image((8, 8), seed=k)) for k in range(self.n)])


EIGHT = DataSettings(Folder, 8, 3, False)


def decode(notes: Path, cache: Path, slow: float, barrier=None) -> None:
    if barrier:
        barrier.wait(60)
    open_memory_map(Counted(notes, slow), EIGHT, cache)


def test_images_are_what_the_files_hold_in_their_order(tmp_path):
    source = Counted(tmp_path / "notes", n=700)  # more than are decoded at a time
    images, broken = open_memory_map(source, EIGHT, tmp_path / "cache")
    assert not broken
    assert isinstance(images, np.memmap) and images.dtype == np.uint8
    assert np.array_equal(images, source.expected())


def test_several_processes_build_it_once(tmp_path):
    """As the ranks of a job, or the runs of a sweep, do."""
    barrier = processes.Barrier(4)
    workers = [
        processes.Process(
            target=decode, args=(tmp_path / "notes", tmp_path / "cache", 0.05, barrier)
        )
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    # each image once
    assert sorted(map(int, (tmp_path / "notes").read_text().split())) == list(range(10))
    assert np.array_equal(
        open_memory_map(Counted(tmp_path / "notes"), EIGHT, tmp_path / "cache")[0],
        Counted(tmp_path / "n").expected(),
    )


def test_a_decode_that_was_killed_leaves_nothing_wrong(tmp_path):
    worker = processes.Process(target=decode, args=(tmp_path / "notes", tmp_path / "cache", 0.2))
    worker.start()
    while not (tmp_path / "notes").exists():
        assert worker.is_alive()
        time.sleep(0.01)
    worker.kill()
    worker.join()
    assert not list((tmp_path / "cache").glob("*.npy"))
    source = Counted(tmp_path / "again")
    assert np.array_equal(open_memory_map(source, EIGHT, tmp_path / "cache")[0], source.expected())
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".json", ".lock", ".npy"]
    [file] = (tmp_path / "cache").glob("*.npy")
    clean = tmp_path / "clean"
    open_memory_map(source, EIGHT, clean)
    assert sha256(file) == sha256(clean / file.name)


def test_what_is_decoded_is_not_decoded_again(tmp_path):
    source = Counted(tmp_path / "notes")
    for _ in range(3):
        open_memory_map(source, EIGHT, tmp_path)
    assert len((tmp_path / "notes").read_text().split()) == 10


def test_a_map_of_another_length_is_built_anew(tmp_path):
    """As after a start that could not read how many frames a file has: the same files, and so the
    same key."""
    short, whole = Counted(tmp_path / "notes", n=9), Counted(tmp_path / "notes")
    short.fingerprint = whole.fingerprint
    open_memory_map(short, EIGHT, tmp_path / "cache")
    assert np.array_equal(open_memory_map(whole, EIGHT, tmp_path / "cache")[0], whole.expected())


@pytest.mark.parametrize("written", [False, True])
def test_a_map_with_gaps_is_never_taken_for_whole(tmp_path, monkeypatch, written):
    """Killed between the two files that make a cache, or after them, while one with gaps is
    replaced."""
    source = Counted(tmp_path / "notes")
    good = source.read_image
    source.read_image = lambda item: (
        good(item) if item else to_array(Image.new("L", (1, 1)), (8, 8), 3, False)
    )
    open_memory_map(source, replace(EIGHT, skip_broken=True), tmp_path / "cache")
    source.read_image = good
    with monkeypatch.context() as patch:
        patch.setattr(data.memory_map, "write_sealed", write_and_stop if written else stop)
        with pytest.raises(KeyboardInterrupt):
            open_memory_map(source, EIGHT, tmp_path / "cache")
    assert np.array_equal(open_memory_map(source, EIGHT, tmp_path / "cache")[0], source.expected())


def write_and_stop(path: Path, content: dict) -> None:
    write_sealed(path, content)
    stop()


def stop(*_) -> None:
    raise KeyboardInterrupt


def test_everything_that_makes_the_pixels_is_in_the_key(tmp_path):
    def keys(source=None, **change):
        open_memory_map(
            source or Counted(tmp_path / "notes"), replace(EIGHT, **change), tmp_path / "cache"
        )
        return {p.name for p in (tmp_path / "cache").glob("*.npy")}

    changes = [
        {},
        {"skip_broken": True},
        {"flip": True},
        {"size": (6, 8)},
        {"size": (8, 6)},
        {"channels": 1},
        {"upscale": True},
        {"resample": "bilinear"},
        {"source": Counted(tmp_path / "notes", n=9)},
    ]
    seen = [len(keys(**change)) for change in changes]
    assert seen == [1, 1, 1, 2, 3, 4, 5, 6, 7]


# Subsets


def subset(seed: int, n: int | None, cache: Path) -> Dataset:
    return open_dataset(DataSettings(Faces, 8, 1, True, n_train=n), Faces(MEMORY), seed, cache)


def test_a_subset_is_drawn_by_the_seed(tmp_path):
    whole = subset(0, None, tmp_path)
    drawn = {seed: list(subset(seed, 20, tmp_path).splits["train"]) for seed in (0, 1, 2)}
    for seed, rows in drawn.items():
        assert rows == list(subset(seed, 20, tmp_path).splits["train"])
        assert len(set(rows)) == 20 and set(rows) <= set(whole.splits["train"])
    assert len({tuple(rows) for rows in drawn.values()}) == 3
    assert drawn[0] != list(range(20))
    for split in ("validation", "test"):  # all subsets are judged by the same images
        assert list(subset(1, 20, tmp_path).splits[split]) == list(whole.splits[split])


def test_a_subset_may_have_a_seed_of_its_own(tmp_path):
    """So that what another training changes is told from what other images change; by null it is
    the run's."""

    def drawn(seed: int, subset_seed: int | None) -> list[int]:
        settings = DataSettings(Faces, 8, 1, True, n_train=20, subset_seed=subset_seed)
        return list(open_dataset(settings, Faces(MEMORY), seed, tmp_path).splits["train"])

    assert drawn(0, 7) == drawn(1, 7) == drawn(7, None) != drawn(0, None)
    with pytest.raises(
        ValueError, match="subset_seed=7 draws n_train of the images, and n_train is null"
    ):
        DataSettings(Faces, 8, 1, True, subset_seed=7)


def test_every_image_is_drawn_as_often(tmp_path):
    counts = np.zeros(100)
    for seed in range(200):
        counts[subset(seed, 30, tmp_path).splits["train"]] += 1
    expected, deviation = 200 / 3, (200 * (1 / 3) * (2 / 3)) ** 0.5
    assert np.abs(counts[:90] - expected).max() < 5 * deviation and not counts[90:].any()


def test_a_class_that_a_subset_lacks_is_told(tmp_path, caplog):
    make_folder(tmp_path / "x", [f"{name}/{k}.png" for name in "ab" for k in range(4)])
    settings = DataSettings(Folder, 8, 1, False, n_train=1)
    source = Folder(MEMORY, str(tmp_path / "x"))
    kept = open_dataset(settings, source, 0, tmp_path / "cache")
    [row] = kept.splits["train"]
    assert f"none of the 1 training images is of class {'ba'[kept.labels[row]]}" in caplog.text
    caplog.clear()
    open_dataset(replace(settings, n_train=None), source, 0, tmp_path / "cache")
    assert "none of" not in caplog.text


@pytest.mark.parametrize("n", [0, -1, 91])
def test_a_subset_that_cannot_be_drawn_is_refused(tmp_path, n):
    with pytest.raises(UserError, match=f"n_train={n}: bundled faces has 90 training images"):
        subset(0, n, tmp_path)


# Batches


def dataset(n: int, shape=(4, 6, 3)) -> Dataset:
    """n training images, each of which tells its number, and two that are not for training. labels:
    number mod 7."""
    images = np.random.default_rng(0).integers(0, 256, (n + 2, *shape), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(n + 2) % 256, np.arange(n + 2) // 256
    splits = {"train": np.arange(n) + 1, "validation": np.array([0]), "test": np.array([n + 1])}
    return Dataset(images, np.arange(n + 2) % 7, splits, [])


def numbers(batch) -> list[int]:
    return (batch.images[:, 0, 0, 0].int() + 256 * batch.images[:, 0, 0, 1].int()).tolist()


@pytest.mark.parametrize("n, size", [(12, 4), (10, 4), (300, 32), (3, 8), (1, 4), (5, 5)])
def test_an_epoch_shows_every_image_once(n, size):
    """Also where batches cross from one epoch to the next, and where a batch is larger than the
    data."""
    batches = Batches(dataset(n), size, True, 5)
    stream = [number for k in range(-(-4 * n // size)) for number in numbers(batches.batch(k))]
    epochs = [stream[start : start + n] for start in range(0, 4 * n, n)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(1, n + 1))
    if n >= 5:
        assert len({tuple(epoch) for epoch in epochs}) == 4 and list(range(1, n + 1)) not in epochs


def test_a_batch_is_a_function_of_the_seed_and_its_number():
    data = dataset(50)
    batches = Batches(data, 16, True, 5)
    expected = [batches.batch(k) for k in range(12)]
    for k in (11, 0, 7, 3, 7):
        for ours, theirs in zip(Batches(data, 16, True, 5).batch(k), expected[k], strict=True):
            assert torch.equal(ours, theirs)
        for ours, theirs in zip(batches.batch(k), expected[k], strict=True):
            assert torch.equal(ours, theirs)
    assert numbers(Batches(data, 16, True, 6).batch(0)) != numbers(expected[0])
    others = [Batches(data, 16, True, 6).batch(k).flip for k in range(4)]
    assert not torch.equal(torch.cat(others), torch.cat([batch.flip for batch in expected[:4]]))


def test_images_come_with_their_labels():
    data = dataset(50)
    batch = Batches(data, 64, False, 0).batch(3)
    assert batch.label.dtype == torch.int64
    assert batch.label.tolist() == [number % 7 for number in numbers(batch)]
    assert np.array_equal(batch.images.numpy(), data.images[numbers(batch)])


def test_the_pinning_thread_is_on_the_runs_gpu(monkeypatch):
    """A new thread is on GPU 0, where pinning would open a context: of every run of a node."""
    placed = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda n: placed.append((n, threading.current_thread().name))
    )
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)
    batches = Batches(dataset(50), 16, True, 5)
    list(batches.prefetched(0, 2, pin=True))
    assert placed == [(3, "batches_0")]
    list(batches.prefetched(0, 2))
    assert len(placed) == 1


@pytest.mark.parametrize("start, stop", [(0, 20), (7, 9), (3, 3), (0, 1)])
def test_prefetched_batches_are_the_batches(start, stop):
    batches = Batches(dataset(50), 16, True, 5)
    found = list(batches.prefetched(start, stop))
    assert len(found) == stop - start
    for k, batch in enumerate(found, start):
        assert all(
            torch.equal(ours, theirs) for ours, theirs in zip(batch, batches.batch(k), strict=True)
        )
    assert prefetching() == 0


def prefetching() -> int:
    return sum(thread.name.startswith("batches") for thread in threading.enumerate())


def test_an_error_on_the_thread_is_raised_where_the_batch_is_used():
    batches, real = Batches(dataset(50), 16, True, 5), Batches.batch

    def batch(k):
        if k == 3:
            raise OSError("the disk is gone")
        return real(batches, k)

    batches.batch = batch
    stream, found = batches.prefetched(0, 10), []
    with pytest.raises(OSError, match="the disk is gone"):
        for item in stream:
            found.append(item)
    assert len(found) == 3 and prefetching() == 0


def test_a_stream_that_is_closed_early_leaves_no_thread():
    stream = Batches(dataset(50), 16, True, 5).prefetched(0, 1_000_000)
    next(stream)
    assert prefetching() == 1
    stream.close()
    assert prefetching() == 0


def test_batches_are_made_ahead_but_not_without_end():
    batches, made, real = Batches(dataset(50), 16, True, 5), [], Batches.batch
    batches.batch = lambda k: (made.append(k), real(batches, k))[1]
    stream = batches.prefetched(0, 1000, depth=4)
    next(stream)
    end = time.monotonic() + 30
    while len(made) < 5 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.1)
    stream.close()
    assert 5 <= len(made) <= 7 and made == list(range(len(made)))


# Pixels


def test_all_256_values_survive():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    x0 = to_x0(pixels)
    assert x0.shape == (1, 1, 16, 16) and x0.min() == -1 and x0.max() == 1
    torch.testing.assert_close(x0.flatten(), torch.arange(256) / 127.5 - 1)
    assert torch.equal(to_uint8(x0), pixels)
    # the nearest, by less than half a step of 2/255
    assert torch.equal(to_uint8(x0 + 0.0035), pixels)
    assert torch.equal(to_uint8(x0 - 0.0035), pixels)
    assert to_uint8(torch.tensor([-7.0, 7.0]).reshape(2, 1, 1, 1)).flatten().tolist() == [0, 255]


def test_channels_stay_where_they_are():
    pixels = torch.from_numpy(dataset(5).images)
    x0 = to_x0(pixels)
    assert x0.is_contiguous(memory_format=torch.channels_last)
    for channel in range(3):
        assert torch.equal(to_uint8(x0[:, channel : channel + 1])[..., 0], pixels[..., channel])


def test_flips_are_mirrors_of_half_of_the_images():
    batches = Batches(dataset(50), 16, True, 5)
    flips = []
    for k in range(250):
        batch = batches.batch(k)
        flips.append(batch.flip)
        if k < 5:
            plain, flipped = to_x0(batch.images), to_x0(batch.images, batch.flip)
            for image, mirrored, flip in zip(plain, flipped, batch.flip, strict=True):
                assert torch.equal(mirrored, image.flip(-1) if flip else image)
                assert not torch.equal(image, image.flip(-1))
    count, n = torch.cat(flips).sum().item(), 250 * 16
    assert abs(count - n / 2) < 4.5 * (n / 4) ** 0.5
    assert not any(Batches(dataset(50), 16, False, 5).batch(k).flip.any() for k in range(20))
    by_image = torch.zeros(52, 2)
    for k, flip in enumerate(flips):  # each image is seen both ways
        for number, way in zip(batches.indices(k), flip.long(), strict=True):
            by_image[number, way] += 1
    assert (by_image[1:51] > 15).all()


def test_one_core_feeds_10_000_images_a_second(tmp_path):
    """32x32 RGB, from a memory map, to x0. The best of several: other processes may be busy."""
    np.save(
        tmp_path / "images.npy",
        np.random.default_rng(0).integers(0, 256, (20_000, 32, 32, 3), dtype=np.uint8),
    )
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    batches = Batches(
        Dataset(images, np.zeros(20_000, np.int64), {"train": np.arange(20_000)}, []), 128, True, 0
    )
    threads, speeds = torch.get_num_threads(), []
    torch.set_num_threads(1)
    for attempt in range(20):
        start = time.perf_counter()
        for k in range(attempt * 20, attempt * 20 + 20):
            batch = batches.batch(k)
            to_x0(batch.images, batch.flip)
        speeds.append(20 * 128 / (time.perf_counter() - start))
    torch.set_num_threads(threads)
    print(
        f"{max(speeds):.0f} images/s at best, {sorted(speeds)[len(speeds) // 2]:.0f} in the "
        f"middle, {os.cpu_count()} cores"
    )
    assert max(speeds) >= 10_000
