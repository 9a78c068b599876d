"""MedMNIST: which file is opened, what its labels are, how one is fetched, and what is said where
none is."""

from __future__ import annotations

import logging
import re
import shutil
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data.sources.medmnist
from data.dataset import open_dataset
from data.file_cache import FileCache
from data.settings import DataSettings
from data.sources.medmnist import SETS, SIZES, MedMnist
from runtime.errors import UserError
from tests.helpers import SHARED

MEMORY = FileCache(Path(tempfile.mkdtemp()))
SPLITS = ("train", "validation", "test")
URL = "https://zenodo.org/records/10519652/files/{}?download=1"


def make(
    path: Path, *shape: int, counts: tuple[int, int, int] = (6, 2, 3), columns: int = 1
) -> dict[str, np.ndarray]:
    """A file in the form of MedMNIST's own: images [N, *shape], labels [N, columns]."""
    random, arrays = np.random.default_rng(0), {}
    for split, n in zip(("train", "val", "test"), counts, strict=True):
        arrays[f"{split}_images"] = random.integers(0, 256, (n, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n * columns).reshape(n, columns) // 2 % 2).astype(
            np.uint8
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return arrays


def refused(root: Path, name: str = "pneumoniamnist", size: int = 28, **settings) -> str:
    with pytest.raises(UserError) as raised:
        MedMnist(MEMORY, name, size, str(root), **settings)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    "size, file",
    [
        (28, "bloodmnist.npz"),
        (64, "bloodmnist_64.npz"),
        (128, "bloodmnist_128.npz"),
        (224, "bloodmnist_224.npz"),
    ],
)
def test_the_size_picks_the_file(tmp_path, size, file):
    arrays = make(tmp_path / file, size, size, 3)
    source = MedMnist(MEMORY, "bloodmnist", size, str(tmp_path))
    assert [list(source.splits[split]) for split in SPLITS] == [list(range(6)), [6, 7], [8, 9, 10]]
    for item, key, k in ((0, "train", 0), (5, "train", 5), (7, "val", 1), (10, "test", 2)):
        assert np.array_equal(np.asarray(source.read_image(item)), arrays[f"{key}_images"][k])
        assert source.labels[item] == arrays[f"{key}_labels"][k, 0]
    assert source.classes == ["0", "1"]


def test_the_twelve_sets():
    """As the MedMNIST paper lists them."""
    assert set(SETS) == {
        f"{name}mnist"
        for name in (
            "path",
            "chest",
            "derma",
            "oct",
            "pneumonia",
            "retina",
            "breast",
            "blood",
            "tissue",
            "organa",
            "organc",
            "organs",
        )
    }
    # the paper's v2, less slices of organs that v3 dropped
    assert sum(map(sum, SETS.values())) == 708_069 - 107
    assert SIZES == (28, 64, 128, 224)


def test_names_of_the_classes_come_from_the_option_alone(tmp_path, monkeypatch):
    make(tmp_path / "breastmnist.npz", 28, 28)
    monkeypatch.setitem(sys.modules, "medmnist", None)  # as where it is not installed
    source = MedMnist(MEMORY, "breastmnist", 28, str(tmp_path), classes=["malignant", "normal"])
    assert source.classes == ["malignant", "normal"] and source.labels[:3] == [0, 0, 1]


def test_labels_of_chestmnist_are_no_classes(tmp_path, caplog):
    make(tmp_path / "chestmnist.npz", 28, 28, columns=14)
    with caplog.at_level(logging.INFO):
        source = MedMnist(MEMORY, "chestmnist", 28, str(tmp_path))
    assert (
        source.classes == []
        and "chestmnist.npz: no classes: the labels are a table of 14 columns" in caplog.text
    )


def test_a_file_with_other_counts_than_the_official_one_is_remarked_on(tmp_path, caplog):
    make(tmp_path / "pneumoniamnist.npz", 28, 28)
    MedMnist(MEMORY, "pneumoniamnist", 28, str(tmp_path))
    assert "6, 2 and 3 images" in caplog.text and "4708, 524 and 624" in caplog.text
    caplog.clear()
    make(tmp_path / "breastmnist.npz", 28, 28, counts=(546, 78, 156))
    MedMnist(MEMORY, "breastmnist", 28, str(tmp_path))
    assert not caplog.text


# What is refused


def test_wrong_names_and_sizes(tmp_path):
    assert "did you mean pneumoniamnist" in refused(tmp_path, "pneumonia_mnist")
    assert "did you mean pneumoniamnist" in refused(tmp_path, "PneumoniaMNIST")
    assert "known: bloodmnist" in refused(tmp_path, "xyzzy")
    assert "28, 64, 128, 224" in refused(tmp_path, size=32)
    for name in ("organmnist3d", "synapsemnist3d"):
        assert "volumes" in refused(tmp_path, name) and "organamnist" in refused(tmp_path, name)


def test_a_missing_file_says_where_it_comes_from_where_it_goes_and_what_to_run_meanwhile(tmp_path):
    message = refused(tmp_path, size=64)
    file = tmp_path / "pneumoniamnist_64.npz"
    for part in (
        f"{file} is not there",
        f"{URL.format(file.name)} to {file}",
        "pip install medmnist",
        "data.download=true",
        "python train.py +experiment=transfer_demo",
    ):
        assert part in message, part
    assert "data.upscale" not in message
    make(tmp_path / "pneumoniamnist.npz", 28, 28)
    message = refused(tmp_path, size=64)
    assert "data.file_size=28" in message and "data.upscale=true" in message


