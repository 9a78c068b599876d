"""EuroSAT: fetched and unpacked whole or not at all, taken as it is where it is there, and drawn
into splits class by class."""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import shutil
import signal
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import data.sources.eurosat
from data.file_cache import FileCache
from data.memory_map import open_memory_map
from data.settings import DataSettings
from data.sources.eurosat import COUNTS, EuroSat, EuroSatBands
from runtime import download
from runtime.errors import UserError
from tests.helpers.caches import new_cache
from tests.helpers.file_server import Fault, publish, serving, table_row

AT, ZIP = "/theirs.zip", "EuroSAT.zip"
FEW = {"Forest": 20, "River": 10, "SeaLake": 10}  # images of a class here
SPLITS = ("train", "validation", "test")


def colour(name: str, k: int) -> tuple[int, int, int]:
    """Of image k of a class: no two alike."""
    return 80 * sorted(FEW).index(name), 10 * k, 255 - 12 * k


def files() -> dict[str, bytes]:
    """The JPEGs by CLASS/NAME, each of one colour."""
    found = {}
    for name, count in FEW.items():
        for k in range(count):
            buffer = io.BytesIO()
            Image.new("RGB", (64, 64), colour(name, k)).save(buffer, "jpeg", quality=100)
            found[f"{name}/{name}_{k + 1}.jpg"] = buffer.getvalue()
    return found


