"""A terminal that is closed, gone, full, narrow or not read, and a disk that is full for the
log: one line says what is lost, and all else goes on."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from runtime import terminal
from runtime.log import log_to_terminal, logged_to
from runtime.terminal import SideOutput, guard_terminal
from tests.helpers import ROOT

FULL = "/dev/full"  # every write to it fails with ENOSPC


def stream(fd: int, called: str = "stdout") -> io.TextIOWrapper:
    side = io.BufferedWriter(SideOutput(fd, called))
    return io.TextIOWrapper(side, "ascii", "backslashreplace", "", True)


@pytest.fixture
def broken_pipe():
    """The end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def said(caplog, count: int) -> list[str]:
    """What was logged, which a thread does."""
    end = time.monotonic() + 10
    while len(caplog.messages) < count:
        assert time.monotonic() < end
        time.sleep(0.01)
    return caplog.messages


def test_a_broken_pipe_is_told_once_and_leads_nowhere(broken_pipe, caplog):
    to = stream(broken_pipe)
    for _ in range(3):
        print("a line", file=to)
    assert said(caplog, 1) == [
        "stdout is lost (Broken pipe): what is printed there from here on is not shown, and all "
        "else goes on"
    ]
    assert os.path.samestat(os.fstat(broken_pipe), os.stat(os.devnull))  # for children too
    to.close()


@pytest.mark.skipif(not os.path.exists(FULL), reason="no /dev/full here")
def test_a_full_disk_behind_stderr_does_not_stop_a_progress_bar(caplog):
    fd = os.open(FULL, os.O_WRONLY)
    for _ in tqdm(range(3), file=stream(fd, "stderr"), mininterval=0):
        pass
    assert "stderr is lost (No space left on device)" in said(caplog, 1)[0]
    os.close(fd)


def test_a_terminal_that_is_gone(caplog):
    """As after ssh was cut."""
    ours, terminal = os.openpty()
    os.close(ours)
    print("a line", file=stream(terminal))
    assert "stdout is lost (Input/output error)" in said(caplog, 1)[0]
    os.close(terminal)


def test_what_cannot_be_encoded_is_written_out(tmp_path):
    fd = os.open(tmp_path / "terminal", os.O_WRONLY | os.O_CREAT)
    print("x0 → 肺 \udcff", file=stream(fd))
    os.close(fd)
    assert (tmp_path / "terminal").read_bytes() == b"x0 \\u2192 \\u80ba \\udcff\n"


def test_a_full_pipe_that_does_not_wait_is_waited_for():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    text = "x" * (1 << 20)
    found = []

    def read() -> None:
        while sum(map(len, found)) < len(text) + 1:
            found.append(os.read(reading, 1 << 16))

    reader = threading.Thread(target=read)
    reader.start()
    print(text, file=stream(writing))
    reader.join()
    assert b"".join(found) == text.encode() + b"\n"
    os.close(reading)
    os.close(writing)


def test_a_notebooks_stdout_is_left(monkeypatch):
    own = io.StringIO()
    monkeypatch.setattr(sys, "stdout", own)
    guard_terminal()
    print("a line")
    assert sys.stdout is own and own.getvalue() == "a line\n"


SCRIPT = """
import sys
from runtime.errors import one_message
def main():
    import os
    first = open(sys.argv[1], "wb", buffering=0)   # must not get the number of the terminal
    print("to the terminal \\u80ba", flush=True)
    os.write(1, b"by a library")
    print("to stderr", file=sys.stderr)
    first.write(b"kept")
one_message(main)()
"""


@pytest.mark.parametrize(
    ("how", "shown", "told"),
    [
        (">&-", "", "stdout is closed"),
        ("2>&-", "to the terminal 肺\nby a library", ""),
        (">&- 2>&- <&-", "", ""),
        ("2>/dev/full >/dev/full", "", ""),
        ("", "to the terminal \\u80ba\nby a library", ""),
    ],
)
def test_a_script_whose_terminal_is_closed_at_its_start(tmp_path, how, shown, told):
    (tmp_path / "script.py").write_text(SCRIPT)
    encoding = "utf-8" if how else "ascii"
    done = subprocess.run(
        f'"{sys.executable}" "{tmp_path}/script.py" "{tmp_path}/kept" {how}',
        shell=True,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert done.stdout == shown and done.stderr.startswith(told)
    assert (tmp_path / "kept").read_bytes() == b"kept"


@pytest.mark.skipif(not os.path.exists(FULL), reason="no /dev/full here")
def test_a_full_disk_for_the_log_is_told_once(tmp_path, capsys, monkeypatch):
    """log.txt itself; metrics.jsonl, of which a run is made, ends it (test_checkpoint.py)."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    (tmp_path / "log.txt").symlink_to(FULL)
    log_to_terminal()
    log = logging.getLogger("train")
    with logged_to(tmp_path / "log.txt", []):
        for step in range(3):
            log.warning(f"step {step}")
    printed = capsys.readouterr()
    assert printed.out.count("log.txt is not written (No space left on device)") == 1
    assert [line for line in printed.out.splitlines() if line.startswith("step")] == [
        "step 0",
        "step 1",
        "step 2",
    ]
    assert printed.err == ""


def test_names_in_no_encoding_reach_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with logged_to(Path(tmp_path, "log.txt"), []):
        logging.getLogger("train").warning("a file 肺 \udcff")
    assert "a file 肺 \\udcff" in (tmp_path / "log.txt").read_text("utf-8")


# A reader that stops reading, as less and Ctrl-S do, and does not close its end


@pytest.fixture(params=["pipe", "terminal"])
def ends(request):
    reading, writing = os.pipe() if request.param == "pipe" else os.openpty()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def emptied(fd: int) -> bytes:
    os.set_blocking(fd, False)
    found = b""
    while True:
        try:
            found += os.read(fd, 1 << 16)
        except BlockingIOError:
            return found


def test_what_is_not_read_is_dropped_until_it_is_read_again(ends, monkeypatch, caplog):
    reading, writing = ends
    monkeypatch.setattr(terminal, "PATIENCE", 0.5)
    to = stream(writing)
    began = time.monotonic()
    for _ in range(3000):
        print("x" * 99, file=to)
    assert 0.5 <= time.monotonic() - began < 5  # waited for once
    assert said(caplog, 1) == [
        "stdout is not read: what is printed there is dropped until it is read again, and all else "
        "goes on"
    ]
    assert len(emptied(reading)) < 200_000
    print("read again", file=to)
    assert b"read again" in emptied(reading)


ENDLESS = """
import sys
from runtime.errors import script
from runtime.signals import StopRequest
asked = sys.argv[1] == "training"
@script
def main():
    with StopRequest() as stop:
        while asked and not stop.asked():
            print("x" * 99)
    while not asked:
        print("x" * 99)
    sys.exit(75)
main()
"""


@pytest.mark.parametrize("which", ["training", "another"])
def test_a_signal_is_heeded(which):
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, which],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        time.sleep(2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 75
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
