"""What is remembered of files: read once, found again, and never trusted where the file may have
changed."""

from __future__ import annotations

import hashlib
import json
import os
import time

import pytest

import data.file_cache
from data.file_cache import Changed, FileCache
from runtime.errors import UserError
from runtime.files import write_sealed


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "images" / f"{k}.bin" for k in range(5)]
    paths[0].parent.mkdir()
    for k, path in enumerate(paths):
        path.write_bytes(bytes([k]) * 100)
    return paths


def counted(calls):
    def compute(path):
        calls.append(path.name)
        return len(path.read_bytes())

    return compute


def test_sha256_is_that_of_hashlib(files, tmp_path):
    assert FileCache(tmp_path / "memory").sha256(files) == [
        hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    ]


def test_an_unchanged_file_is_read_once_and_a_changed_one_again(files, tmp_path, monkeypatch):
    monkeypatch.setattr(data.file_cache, "FRESH", -1e9)  # as if all were old
    calls = []
    assert FileCache(tmp_path / "memory").look_up(files, "size", counted(calls)) == [100] * 5
    assert sorted(calls) == [f"{k}.bin" for k in range(5)]
    files[3].write_bytes(b"longer" * 50)
    assert FileCache(tmp_path / "memory").look_up(files, "size", counted(calls)) == [
        100,
        100,
        100,
        300,
        100,
    ]
    assert calls[5:] == ["3.bin"]
    FileCache(tmp_path / "memory").look_up(files, "another value", counted(calls))
    assert len(calls) == 11


def test_a_change_of_the_same_size_and_time_is_seen(files, tmp_path, monkeypatch):
    """rsync -t and cp -p put the time of the content back; the time of the attributes gives it
    away."""
    monkeypatch.setattr(data.file_cache, "FRESH", -1e9)
    memory, stat = FileCache(tmp_path / "memory"), files[0].stat()
    before = memory.sha256(files)
    files[0].write_bytes(b"x" * 100)
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = FileCache(memory.folder).sha256(files)
    assert after[0] != before[0] and after[1:] == before[1:]


def test_a_file_that_changed_just_now_is_not_trusted(files, tmp_path):
    calls = []
    for _ in range(2):
        FileCache(tmp_path / "memory").look_up(files, "size", counted(calls))
    assert len(calls) == 10


def test_what_could_not_be_told_is_tried_again(files, tmp_path, monkeypatch):
    monkeypatch.setattr(data.file_cache, "FRESH", -1e9)
    memory = FileCache(tmp_path / "memory")
    assert memory.look_up(files, "size", lambda path: None if path.stem in "13" else 7) == [
        7,
        None,
        7,
        None,
        7,
    ]
    calls = []
    assert memory.look_up(files, "size", counted(calls)) == [7, 100, 7, 100, 7] and sorted(
        calls
    ) == ["1.bin", "3.bin"]


def test_links_share_what_is_known_of_their_file(files, tmp_path, monkeypatch):
    monkeypatch.setattr(data.file_cache, "FRESH", -1e9)
    (tmp_path / "images/folder").symlink_to(tmp_path / "images")
    (tmp_path / "images/link.bin").symlink_to(files[2])
    memory, calls = FileCache(tmp_path / "memory"), []
    memory.look_up(files, "size", counted(calls))
    aliases = [
        tmp_path / "images/folder/0.bin",
        tmp_path / "images/link.bin",
        tmp_path / "images/../images/4.bin",
    ]
    assert memory.look_up(aliases, "size", counted(calls)) == [100] * 3 and len(calls) == 5