def archive() -> bytes:
    """A zip in the form of EuroSAT.zip: 2750/CLASS/CLASS_N.jpg, folders as entries of their own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for folder in ("2750/", *(f"2750/{name}/" for name in FEW)):
            opened.writestr(folder, "")
        for name, content in files().items():
            opened.writestr(f"2750/{name}", content)
    return buffer.getvalue()


def write(folder: Path) -> Path:
    for name, content in files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def memory(tmp_path) -> FileCache:
    return new_cache()


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(data.sources.eurosat, "COUNTS", FEW)


@pytest.fixture
def server(tmp_path, monkeypatch):
    with serving({AT: archive()}) as running:
        publish(monkeypatch, tmp_path, {ZIP: table_row(running, AT)})
        yield running


def refused(memory: FileCache, root: Path) -> str:
    with pytest.raises(UserError) as raised:
        EuroSat(memory, str(root))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def assert_written(source: EuroSat) -> None:
    """Each image has the one colour that its name says."""
    assert source.classes == sorted(FEW) and len(source) == 40
    for item, path in enumerate(source.files):
        name, number = path.stem.split("_")
        pixels = np.asarray(source.read_image(item)).astype(int)
        assert pixels.shape == (64, 64, 3)
        assert abs(pixels - colour(name, int(number) - 1)).max() <= 2
        assert source.classes[source.labels[item]] == path.parent.name == name


def seen(folder: Path) -> set[str]:
    """The files below it."""
    found = (p for p in folder.rglob("*") if p.is_file() or p.is_symlink())
    return {p.relative_to(folder).as_posix() for p in found if p.suffix != ".lock"}


UNPACKED = {f"2750/{name}" for name in files()}


def test_the_counts_are_the_papers():
    assert sum(COUNTS.values()) == 27_000 and len(COUNTS) == 10
    assert {2000, 2500, 3000} == set(COUNTS.values())


def test_it_is_fetched_and_unpacked_and_its_archive_removed(
    tmp_path, memory, server, capsys, caplog
):
    for _ in range(2):
        assert_written(EuroSat(memory, str(tmp_path / "new")))
    assert len(server.asked) == 1 and f"{ZIP}: 100%" in capsys.readouterr().err
    assert seen(tmp_path / "new") == UNPACKED and not caplog.records


RIGHT = 2000  # by so much the right half is brighter


def bands_of(name: str, k: int) -> np.ndarray:
    """Of image k of a class, [64, 64, 13]: each band of one value, and right of it of another."""
    values = np.zeros((64, 64, 13), np.uint16)
    values[:, 32:] += RIGHT
    return values + (1000 * sorted(FEW).index(name) + 40 * k + 7 * np.arange(13)).astype(np.uint16)


def test_the_13_bands_come_from_their_own_archive(tmp_path, memory, monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name, count in FEW.items():
            for k in range(count):
                file = io.BytesIO()
                tifffile.imwrite(
                    file, bands_of(name, k), photometric="minisblack", planarconfig="contig"
                )
                opened.writestr(f"EuroSAT_MS/{name}/{name}_{k + 1}.tif", file.getvalue())
    write(tmp_path / "new/2750")  # in colour, which is another set
    with serving({AT: buffer.getvalue()}) as running:
        publish(monkeypatch, tmp_path, {"EuroSAT_MS.zip": table_row(running, AT)})
        source = EuroSatBands(memory, str(tmp_path / "new"))
    assert len(source) == 40 and source.classes == sorted(FEW)
    assert {path.suffix for path in source.files} == {".tif"}
    settings = DataSettings(EuroSatBands, 8, 13, True)
    images = open_memory_map(source, settings, tmp_path / "cache")[0]
    train = source.splits["train"]
    first = [
        int(bands_of(p.parent.name, int(p.stem.split("_")[1]) - 1)[0, 0, 0]) for p in source.files
    ]
    low, high = min(first[i] for i in train), max(first[i] for i in train) + RIGHT
    for item, value in enumerate(first):
        for column, there in ((0, value), (-1, value + RIGHT)):  # what is between is of both
            expected = np.clip((there - low) / (high - low), 0, 1) * 255
            assert np.abs(images[item][:, column] - expected).max() <= 0.51
    assert source.fingerprint != EuroSat(memory, str(tmp_path / "new")).fingerprint


def test_an_archive_that_is_cut_is_gone_on_with(tmp_path, memory, server):
    server.faults[AT] = Fault(cut=5000, times=1)
    assert_written(EuroSat(memory, str(tmp_path / "new")))
    assert [asked for _, _, asked in server.asked] == [None, "bytes=5000-"]


def test_an_archive_of_another_checksum_is_put_aside(tmp_path, memory, server):
    right, root = server.files[AT], tmp_path / "new"
    server.files[AT] = right[:-1] + bytes([right[-1] ^ 1])
    message = refused(memory, root)
    assert "its sha256 is" in message and f"put aside as {ZIP}.wrong" in message
    assert not (root / "2750").exists() and (root / f"{ZIP}.wrong").is_file()
    server.files[AT] = right
    assert_written(EuroSat(memory, str(root)))


def test_without_a_network_it_says_what_to_put_where(tmp_path, memory):
    message = refused(memory, tmp_path / "new")
    for part in (
        "EuroSAT.zip: no network: huggingface.co does not answer",
        "download https://huggingface.co/datasets/torchgeo/eurosat/resolve/",
        f"and put it at {tmp_path}/new/EuroSAT.zip.",
        "Meanwhile, with no download: python train.py +experiment=transfer_demo",
    ):
        assert part in message, part


def test_an_archive_that_lies_there_is_unpacked_and_kept(tmp_path, memory, server):
    (tmp_path / ZIP).write_bytes(server.files[AT][:-1])
    message = refused(memory, tmp_path)
    assert f"{tmp_path}/EuroSAT.zip has" in message and "Remove it, and the same" in message
    assert not (tmp_path / "2750").exists()
    (tmp_path / ZIP).write_bytes(server.files[AT])
    assert_written(EuroSat(memory, str(tmp_path)))
    assert (tmp_path / ZIP).is_file() and not server.asked


@pytest.mark.parametrize("place", ["2750", "EuroSAT_RGB", ""])
def test_a_folder_that_is_there_is_taken_as_it_is(tmp_path, memory, place, caplog):
    write(tmp_path / place)
    source = EuroSat(memory, str(tmp_path))
    assert_written(source)
    assert not caplog.records


def test_another_number_of_images_and_a_missing_class_are_told(tmp_path, memory, caplog):
    write(tmp_path / "2750")
    shutil.rmtree(tmp_path / "2750/River")
    (tmp_path / "2750/Forest/Forest_7.jpg").unlink()
    (tmp_path / "2750/Lake").mkdir()
    for k in range(3):
        Image.new("RGB", (64, 64), (k, 0, 0)).save(tmp_path / f"2750/Lake/Lake_{k}.jpg")
    assert len(EuroSat(memory, str(tmp_path))) == 32
    [line] = [record.getMessage() for record in caplog.records]
    assert line == (
        f"{tmp_path}/2750: 32 images, and EuroSAT has 40: Forest 19 of 20, Lake 3 of 0, "
        f"River 0 of 10; remove the classes from {tmp_path}/2750, and data.root={tmp_path} is made "
        "again"
    )


@pytest.mark.parametrize("left", ["2750/Forest/.DS_Store", "2750/notes.txt", "Forest/notes.txt"])
@pytest.mark.parametrize("place", ["2750", "EuroSAT_RGB", ""])
def test_a_folder_that_was_emptied_is_made_again(tmp_path, memory, server, place, left):
    """What still lies in it is put aside, and what lies beside it stays."""
    (tmp_path / place / "Forest").mkdir(parents=True)
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).write_text("kept")
    for _ in range(2):
        assert_written(EuroSat(memory, str(tmp_path)))
    found = {re.sub(r"^2750\.before_\d+/", "2750/", name) for name in seen(tmp_path)}
    assert found == {"downloads.yaml", left, *UNPACKED} and len(server.asked) == 1


def test_what_cannot_be_split_names_the_folder_to_remove(tmp_path, memory):
    """In EuroSAT's own settings."""
    folder = write(tmp_path / "2750")
    for k in range(2, 11):
        (folder / f"River/River_{k}.jpg").unlink()
    message = refused(memory, tmp_path)
    assert "class River has a single image" in message
    again = f" Or remove the classes from {folder}, and data.root={tmp_path} is made again."
    assert message.endswith(again)


