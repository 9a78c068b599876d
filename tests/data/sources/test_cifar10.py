"""CIFAR-10: the bytes of both versions, the splits, and what is refused; above all a pickle that is
not the authors'."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest

import data.sources.cifar10
from data.file_cache import Changed, FileCache
from data.sources.cifar10 import CLASSES, PICKLES, Cifar10
from runtime.errors import UserError

SPLITS = ("train", "validation", "test")
BATCHES = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
N = 20  # images of a batch here, 10,000 in the real ones


@pytest.fixture
def memory(tmp_path) -> FileCache:
    return FileCache(Path(tempfile.mkdtemp(dir=tmp_path)))


@pytest.fixture
def made(tmp_path, monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    """Images [6 N, 32, 32, 3] and labels [6 N], in tmp_path/bin/cifar-10-batches-bin and
    tmp_path/py/cifar-10-batches-py."""
    monkeypatch.setattr(data.sources.cifar10, "IMAGES", N)
    random = np.random.default_rng(0)
    images, labels = (
        random.integers(0, 256, (6 * N, 32, 32, 3), dtype=np.uint8),
        random.integers(0, 10, 6 * N),
    )
    binary, python = tmp_path / "bin/cifar-10-batches-bin", tmp_path / "py/cifar-10-batches-py"
    binary.mkdir(parents=True)
    python.mkdir(parents=True)
    md5 = {}
    for k, name in enumerate(BATCHES):
        rows = slice(k * N, (k + 1) * N)
        # red, green, blue, each row by row
        flat = np.stack([image.transpose(2, 0, 1).reshape(-1) for image in images[rows]])
        records = [
            bytes([label]) + row.tobytes() for label, row in zip(labels[rows], flat, strict=True)
        ]
        (binary / f"{name}.bin").write_bytes(b"".join(records))
        batch = {
            "batch_label": name,
            "labels": labels[rows].tolist(),
            "data": flat,
            "filenames": [f"{i}.png" for i in range(N)],
        }
        (python / name).write_bytes(pickle.dumps(batch, protocol=2))
        md5[name] = hashlib.md5((python / name).read_bytes()).hexdigest()
    monkeypatch.setattr(data.sources.cifar10, "PICKLES", md5)
    return images, labels


def refused(memory: FileCache, path: Path) -> str:
    with pytest.raises(UserError) as raised:
        Cifar10(memory, str(path))
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    "place", ["bin", "bin/cifar-10-batches-bin", "py", "py/cifar-10-batches-py"]
)
def test_images_and_labels_of_both_versions(made, tmp_path, memory, place):
    images, labels = made
    source = Cifar10(memory, str(tmp_path / place))
    assert len(source) == 6 * N and list(source.labels) == labels.tolist()
    for item in (0, 1, N - 1, N, 5 * N, 6 * N - 1):
        assert (
            np.array_equal(np.asarray(source.read_image(item)), images[item])
            and source.read_image(item).mode == "RGB"
        )
    assert source.classes == [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    assert "data_batch_2" in source.item_name(N + 3) and "image 3 " in source.item_name(N + 3)


def test_training_stays_whole_and_the_test_set_is_cut_by_parity(made, tmp_path, memory):
    source = Cifar10(memory, str(tmp_path / "bin"))
    assert list(source.splits["train"]) == list(range(5 * N))
    assert list(source.splits["validation"]) == list(range(5 * N, 6 * N, 2))
    assert list(source.splits["test"]) == list(range(5 * N + 1, 6 * N, 2))


def test_the_fingerprint_is_of_the_images_whichever_version_holds_them(made, tmp_path, memory):
    binary, python = (Cifar10(memory, str(tmp_path / kind)) for kind in ("bin", "py"))
    assert binary.fingerprint == python.fingerprint
    for position in (0, 100):  # a label, a pixel
        file = tmp_path / "bin/cifar-10-batches-bin/data_batch_3.bin"
        changed = bytearray(file.read_bytes())
        changed[position] = (changed[position] + 1) % 10
        file.write_bytes(changed)
        again = FileCache(memory.folder)  # of another start
        assert Cifar10(again, str(tmp_path / "bin")).fingerprint != binary.fingerprint


def test_a_later_start_reads_no_batch(made, tmp_path, memory, monkeypatch):
    monkeypatch.setattr("data.file_cache.FRESH", -1e9)  # as if all files were old
    first = Cifar10(memory, str(tmp_path / "bin"))
    monkeypatch.setattr(
        data.sources.cifar10, "read_records", lambda file: pytest.fail("read again")
    )
    again = Cifar10(memory, str(tmp_path / "bin"))
    assert again.fingerprint == first.fingerprint and again.labels == first.labels


class Harmful:
    """A pickle that writes a file when it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_pickle_that_is_not_the_authors_is_never_opened(made, tmp_path, memory, monkeypatch):
    file, mark = tmp_path / "py/cifar-10-batches-py/data_batch_4", tmp_path / "harm"
    good = file.read_bytes()
    file.write_bytes(pickle.dumps(Harmful(mark)))
    pickle.loads(file.read_bytes())  # it is what it says
    assert mark.exists()
    mark.unlink()
    message = refused(memory, tmp_path / "py")
    for part in (
        str(file),
        data.sources.cifar10.PICKLES["data_batch_4"],
        "md5",
        "can run code",
        "cifar-10-python.tar.gz",
        "cs.toronto.edu",
    ):
        assert part in message
    file.write_bytes(good)
    monkeypatch.setattr("data.file_cache.FRESH", -1e9)
    source = Cifar10(memory, str(tmp_path / "py"))
    file.write_bytes(pickle.dumps(Harmful(mark)))  # after the source was opened
    with pytest.raises(Changed, match="data_batch_4 changed"):
        source.read_image(3 * N)
    assert not mark.exists()