def test_an_interrupted_start_goes_on_from_there(files, tmp_path, monkeypatch):
    monkeypatch.setattr(data.file_cache, "FRESH", -1e9)
    monkeypatch.setattr(data.file_cache, "KEPT_EVERY", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    memory = FileCache(tmp_path / "memory")

    def interrupted(path):
        if path.stem == "3":
            raise KeyboardInterrupt
        return 7

    with pytest.raises(KeyboardInterrupt):
        memory.look_up(files, "size", interrupted)
    calls = []
    assert memory.look_up(files, "size", counted(calls)) == [7, 7, 7, 100, 100] and sorted(
        calls
    ) == ["3.bin", "4.bin"]


def test_a_file_that_is_gone_is_one_message(files, tmp_path):
    files[2].unlink()
    with pytest.raises(UserError, match="2.bin: cannot be opened"):
        FileCache(tmp_path / "memory").sha256(files)


# What changes meanwhile


def test_a_file_is_read_as_it_was_hashed_or_not_at_all(files, tmp_path):
    memory = FileCache(tmp_path / "memory")
    memory.sha256(files)
    assert [memory.read_bytes(path) for path in files] == [bytes([k]) * 100 for k in range(5)]
    files[1].write_bytes(b"y" * 100)
    files[2].unlink()
    for path, says in (
        (files[1], "changed between being hashed and being decoded"),
        (files[2], "cannot be opened any more"),
    ):
        with pytest.raises(Changed, match=rf"{path} {says}.*run the same command again"):
            memory.read_bytes(path)
        with pytest.raises(Changed, match=f"{path} {says}"), memory.unchanged(path):
            pass


@pytest.mark.parametrize("when", ["before", "inside", "and back", "gone"])
def test_what_is_read_of_a_file_is_of_the_content_that_was_hashed(files, tmp_path, when):
    """By a reader that takes a path. Also where the file has its old content again afterwards, and
    where the reader fails."""
    path, memory, other = files[0], FileCache(tmp_path / "memory"), b"x" * 100
    memory.sha256(files)
    with memory.unchanged(path):
        whole = path.read_bytes()
    if when == "before":
        path.write_bytes(other)
    for error in (False, True):
        with pytest.raises(Changed, match=str(path)), memory.unchanged(path):
            if when != "before":
                path.write_bytes(other)
            assert path.read_bytes() == other
            if when == "gone":
                path.unlink()
            if when == "and back":
                time.sleep(0.02)  # a tick of the clock of files
                path.write_bytes(whole)
            if error:
                raise UserError("broken")
        if when in ("inside", "gone"):
            path.write_bytes(whole)


def test_a_file_that_is_unchanged_keeps_its_own_error(files, tmp_path):
    memory = FileCache(tmp_path / "memory")
    memory.sha256(files)
    with pytest.raises(UserError, match="broken"), memory.unchanged(files[0]):
        raise UserError("broken")


def test_values_of_two_contents_are_told(files, tmp_path):
    """Such as the range of a file and its sha256; another start begins anew."""
    memory = FileCache(tmp_path / "memory")
    memory.look_up(files, "size", counted([]))
    files[4].write_bytes(b"longer" * 50)
    memory.sha256(files[:4])
    with pytest.raises(Changed, match=str(files[4])):
        memory.sha256(files)
    memory = FileCache(memory.folder)
    memory.look_up(files, "size", counted([]))
    memory.sha256(files)


def test_a_file_that_changes_while_it_is_looked_at_is_told(files, tmp_path):
    def slow(path):
        found = len(path.read_bytes())
        if path == files[2]:
            path.write_bytes(b"z" * 77)
        return found

    with pytest.raises(Changed, match=f"{files[2]} changed while it was read"):
        FileCache(tmp_path / "memory").look_up(files, "size", slow)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-40],
        lambda text: "",
        lambda text: text.replace("100", "101"),
        lambda text: "[]",
    ],
)
def test_a_damaged_store_is_put_aside_and_made_anew(files, tmp_path, monkeypatch, caplog, spoil):
    monkeypatch.setattr(data.file_cache, "FRESH", -1e9)
    FileCache(tmp_path / "memory").look_up(files, "size", counted([]))
    (store,) = (tmp_path / "memory").glob("*.json")
    store.write_text(spoil(store.read_text()))
    for known in (0, 5):
        calls = []
        assert (
            FileCache(tmp_path / "memory").look_up(files, "size", counted(calls)) == [100] * 5
            and len(calls) == 5 - known
        )
    assert (
        caplog.text.count(f"{store} is damaged") == 1
        and store.with_name(f"{store.name}.damaged").exists()
    )


def test_a_wrong_hash_that_is_remembered_is_forgotten(files, tmp_path, monkeypatch):
    """As after a change that the file's time does not show: the next start has to find it."""
    monkeypatch.setattr(data.file_cache, "FRESH", -1e9)
    right = FileCache(tmp_path / "memory").sha256(files)
    (store,) = (tmp_path / "memory").glob("*.json")
    known = json.loads(store.read_text())
    known.pop("sha256 of the rest")
    known["0.bin"][1] = "0" * 64
    write_sealed(store, known)
    memory = FileCache(tmp_path / "memory")
    assert memory.sha256(files) != right
    with pytest.raises(Changed):
        memory.read_bytes(files[0])
    assert FileCache(tmp_path / "memory").sha256(files) == right