def test_splits_are_drawn_class_by_class(tmp_path, memory):
    source = EuroSat(memory, str(write(tmp_path / "2750").parent))
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1)):
        counts = Counter(source.classes[source.labels[item]] for item in source.splits[split])
        assert counts == {name: share * count for name, count in FEW.items()}
    assert sorted(item for split in SPLITS for item in source.splits[split]) == list(range(40))


def test_where_it_lies_is_no_part_of_what_it_is(tmp_path):
    def fingerprint(root: Path, **settings) -> str:
        reader = partial(EuroSat, root=str(root), **settings)
        return DataSettings(reader, 64, 3, True).open_reader(tmp_path / "cache").fingerprint

    places = [write(tmp_path / "a/2750").parent, write(tmp_path / "b/EuroSAT_RGB").parent]
    [first, *others] = [fingerprint(root) for root in [*places, write(tmp_path / "c")]]
    assert set(others) == {first}
    assert len({first, *(fingerprint(places[0], **{s: 0.2}) for s in SPLITS[1:])}) == 3


def test_a_hostile_archive_writes_nothing_but_the_images(tmp_path, memory, monkeypatch):
    """Names that lead elsewhere, also by way of a link. One that has a link in an image's place is
    refused."""
    outside, root = tmp_path / "outside", tmp_path / "own"
    outside.mkdir()
    root.mkdir()
    names = ("../x.jpg", "../../x.jpg", f"{outside}/x.jpg", "2750/../../x.jpg", "x.jpg")
    names += ("2750/Forest/../../../x.jpg", "2750/Other/x.jpg", "2750/Forest/x.py", "Forest/x.jpg")
    names += ("2750/Forest/linked/x.jpg", r"2750/Forest/..\..\x.jpg", "/2750/Forest/Forest_1.jpg")

    def packed(*links: str) -> None:
        with zipfile.ZipFile(root / ZIP, "w") as opened:
            for name in ("2750/Forest/linked", *links):
                entry = zipfile.ZipInfo(name)
                entry.external_attr = 0o120777 << 16
                opened.writestr(entry, str(outside))
            for name in names:
                opened.writestr(name, "x")
            for name, content in files().items():
                if f"2750/{name}" not in links:
                    opened.writestr(f"2750/{name}", content)
        with serving({AT: (root / ZIP).read_bytes()}) as server:
            publish(monkeypatch, tmp_path, {ZIP: table_row(server, AT)})

    packed("2750/Forest/Forest_3.jpg")
    assert "holds 39 of the 40 files that belong in it" in refused(memory, root)
    assert seen(root) == {ZIP}
    packed()
    assert_written(EuroSat(memory, str(root)))
    assert seen(root) == {ZIP, *UNPACKED} and not seen(outside)
    assert seen(tmp_path) == {"downloads.yaml", *(f"own/{name}" for name in seen(root))}


def _open_and_die(root: Path, table: Path) -> None:
    """Killed when all is unpacked and has not its name yet."""
    download.TABLE, data.sources.eurosat.COUNTS = table, FEW
    rename = os.replace

    def replace(source, target) -> None:
        if Path(target).name == "2750":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = replace
    EuroSat(FileCache(root.with_name("memory")), str(root))


def test_one_that_is_killed_before_the_folder_has_its_name(tmp_path, memory, server):
    root = tmp_path / "new"
    process = multiprocessing.get_context("spawn").Process(
        target=_open_and_die, args=(root, download.TABLE)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = {re.sub("^2750", ".2750.unpacking", name) for name in UNPACKED}
    assert seen(root) == {ZIP, *left}
    (root / min(left)).rename(root / ".2750.unpacking/Forest/stray.jpg")
    assert_written(EuroSat(memory, str(root)))
    assert seen(root) == {ZIP, *UNPACKED} and len(server.asked) == 1
