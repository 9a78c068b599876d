"""A reader that stops reading, as less and Ctrl-S do, and does not close its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from runtime import terminal
from tests.helpers import ROOT
from tests.runtime.test_terminal_faults import said, stream


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
