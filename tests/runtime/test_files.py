"""Files are whole or absent whenever the process dies, and a lock is held by one process that
lives."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime import files
from runtime.errors import UserError
from runtime.files import (
    locked,
    remove_directory,
    remove_leftovers,
    write_atomically,
    write_directory,
)
from runtime.log import RunLog, WandbSettings, read_metrics
from tests.helpers.kill_at import name_of, short


class Killed(BaseException):
    """Stands for SIGKILL: what handles an OSError does not run after it."""


@contextlib.contextmanager
def watched(monkeypatch, act: Callable[[int], object] = lambda n: None) -> Iterator[list[str]]:
    """Lists the operations on files. act(n) is called before the n-th, counted from 1, and may
    raise."""
    done: list[str] = []

    def before(kind: str, name: str | None) -> None:
        done.append(f"{kind} {name}")
        act(len(done))

    with monkeypatch.context() as patch:
        for kind, call in {"write": os.write, "fsync": os.fsync}.items():
            patch.setattr(
                os,
                kind,
                lambda fd, *data, kind=kind, call=call: (
                    before(kind, name_of(fd)),
                    call(fd, *data),
                )[1],
            )
        patch.setattr(
            os,
            "replace",
            lambda a, b, call=os.replace: (before("replace", short(str(b))), call(a, b))[1],
        )
        patch.setattr(
            shutil,
            "rmtree",
            lambda path, call=shutil.rmtree, **kw: (
                before("rmtree", short(str(path))),
                call(path, **kw),
            )[1],
        )
        yield done


def raises_at(number: int, error: BaseException) -> Callable[[int], None]:
    def act(n: int) -> None:
        if n == number:
            raise error

    return act


def content(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir()}


OLD, NEW = {"a": b"old a", "b": b"old b"}, {"a": b"new a", "c": b"new c" * 1000}


# One file


def test_a_file_is_synced_before_it_is_renamed_and_its_name_after(tmp_path, monkeypatch):
    with watched(monkeypatch) as done:
        write_atomically(tmp_path / "x", "text")
    folder = tmp_path.name
    assert done == [
        f"write {folder}/.x",
        f"fsync {folder}/.x",
        f"replace {folder}/x",
        f"fsync {short(str(tmp_path))}",
    ]
    assert (tmp_path / "x").read_text() == "text"


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_file_is_the_old_or_the_new_one(tmp_path, monkeypatch, number):
    write_atomically(tmp_path / "x", b"old")
    with pytest.raises(Killed), watched(monkeypatch, raises_at(number, Killed())):
        write_atomically(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == (b"new" if number == 4 else b"old")
    remove_leftovers(tmp_path)
    assert content(tmp_path).keys() == {"x"}


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize(
    "error, shown", [(errno.ENOSPC, UserError), (errno.EDQUOT, UserError), (errno.EIO, OSError)]
)
def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch, number, error, shown):
    write_atomically(tmp_path / "x", b"old")
    with (
        pytest.raises(shown, match="disk is full" if shown is UserError else None),
        watched(monkeypatch, raises_at(number, OSError(error, os.strerror(error)))),
    ):
        write_atomically(tmp_path / "x", b"new")
    assert content(tmp_path) == {"x": b"old"}


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:7]))
    data = bytes(range(256)) * 3
    write_atomically(tmp_path / "x", data)
    assert (tmp_path / "x").read_bytes() == data


def test_a_reader_never_sees_a_part(tmp_path):
    versions = [bytes([65 + k]) * (200_000 + 50_000 * k) for k in range(2)]
    write_atomically(tmp_path / "x", versions[0])
    stop, seen = threading.Event(), []

    def read():
        while not stop.is_set():
            seen.append((tmp_path / "x").read_bytes() in versions)

    reader = threading.Thread(target=read)
    reader.start()
    for k in range(60):
        write_atomically(tmp_path / "x", versions[k % 2])
    stop.set()
    reader.join()
    assert len(seen) > 10 and all(seen)


# A directory


def test_a_directory_is_synced_before_it_is_renamed_and_its_name_after(tmp_path, monkeypatch):
    with watched(monkeypatch) as done:
        write_directory(tmp_path / "d", {"a": b"1", "b": b"2"})
    done = [line for line in done if "rmtree" not in line]
    folder = tmp_path.name
    assert done == [
        "write .d/a",
        "fsync .d/a",
        "write .d/b",
        "fsync .d/b",
        f"fsync {folder}/.d",
        f"replace {folder}/d",
        f"fsync {short(str(tmp_path))}",
    ]
    assert content(tmp_path / "d") == {"a": b"1", "b": b"2"}


@pytest.mark.parametrize("there", [False, True])
def test_a_directory_is_whole_whenever_the_process_dies(tmp_path, monkeypatch, there):
    """For a kill at every operation: what remove_leftovers finds is the old directory or the new
    one, and nothing else."""
    number, outcomes = 0, []
    while True:
        number += 1
        parent = tmp_path / str(number)
        parent.mkdir()
        if there:
            write_directory(parent / "d", OLD)
        try:
            with watched(monkeypatch, raises_at(number, Killed())):
                write_directory(parent / "d", NEW)
        except Killed:
            remove_leftovers(parent)
            remove_leftovers(parent)
            outcomes.append(content(parent / "d") if (parent / "d").exists() else None)
            assert [p.name for p in parent.iterdir()] == ([] if outcomes[-1] is None else ["d"])
            continue
        break
    assert content(parent / "d") == NEW and [p.name for p in parent.iterdir()] == ["d"]
    first = OLD if there else None
    assert all(outcome in (first, NEW) for outcome in outcomes)
    assert outcomes[0] == first and outcomes[-1] == NEW and len(outcomes) >= 7


@pytest.mark.parametrize("error, shown", [(errno.ENOSPC, UserError), (errno.EIO, OSError)])
def test_a_directory_that_cannot_be_written_leaves_the_old_one_alone(
    tmp_path, monkeypatch, error, shown
):
    write_directory(tmp_path / "d", OLD)
    for number in range(2, 6):
        with (
            pytest.raises(shown),
            watched(monkeypatch, raises_at(number, OSError(error, os.strerror(error)))),
        ):
            write_directory(tmp_path / "d", NEW)
        assert content(tmp_path / "d") == OLD and [p.name for p in tmp_path.iterdir()] == ["d"]


def test_half_of_a_directory_that_is_removed_is_never_seen(tmp_path, monkeypatch):
    for number in (1, 2, 3):
        write_directory(tmp_path / "d", OLD)
        with pytest.raises(Killed), watched(monkeypatch, raises_at(number, Killed())):
            remove_directory(tmp_path / "d")
        assert not (tmp_path / "d").exists() or content(tmp_path / "d") == OLD
        remove_leftovers(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == (["d"] if number < 3 else [])
    write_directory(tmp_path / "d", OLD)
    remove_directory(tmp_path / "d")
    assert not list(tmp_path.iterdir())


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    ours = [".x.json.123", ".step_4.77", ".step_8.removed"]
    theirs = [
        ".git",
        ".gitignore",
        ".lock",
        ".env",
        ".hidden.txt",
        ".removed",
        ".step_4",
        "x.json.123",
        "visible",
    ]
    for name in [*ours, *theirs]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "inside").write_text(name)
    (tmp_path / ".metrics.jsonl.4242").write_text("half of")
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(theirs)
    assert all((tmp_path / name / "inside").read_text() == name for name in theirs)
    remove_leftovers(tmp_path / "absent")


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_sha256(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "x").write_bytes(data)
    assert files.sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()


# What is read again

SPOIL = [
    lambda c: c[: len(c) // 2],
    lambda c: b"",
    lambda c: bytes(len(c)),
    lambda c: b"\xff\xfe\0 nothing",
    lambda c: c[:-1],
    lambda c: c + b"more",
    *(lambda c, k=k: c[:k] + bytes([c[k] ^ 1]) + c[k + 1 :] for k in range(0, 100, 3)),
]


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256))])
def test_a_checked_file_is_what_was_written_or_nothing(tmp_path, caplog, data):
    path = tmp_path / "features.npy"
    assert files.read_checked(path) is None and not caplog.text
    files.write_checked(path, data)
    assert files.read_checked(path) == data
    whole = path.read_bytes()
    assert whole == data + hashlib.sha256(data).digest()
    for spoil in (spoil for spoil in SPOIL if len(whole) > 100 and spoil(whole) != whole):
        path.write_bytes(spoil(whole))
        assert files.read_checked(path) is None
        assert not path.exists() and (tmp_path / "features.npy.damaged").read_bytes() == spoil(
            whole
        )
    path.write_bytes(b"of an earlier version, without a checksum" * 9)
    assert (
        files.read_checked(path) is None
        and f"{path} is damaged, or of an earlier version" in caplog.text
    )


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "content", [{}, {"a": 1}, {"a": {"b": [1, None, "\u00e4\n"]}, "c": [], "d": {}, "e": 0.1 + 0.2}]
)
def test_a_sealed_file_is_what_was_written_or_damaged(tmp_path, content, indent):
    """And JSON as any other, whose last key is the sha256 of all before it."""
    path = tmp_path / "about.json"
    files.write_sealed(path, content, indent)
    assert files.read_sealed(path) == content
    whole = path.read_bytes()
    before, _, _ = whole.rpartition(b'\n"sha256 of the rest"')
    assert json.loads(whole) == content | {"sha256 of the rest": hashlib.sha256(before).hexdigest()}
    for spoil in (spoil for spoil in SPOIL[:6] if spoil(whole) != whole):
        path.write_bytes(spoil(whole))
        with pytest.raises(files.Damaged, match=rf"{path} is damaged \(.*\): delete it"):
            files.read_sealed(path, "delete it")
    for k in range(len(whole)):
        path.write_bytes(whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1 :])
        with pytest.raises(files.Damaged):
            files.read_sealed(path)
    path.write_text(json.dumps(content))
    assert files.read_sealed(path, unsealed=True) == content
    with pytest.raises(files.Damaged, match="earlier version"):
        files.read_sealed(path)


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b"\xff\0", "decode"),
        (b"[1]", "holds a list"),
        (b"null", "holds a NoneType"),
        (b'{"b": 1}', "it lacks a"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_json_that_is_none_is_one_message(tmp_path, content, says):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(files.Damaged, match=rf"{path} is damaged \(.*{says}.*\): delete it"):
        files.read_json(path, "delete it", keys=["a"])
    path.write_text("[1]")
    assert files.read_json(path, kind=list) == [1]


# Locks

HOLD = """
import sys, time
from pathlib import Path
from runtime.files import locked
path = Path(sys.argv[1])
with locked(path):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
    path.with_name("left").touch()