def test_the_md5s_are_torchvisions():
    from runtime.torchvision import torchvision

    official = torchvision.datasets.CIFAR10
    assert dict(official.train_list + official.test_list) == PICKLES
    assert official.filename == data.sources.cifar10.PYTHON and (
        data.sources.cifar10.IMAGES,
        data.sources.cifar10.RECORD,
    ) == (10_000, 3073)


def test_torchvision_reads_the_same(made, tmp_path, memory, monkeypatch):
    from runtime.torchvision import torchvision

    official = torchvision.datasets.CIFAR10
    meta = tmp_path / "py/cifar-10-batches-py/batches.meta"
    meta.write_bytes(pickle.dumps({"label_names": CLASSES}))
    monkeypatch.setattr(
        official, "train_list", [[name, data.sources.cifar10.PICKLES[name]] for name in BATCHES[:5]]
    )
    monkeypatch.setattr(
        official, "test_list", [[BATCHES[5], data.sources.cifar10.PICKLES[BATCHES[5]]]]
    )
    monkeypatch.setattr(
        official, "meta", official.meta | {"md5": hashlib.md5(meta.read_bytes()).hexdigest()}
    )
    source = Cifar10(memory, str(tmp_path / "py"))
    for start, theirs in (
        (0, official(tmp_path / "py", train=True)),
        (5 * N, official(tmp_path / "py", train=False)),
    ):
        for k in range(len(theirs)):
            image, label = theirs[k]
            assert (
                np.array_equal(np.asarray(image), np.asarray(source.read_image(start + k)))
                and label == source.labels[start + k]
            )


# What is refused


def test_a_missing_set_says_what_to_get_where_and_what_to_run_meanwhile(tmp_path, memory):
    (tmp_path / "empty").mkdir()
    for name, state in (("absent", "no such folder"), ("empty", "CIFAR-10 is not there")):
        message = refused(memory, tmp_path / name)
        for part in (
            state,
            f"data.path={tmp_path / name}",
            "https://www.cs.toronto.edu/~kriz/cifar.html",
            "cifar-10-binary.tar.gz",
            f"-C {tmp_path / name}",
            "data=folder",
            "python train.py +experiment=transfer_demo",
        ):
            assert part in message, part


@pytest.mark.parametrize("name", ["cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"])
def test_an_archive_that_is_not_unpacked_is_seen(tmp_path, memory, name):
    with tarfile.open(tmp_path / name, "w:gz"):
        pass
    for path in (tmp_path, tmp_path / name):
        assert f"tar xzf {tmp_path / name} -C {tmp_path}" in refused(memory, path)


def test_a_batch_that_is_missing_or_cut_short_is_named(made, tmp_path, memory):
    folder = tmp_path / "bin/cifar-10-batches-bin"
    short = folder / "data_batch_5.bin"
    whole = short.read_bytes()
    short.write_bytes(whole[:-1000])
    message = refused(memory, tmp_path / "bin")
    assert (
        str(short) in message and str(len(whole)) in message and str(len(whole) - 1000) in message
    )
    short.write_bytes(bytes([17]) + whole[1:])
    assert str(short) in refused(memory, tmp_path / "bin") and "label of 17" in refused(
        memory, tmp_path / "bin"
    )
    short.unlink()
    assert "data_batch_5.bin missing" in refused(memory, tmp_path / "bin")
