"""File systems that know no locks, no sync of a directory, no reserving of space."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from data.memory_map import _reserve
from runtime import lock_file
from runtime.download import alone
from runtime.errors import Busy, UserError
from runtime.files import locked, write_atomically, write_directory

WITHOUT = ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EINVAL"]


@pytest.fixture
def no_flock(monkeypatch, request):
    number = getattr(errno, getattr(request, "param", "ENOLCK"))

    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    monkeypatch.setattr(lock_file, "BEAT", 0.05)
    monkeypatch.setattr(lock_file, "GONE", 0.4)
    monkeypatch.setattr(lock_file, "LOOK", 0.01)
    monkeypatch.setattr(lock_file, "SETTLE", 0.1)
    monkeypatch.setattr(lock_file, "_told", set())
    return os.strerror(number)


@pytest.mark.parametrize("no_flock", WITHOUT, indirect=True)
def test_a_file_stands_for_the_lock_and_one_message_says_so(no_flock, tmp_path, caplog):
    path = tmp_path / "run" / ".lock"
    for _ in range(2):
        with locked(path, "busy"):
            (held,) = [p for p in path.parent.iterdir() if p != path]
            assert held.name == ".lock.held"
            assert held.read_text().startswith(f"process {os.getpid()} on {os.uname().nodename}, ")
            holder = rf"busy \({held}: held by process {os.getpid()} on"
            with pytest.raises(Busy, match=holder), locked(path, "busy"):
                pass
        assert not held.exists()
    assert caplog.messages == [
        f"the file system of {path.parent} has no locks ({no_flock}): files such as .lock.held, "
        "with host, process and heartbeat, stand for them"
    ]


def test_it_is_waited_for(no_flock, tmp_path):
    order = []

    def first() -> None:
        with locked(tmp_path / ".lock"):
            entered.set()
            time.sleep(0.6)  # longer than one without a heartbeat is left
            order.append("first")

    entered = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(5)
    with locked(tmp_path / ".lock"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("busy", [None, "busy"])
def test_a_holder_that_died_is_followed(no_flock, tmp_path, caplog, busy):
    caplog.set_level("INFO")
    (tmp_path / ".lock.held").write_text("process 7 on elsewhere, 12345678\n41\n")
    with locked(tmp_path / ".lock", busy):
        assert f"process {os.getpid()}" in (tmp_path / ".lock.held").read_text()
    assert "held: process 7 on elsewhere, 12345678 is gone" in caplog.text
    assert not (tmp_path / ".lock.held").exists()


def test_one_that_stood_still_and_lost_it_is_told(no_flock, tmp_path, caplog):
    with locked(tmp_path / ".lock"):
        (tmp_path / ".lock.held").write_text("process 7 on elsewhere, 12345678\n")
        time.sleep(0.3)
    assert "was taken over by another process" in caplog.text
    assert (tmp_path / ".lock.held").exists()  # it is the other's


def test_where_no_file_can_be_written_either_the_message_has_a_cure(no_flock, tmp_path):
    name = "x" * 249 + ".lock"  # with .held it is too long
    (tmp_path / name).touch()
    cure = r"cannot be written .*run.root and run.cache"
    with pytest.raises(UserError, match=cure), locked(tmp_path / name):
        pass


def test_a_fetch_has_its_lock(no_flock, tmp_path):
    with alone(tmp_path / "weights.pt"):
        assert (tmp_path / ".weights.pt.lock.held").exists()


def test_another_error_of_a_lock_is_none_of_these(monkeypatch, tmp_path):
    def refused(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path / ".lock"):
        pass


@pytest.mark.parametrize("name", ["EINVAL", "ENOTSUP", "EBADF", "ENOSYS"])
def test_a_directory_that_cannot_be_synced_is_written_all_the_same(monkeypatch, tmp_path, name):
    number, real = getattr(errno, name), os.fsync

    def fsync(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(number, os.strerror(number))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "a", "text")
    write_directory(tmp_path / "b", {"c": b"1"})
    assert (tmp_path / "a").read_text() == "text" and (tmp_path / "b/c").read_bytes() == b"1"


def test_a_disk_that_fails_to_sync_is_no_such_file_system(monkeypatch, tmp_path):
    def fsync(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(tmp_path / "a", "text")
    assert not list(tmp_path.iterdir())


def test_space_that_cannot_be_reserved_is_written(monkeypatch, tmp_path: Path):
    def refused(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refused)
    images = _reserve(tmp_path / "map", (2, 4, 4, 1))
    images[:] = 7
    images.flush()
    assert (np.load(tmp_path / "map") == 7).all()
