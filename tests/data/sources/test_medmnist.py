"""MedMNIST: which file is opened, what its labels are, how one is fetched, and what is said where
none is."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.dataset import open_dataset
from data.settings import DataSettings
from data.sources.medmnist import SETS, SIZES, MedMnist, file_name
from runtime.download import published
from runtime.errors import UserError
from tests.helpers import SHARED
from tests.helpers.caches import new_cache
from tests.helpers.file_server import Fault, publish, serving, table_row

MEMORY = new_cache()
SPLITS = ("train", "validation", "test")
URL = "https://zenodo.org/records/10519652/files/{}?download=1"
AT = "/theirs.npz"


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


def test_names_of_the_classes_come_from_the_option_alone(tmp_path):
    make(tmp_path / "breastmnist.npz", 28, 28)
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


def test_a_file_that_is_not_the_official_one_is_remarked_on(tmp_path, caplog, monkeypatch):
    """By its counts; where they are right, by its md5."""
    make(tmp_path / "pneumoniamnist.npz", 28, 28)
    MedMnist(MEMORY, "pneumoniamnist", 28, str(tmp_path))
    assert "6, 2 and 3 images" in caplog.text and "4708, 524 and 624" in caplog.text
    caplog.clear()
    make(tmp_path / "breastmnist.npz", 28, 28, counts=(546, 78, 156))
    MedMnist(MEMORY, "breastmnist", 28, str(tmp_path))
    md5 = hashlib.md5((tmp_path / "breastmnist.npz").read_bytes()).hexdigest()
    assert f"its md5 is {md5}, and that of the official file 7506" in caplog.text
    caplog.clear()
    row = {"url": "http://127.0.0.1", "licence": "MIT", "md5": md5}
    publish(monkeypatch, tmp_path, {"breastmnist.npz": row})
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
        "pneumoniamnist_64.npz: no network: zenodo.org does not answer",
        f"download {URL.format(file.name)} (md5 8f4eceb4ccffa70c672198ea285246c6) where there is a "
        f"network, and put it at {file}.",
        "Meanwhile, with no download: python train.py +experiment=transfer_demo",
    ):
        assert part in message, part
    assert "data.upscale" not in message and "is there" not in message
    assert not file.exists()
    make(tmp_path / "pneumoniamnist.npz", 28, 28)
    message = refused(tmp_path, size=64)
    assert "data.file_size=28" in message and "data.upscale=true" in message
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(tmp_path / "file")


def test_a_file_of_another_size_or_form_under_the_name_is_refused(tmp_path):
    make(tmp_path / "pneumoniamnist_64.npz", 28, 28)
    message = refused(tmp_path, size=64)
    assert "not pneumoniamnist at 64x64" in message and "train_images [6, 28, 28] uint8" in message
    np.savez(tmp_path / "pneumoniamnist.npz", images=np.zeros((4, 28, 28), np.uint8))
    assert "not pneumoniamnist at 28x28" in refused(tmp_path) and "data=npz" in refused(tmp_path)
    make(tmp_path / "breastmnist.npz", 28, 28, 28)
    assert "volumes" in refused(tmp_path, "breastmnist")


# Fetched


@pytest.fixture
def server(tmp_path, monkeypatch):
    """It has a file in the form of pneumoniamnist_64.npz."""
    make(tmp_path / "theirs/pneumoniamnist_64.npz", 64, 64)
    with serving({AT: (tmp_path / "theirs/pneumoniamnist_64.npz").read_bytes()}) as running:
        publish(monkeypatch, tmp_path, {"pneumoniamnist_64.npz": table_row(running, AT)})
        yield running


def assert_theirs(source: MedMnist, folder: Path) -> None:
    arrays = np.load(folder / "theirs/pneumoniamnist_64.npz")
    written = np.concatenate([arrays[f"{split}_images"] for split in ("train", "val", "test")])
    assert all(np.array_equal(source.read_image(k), image) for k, image in enumerate(written))
    assert len(source) == len(written) == 11


def test_a_missing_file_is_fetched_once(tmp_path, server, capsys):
    root = tmp_path / "new/folder"
    for _ in range(2):
        assert_theirs(MedMnist(MEMORY, "pneumoniamnist", 64, str(root)), tmp_path)
    assert len(server.asked) == 1 and "pneumoniamnist_64.npz: 100%" in capsys.readouterr().err
    assert [p.name for p in root.iterdir() if p.suffix != ".lock"] == ["pneumoniamnist_64.npz"]


def test_a_file_that_is_cut_is_gone_on_with(tmp_path, server):
    server.faults[AT] = Fault(cut=20_000, times=1)
    assert_theirs(MedMnist(MEMORY, "pneumoniamnist", 64, str(tmp_path / "new")), tmp_path)
    assert [asked for _, _, asked in server.asked] == [None, "bytes=20000-"]


def test_a_file_of_another_checksum_is_put_aside(tmp_path, server):
    right = server.files[AT]
    server.files[AT] = right[:-1] + bytes([right[-1] ^ 1])
    message, root = refused(tmp_path / "new", size=64), tmp_path / "new"
    assert "its sha256 is" in message and "put aside as pneumoniamnist_64.npz.wrong" in message
    assert (root / "pneumoniamnist_64.npz.wrong").read_bytes() == server.files[AT]
    server.files[AT] = right
    assert_theirs(MedMnist(MEMORY, "pneumoniamnist", 64, str(root)), tmp_path)


def test_every_set_and_size_has_its_published_file():
    files = {file_name(name, size) for name in SETS for size in SIZES}
    assert files == {name for name in published() if name.endswith(".npz")} and len(files) == 48
    assert all(published()[file].url == URL.format(file) for file in files)


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