"""


@contextlib.contextmanager
def held(path: Path, seconds: float) -> Iterator[subprocess.Popen]:
    """Another process that holds the lock for some seconds."""
    command = [sys.executable, "-c", HOLD, str(path), str(seconds)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(files.__file__).parent.parent
    ) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_lock_that_is_held_is_refused_and_dropped_with_its_holder(tmp_path):
    path = tmp_path / "deep" / ".lock"
    with held(path, 100) as process:
        with pytest.raises(UserError, match="somebody else"), locked(path, "somebody else"):
            pass
        process.kill()
        process.wait()
        with locked(path, "somebody else"):
            pass


def test_a_lock_is_waited_for(tmp_path):
    with held(tmp_path / ".lock", 0.5), locked(tmp_path / ".lock"):
        assert (tmp_path / "left").exists()


def test_a_lock_is_dropped_at_the_end_also_of_a_failure(tmp_path):
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), locked(tmp_path / ".lock", "busy"):
            with pytest.raises(UserError, match="busy"), locked(tmp_path / ".lock", "busy"):
                pass
            raise error
    with locked(tmp_path / ".lock", "busy"):
        pass


# The log's rows


def run_log(directory: Path, rows: int) -> RunLog:
    return RunLog(directory, rows, WandbSettings("disabled", "p"), {})


def test_rows_that_the_checkpoint_does_not_know_are_dropped(tmp_path):
    log = run_log(tmp_path, 0)
    for step in (1, 2, 3):
        log.metrics(step, {"loss": step / 3})
    assert log.rows == 3
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # torn by a kill
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    log = run_log(tmp_path, 2)
    log.metrics(3, {"loss": 7.0})
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 1 / 3},
        {"step": 2, "loss": 2 / 3},
        {"step": 3, "loss": 7.0},
    ]


def test_damaged_rows_are_told_and_keep_their_place(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "x\xff\n3\n{"step": 4}\n{"step": 5')
    assert [row["step"] for row in read_metrics(path)] == [1, 4]
    assert f"{path}: 2 of its 4 lines are damaged and left out, line 2 first" in caplog.text
    log = run_log(tmp_path, 6)  # so many says the checkpoint
    log.metrics(7, {})
    log.close()
    assert f"{path}: 4 of the 6 rows that the checkpoint counts are damaged or gone" in caplog.text
    assert (
        path.read_text() == '{"step": 1}\n{}\n{}\n{"step": 4}\n{}\n{}\n{"step": 7}\n'
        and log.rows == 7
    )
    caplog.clear()
    run_log(tmp_path, 6).close()
    assert [row["step"] for row in read_metrics(path)] == [1, 4] and not caplog.text


def test_a_short_write_does_not_tear_a_row(tmp_path, monkeypatch):
    log, real = run_log(tmp_path, 0), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:5]))
    log.metrics(1, {"loss": 0.25})
    log.metrics(2, {"loss": 0.5})
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 0.25},
        {"step": 2, "loss": 0.5},
    ]
