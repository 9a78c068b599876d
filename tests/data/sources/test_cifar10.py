"""CIFAR-10: the bytes of both versions, the splits, and what is refused; above all a pickle that is
not the authors'."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import shutil
import signal
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import data.sources.cifar10
from data.file_cache import Changed, FileCache
from data.sources.cifar10 import BINARY, CLASSES, PICKLES, PYTHON, Cifar10
from runtime import download
from runtime.errors import UserError
from tests.helpers.file_server import Fault, publish, serving, table_row

SPLITS = ("train", "validation", "test")
BATCHES = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
AT = "/theirs.tar.gz"
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
    for name in ("absent", "empty"):
        message = refused(memory, tmp_path / name)
        for part in (
            "cifar-10-binary.tar.gz: no network: www.cs.toronto.edu does not answer",
            "download https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz (170 MB, sha256 "
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd) where there is a "
            f"network, and put it at {tmp_path / name}/cifar-10-binary.tar.gz.",
            "data=folder",
            "Meanwhile, with no download: python train.py +experiment=transfer_demo",
        ):
            assert part in message, part
        assert [p.suffix for p in (tmp_path / name).iterdir()] == [".lock"] * 2
    (tmp_path / "file").write_text("")
    assert "cannot be written (File exists)" in refused(memory, tmp_path / "file")


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
    message = refused(memory, tmp_path / "bin")
    assert "data_batch_5.bin missing" in message
    assert f"Remove the other batches from {folder}, and they are made again." in message


# Fetched and unpacked


def packed(path: Path, folder: Path, before: Sequence[tarfile.TarInfo] = ()) -> bytes:
    """A .tar.gz of a folder's files beside others, as the authors': FOLDER/NAME; before them empty
    ones, or links."""
    (folder / "readme.html").write_text("of the authors")
    with tarfile.open(path, "w:gz") as tar:
        for member in before:
            tar.addfile(member)
        tar.add(folder, folder.name)
    return path.read_bytes()


@pytest.fixture
def server(made, tmp_path, monkeypatch):
    """It has an archive of the binary version of what was made."""
    data = packed(tmp_path / "theirs.tar.gz", tmp_path / "bin/cifar-10-batches-bin")
    with serving({AT: data}) as running:
        publish(monkeypatch, tmp_path, {BINARY: table_row(running, AT)})
        yield running


def assert_made(source: Cifar10, made: tuple[np.ndarray, np.ndarray]) -> None:
    assert all(np.array_equal(source.read_image(k), image) for k, image in enumerate(made[0]))
    assert list(source.labels) == made[1].tolist()


def seen(folder: Path) -> list[str]:
    return sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix != ".lock"
    )


def batches_in(folder: str, end: str = "") -> list[str]:
    return [folder, *(f"{folder}/{name}{end}" for name in BATCHES)]


def test_a_missing_set_is_fetched_and_unpacked_and_its_archive_removed(
    made, tmp_path, memory, server, capsys, caplog
):
    caplog.set_level("INFO")
    for _ in range(2):
        assert_made(Cifar10(memory, str(tmp_path / "new")), made)
    assert len(server.asked) == 1 and f"{BINARY}: 100%" in capsys.readouterr().err
    assert "unpacking" in caplog.text
    assert seen(tmp_path / "new") == batches_in("cifar-10-batches-bin", ".bin")


@pytest.mark.parametrize("left", [(), ("readme.html",), ("empty/", ".DS_Store"), ("link@",)])
def test_a_folder_that_was_emptied_is_made_again(made, tmp_path, memory, server, left):
    """What still lies in it is put aside, as it is: a link that leads nowhere now is one of it."""
    inside = tmp_path / "new/cifar-10-batches-bin"
    inside.mkdir(parents=True)
    for name in left:
        if name[-1] == "/":
            (inside / name).mkdir()
        elif name[-1] == "@":
            (inside / name).symlink_to("/not/mounted")
        else:
            (inside / name).write_text("kept")
    for _ in range(2):
        assert_made(Cifar10(memory, str(tmp_path / "new")), made)
    aside = list((tmp_path / "new").glob(f"{inside.name}.before_*"))
    kept = {path.name for each in aside for path in each.iterdir()}
    assert len(aside) == bool(left) and kept == {name.rstrip("/") for name in left}
    here = {path.name for path in inside.iterdir()}
    assert here == {Path(name).name for name in batches_in(inside.name, ".bin")} - {inside.name}
    assert len(server.asked) == 1


def test_an_archive_that_is_cut_is_gone_on_with(made, tmp_path, memory, server):
    server.faults[AT] = Fault(cut=100_000, times=1)
    assert_made(Cifar10(memory, str(tmp_path / "new")), made)
    assert [asked for _, _, asked in server.asked] == [None, "bytes=100000-"]


def test_an_archive_of_another_checksum_is_put_aside(made, tmp_path, memory, server):
    right, root = server.files[AT], tmp_path / "new"
    server.files[AT] = right[:-1] + bytes([right[-1] ^ 1])
    message = refused(memory, root)
    assert "its sha256 is" in message and f"put aside as {BINARY}.wrong" in message
    assert [name for name in seen(root) if name[0] != "."] == [f"{BINARY}.wrong"]
    server.files[AT] = right
    assert_made(Cifar10(memory, str(root)), made)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("version", ["bin", "py"])
def test_an_archive_that_lies_there_is_unpacked_and_kept(
    made, tmp_path, memory, server, version, named
):
    """data.path may be the archive."""
    archive = tmp_path / "own" / (BINARY if version == "bin" else PYTHON)
    archive.parent.mkdir()
    shutil.copy(tmp_path / "theirs.tar.gz", archive)
    if version == "py":
        packed(archive, tmp_path / "py/cifar-10-batches-py")
    for _ in range(2):
        assert_made(Cifar10(memory, str(archive if named else archive.parent)), made)
    end = ".bin" if version == "bin" else ""
    folder = batches_in(f"cifar-10-batches-{version}", end)
    assert seen(archive.parent) == sorted([archive.name, *folder]) and not server.asked


@pytest.mark.parametrize("version", ["bin", "py"])
def test_a_damaged_archive_is_one_message(made, tmp_path, memory, server, version):
    archive = tmp_path / "own" / (BINARY if version == "bin" else PYTHON)
    archive.parent.mkdir()
    folder = next((tmp_path / version).iterdir())
    whole = packed(archive, folder)
    (folder / f"data_batch_4{'.bin' if version == 'bin' else ''}").unlink()
    lacking = packed(archive, folder)
    for content in (whole[: len(whole) // 2], b"", b"<html>", lacking):
        archive.write_bytes(content)
        message = refused(memory, archive.parent)
        assert str(archive) in message
        assert "Remove it, and the same command fetches the official one." in message
        assert seen(archive.parent) == [archive.name]
    assert version == "bin" or "5 of the 6 files that belong in it" in message
    archive.unlink()
    assert_made(Cifar10(memory, str(archive.parent)), made)


def test_a_hostile_archive_writes_nothing_but_the_batches(made, tmp_path, memory):
    """Names that lead elsewhere, also by way of a link, and links in the places of a batch and of
    the folder."""
    inside, archive, outside = (
        "cifar-10-batches-py",
        tmp_path / "own" / PYTHON,
        tmp_path / "outside",
    )
    for folder in (archive.parent, outside):
        folder.mkdir()
    (outside / "kept").write_text("kept")
    names = ("../x", "../../x", f"{outside}/x", "x", f"{inside}/../../x", f"{inside}/linked/x")
    names += (f"{inside}/data_batch_6", f"{inside}/test_batch/x", f"./{inside}/x")
    hostile = [tarfile.TarInfo(name) for name in names]
    for name, kind, to in (
        (inside, tarfile.SYMTYPE, outside),
        (f"{inside}/linked", tarfile.SYMTYPE, outside),
        (f"{inside}/data_batch_1", tarfile.SYMTYPE, outside / "kept"),
        (f"{inside}/data_batch_2", tarfile.LNKTYPE, outside / "kept"),
        (f"{inside}/data_batch_3", tarfile.FIFOTYPE, ""),
    ):
        link = tarfile.TarInfo(name)
        link.type, link.linkname = kind, str(to)
        hostile = [link, *hostile]
    packed(archive, tmp_path / "py" / inside, hostile)
    before = seen(tmp_path)
    assert_made(Cifar10(memory, str(archive.parent)), made)
    remembered = {name for name in seen(tmp_path) if name.startswith(f"{memory.folder.name}/")}
    unpacked = {f"own/{name}" for name in batches_in(inside)}
    assert set(seen(tmp_path)) == {*before, *unpacked, *remembered}
    assert (outside / "kept").read_text() == "kept"
    assert not any(p.is_symlink() for p in archive.parent.rglob("*"))


def _open(path: Path, table: Path, killed: bool) -> None:
    """In a process of its own, which may be killed when all is unpacked and not yet renamed."""
    download.TABLE, data.sources.cifar10.IMAGES = table, N
    if killed:
        rename = os.replace

        def replace(source, target) -> None:
            if Path(target).name == "cifar-10-batches-bin":
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        os.replace = replace
    Cifar10(FileCache(path.with_name("memory")), str(path))


def processes(n: int, *arguments) -> list[int]:
    """Their exit codes."""
    context = multiprocessing.get_context("spawn")
    at_once = [context.Process(target=_open, args=arguments) for _ in range(n)]
    for process in at_once:
        process.start()
    for process in at_once:
        process.join()
    return [process.exitcode for process in at_once]


def test_one_that_is_killed_before_the_folder_has_its_name(made, tmp_path, memory, server):
    root = tmp_path / "new"
    assert processes(1, root, download.TABLE, True) == [-signal.SIGKILL]
    aside = ".cifar-10-batches-bin.unpacking"
    assert seen(root) == sorted([*batches_in(aside, ".bin"), BINARY])
    (root / aside / "test_batch.bin").rename(root / aside / "stray.bin")  # a part is no set
    assert_made(Cifar10(memory, str(root)), made)
    assert seen(root) == sorted([*batches_in("cifar-10-batches-bin", ".bin"), BINARY])
    assert len(server.asked) == 1


def test_cells_of_a_sweep_fetch_and_unpack_it_once(made, tmp_path, memory, server):
    server.faults[AT] = Fault(rate=1_000_000)
    assert processes(3, tmp_path / "new", download.TABLE, False) == [0, 0, 0]
    assert len(server.asked) == 1
    assert_made(Cifar10(memory, str(tmp_path / "new")), made)
    assert seen(tmp_path / "new") == batches_in("cifar-10-batches-bin", ".bin")
