"""What is remembered of files: read once, found again, and never trusted where the file may have changed."""

from __future__ import annotations

import hashlib
import os

import pytest

import data.memory
from data.memory import Memory
from runtime.errors import UserError


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
    assert Memory(tmp_path / "memory").sha256(files) == [hashlib.sha256(p.read_bytes()).hexdigest() for p in files]


def test_an_unchanged_file_is_read_once_and_a_changed_one_again(files, tmp_path, monkeypatch):
    monkeypatch.setattr(data.memory, "FRESH", -1e9)  # as if all were old
    calls = []
    assert Memory(tmp_path / "memory").of(files, "size", counted(calls)) == [100] * 5
    assert sorted(calls) == [f"{k}.bin" for k in range(5)]
    files[3].write_bytes(b"longer" * 50)
    assert Memory(tmp_path / "memory").of(files, "size", counted(calls)) == [100, 100, 100, 300, 100]
    assert calls[5:] == ["3.bin"]
    Memory(tmp_path / "memory").of(files, "another value", counted(calls))
    assert len(calls) == 11


def test_a_change_of_the_same_size_and_time_is_seen(files, tmp_path, monkeypatch):
    """rsync -t and cp -p put the time of the content back; the time of the attributes gives it away."""
    monkeypatch.setattr(data.memory, "FRESH", -1e9)
    memory, stat = Memory(tmp_path / "memory"), files[0].stat()
    before = memory.sha256(files)
    files[0].write_bytes(b"x" * 100)
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert memory.sha256(files)[0] != before[0] and memory.sha256(files)[1:] == before[1:]


def test_a_file_that_changed_just_now_is_not_trusted(files, tmp_path):
    calls = []
    for _ in range(2):
        Memory(tmp_path / "memory").of(files, "size", counted(calls))
    assert len(calls) == 10


def test_what_could_not_be_told_is_tried_again(files, tmp_path, monkeypatch):
    monkeypatch.setattr(data.memory, "FRESH", -1e9)
    memory = Memory(tmp_path / "memory")
    assert memory.of(files, "size", lambda path: None if path.stem in "13" else 7) == [7, None, 7, None, 7]
    calls = []
    assert memory.of(files, "size", counted(calls)) == [7, 100, 7, 100, 7] and sorted(calls) == ["1.bin", "3.bin"]


def test_links_share_what_is_known_of_their_file(files, tmp_path, monkeypatch):
    monkeypatch.setattr(data.memory, "FRESH", -1e9)
    (tmp_path / "images/folder").symlink_to(tmp_path / "images")
    (tmp_path / "images/link.bin").symlink_to(files[2])
    memory, calls = Memory(tmp_path / "memory"), []
    memory.of(files, "size", counted(calls))
    aliases = [tmp_path / "images/folder/0.bin", tmp_path / "images/link.bin", tmp_path / "images/../images/4.bin"]
    assert memory.of(aliases, "size", counted(calls)) == [100] * 3 and len(calls) == 5


def test_an_interrupted_start_goes_on_from_there(files, tmp_path, monkeypatch):
    monkeypatch.setattr(data.memory, "FRESH", -1e9)
    monkeypatch.setattr(data.memory, "KEPT_EVERY", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    memory = Memory(tmp_path / "memory")

    def interrupted(path):
        if path.stem == "3":
            raise KeyboardInterrupt
        return 7

    with pytest.raises(KeyboardInterrupt):
        memory.of(files, "size", interrupted)
    calls = []
    assert memory.of(files, "size", counted(calls)) == [7, 7, 7, 100, 100] and sorted(calls) == ["3.bin", "4.bin"]


def test_a_file_that_is_gone_is_one_message(files, tmp_path):
    files[2].unlink()
    with pytest.raises(UserError, match="2.bin: cannot be opened"):
        Memory(tmp_path / "memory").sha256(files)