def test_a_file_of_another_size_or_form_under_the_name_is_refused(tmp_path):
    make(tmp_path / "pneumoniamnist_64.npz", 28, 28)
    message = refused(tmp_path, size=64)
    assert "not pneumoniamnist at 64x64" in message and "train_images [6, 28, 28] uint8" in message
    np.savez(tmp_path / "pneumoniamnist.npz", images=np.zeros((4, 28, 28), np.uint8))
    assert "not pneumoniamnist at 28x28" in refused(tmp_path) and "data=npz" in refused(tmp_path)
    make(tmp_path / "breastmnist.npz", 28, 28, 28)
    assert "volumes" in refused(tmp_path, "breastmnist")


# Downloads


def package(**classes) -> types.ModuleType:
    module = types.ModuleType("medmnist")
    vars(module).update(classes)
    return module


def test_a_download_goes_through_the_package_and_only_where_a_file_is_missing(
    tmp_path, monkeypatch
):
    calls = []

    class PneumoniaMNIST:  # the signature of medmnist 3.0.2
        def __init__(
            self,
            split,
            transform=None,
            target_transform=None,
            download=False,
            as_rgb=False,
            root=None,
            size=None,
            mmap_mode=None,
        ):
            assert split in ("train", "val", "test") and download
            calls.append(size)
            make(
                Path(root) / (f"pneumoniamnist_{size}.npz" if size != 28 else "pneumoniamnist.npz"),
                size,
                size,
            )

    monkeypatch.setitem(sys.modules, "medmnist", package(PneumoniaMNIST=PneumoniaMNIST))
    root = tmp_path / "new/folder"
    for size in (28, 64, 64):
        assert MedMnist(MEMORY, "pneumoniamnist", size, str(root), download=True).read_image(
            0
        ).size == (size, size)
    assert calls == [28, 64]
    assert sorted(p.name for p in root.iterdir() if not p.name.endswith(".lock")) == [
        "pneumoniamnist.npz",
        "pneumoniamnist_64.npz",
    ]


def test_a_download_that_fails_is_one_message_and_leaves_nothing(tmp_path, monkeypatch):
    class PneumoniaMNIST:
        def __init__(self, split, download, root, size):
            (Path(root) / "pneumoniamnist.npz").write_bytes(b"half of it")
            raise RuntimeError(
                "\n   Automatic download failed! ...\n  1. [Optional] Check your network connection"
            )

    monkeypatch.setitem(sys.modules, "medmnist", package(PneumoniaMNIST=PneumoniaMNIST))
    message = refused(tmp_path, download=True)
    for part in (
        "no network",
        URL.format("pneumoniamnist.npz"),
        str(tmp_path / "pneumoniamnist.npz"),
        "transfer_demo",
    ):
        assert part in message
    assert [p.name for p in tmp_path.iterdir()] == [".pneumoniamnist.npz.lock"]
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(tmp_path / "file", download=True)
    monkeypatch.setitem(sys.modules, "medmnist", None)
    assert re.search(
        "needs the medmnist package.*pip install medmnist", refused(tmp_path, download=True)
    )


def test_nothing_but_a_download_imports_the_package():
    source = Path(data.sources.medmnist.__file__).read_text()
    assert "import medmnist" not in source and source.count('import_module("medmnist")') == 1


# The real file


@pytest.fixture
def real(tmp_path) -> Path:
    file = SHARED / "med_pneumoniamnist28.npz"
    if not file.exists():
        pytest.skip(f"{file} is not there (SHARED_DATA names its folder)")
    shutil.copy(file, tmp_path / "pneumoniamnist.npz")
    return tmp_path


def test_the_real_file(real, caplog):
    source = MedMnist(MEMORY, "pneumoniamnist", 28, str(real))
    assert [len(source.splits[split]) for split in SPLITS] == [4682, 524, 624]
    assert "4682, 524 and 624" in caplog.text
    arrays = np.load(real / "pneumoniamnist.npz")
    images = np.concatenate([arrays[f"{split}_images"] for split in ("train", "val", "test")])
    labels = np.concatenate([arrays[f"{split}_labels"][:, 0] for split in ("train", "val", "test")])
    found = open_dataset(DataSettings(MedMnist, 28, 1, False), source, 0, real / "cache")
    assert np.array_equal(found.images[..., 0], images) and np.array_equal(found.labels, labels)
    enlarged = open_dataset(
        DataSettings(MedMnist, 64, 1, False, upscale=True), source, 0, real / "cache"
    ).images
    assert enlarged.shape == (5830, 64, 64, 1)
    for item in (0, 5000):
        assert np.array_equal(
            enlarged[item, ..., 0],
            np.asarray(Image.fromarray(images[item]).resize((64, 64), Image.Resampling.LANCZOS)),
        )
    with pytest.raises(UserError, match="upscale=true"):
        open_dataset(DataSettings(MedMnist, 64, 1, False), source, 0, real / "cache")
