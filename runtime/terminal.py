"""The terminal is side output: one that is closed, gone or full, or that cannot encode a character,
ends nothing, and one that is not read, as of less or after Ctrl-S, holds nothing up for long."""

import contextlib
import io
import logging
import os
import select
import sys
import threading
import time

from runtime.signals import was_asked

PATIENCE = 60.0  # seconds for a reader to read on
# once this process was asked to stop, as it is killed soon; and on other threads, for whose lock on
# the stream the main one would wait and heed no signal
HURRY = 2.0
SHOWN = "what is printed there from here on is not shown"
log = logging.getLogger(__name__)


class SideOutput(io.FileIO):
    """The file descriptor of stdout or stderr. Where writing to it fails, it leads nowhere from
    then on, also for what libraries and children write to it. Where it is not read, what is written
    is dropped until it is read again."""

    def __init__(self, fd: int, called: str):
        self._fd, self._own = fd, opened_anew(fd)
        super().__init__(self._own, "w", closefd=self._own != fd)
        self._called = called
        self._deaf = self._told = False

    def fileno(self) -> int:
        return self._fd

    def write(self, data) -> int:
        data = memoryview(data)
        began = time.monotonic()
        try:
            while True:
                if select.select([], [self._own], [], 0 if self._deaf else 0.5)[1]:
                    if written := super().write(data[: select.PIPE_BUF]):  # a pipe has room for it
                        self._deaf = False
                        return written
                    time.sleep(0.01)  # a terminal with room for less than a line's end
                patient = threading.current_thread() is threading.main_thread() and not was_asked()
                patience = PATIENCE if patient else HURRY
                if self._deaf or time.monotonic() - began > patience:
                    self._drop()
                    break
        except OSError as error:
            for fd in {self._fd, self._own}:
                lead_nowhere(fd)
            tell_apart(f"{self._called} is lost ({error.strerror})", SHOWN)
        return data.nbytes

    def _drop(self) -> None:
        self._deaf = True
        if not self._told:
            self._told = True
            dropped = "what is printed there is dropped until it is read again"
            tell_apart(f"{self._called} is not read", dropped)


def opened_anew(fd: int) -> int:
    """Of a terminal, so that a write never waits, in which no signal would be heeded; others that
    have it open still wait."""
    try:
        return os.open(os.ttyname(fd), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:  # no terminal, or not ours
        return fd


def lead_nowhere(fd: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != fd:
        os.dup2(nowhere, fd)
        os.close(nowhere)


def tell_apart(loss: str, means: str) -> None:
    """On a thread of its own, as this one is inside the stream's lock."""
    said = f"{loss}: {means}, and all else goes on"
    if sys.is_finalizing():  # a thread would never begin
        return
    with contextlib.suppress(RuntimeError):  # the same, from Python 3.12 on
        threading.Thread(target=log.warning, args=(said,)).start()


def guard_terminal() -> None:
    """Of this process, once. What stands in place of its stdout, as in a notebook, is left."""
    for fd in range(3):  # or the next file that is opened would be the terminal
        try:
            os.fstat(fd)
        except OSError:
            lead_nowhere(fd)
    closed = [name for name in ("stdout", "stderr") if getattr(sys, name) is None]
    for fd, name in enumerate(("stdout", "stderr"), 1):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        if stream is None:  # another file may be under its number by now
            fd = os.open(os.devnull, os.O_WRONLY)
        else:
            with contextlib.suppress(OSError):
                stream.flush()
        side = io.BufferedWriter(SideOutput(fd, name))
        encoding = getattr(stream, "encoding", "utf-8")
        setattr(sys, name, io.TextIOWrapper(side, encoding, "backslashreplace", "", True))
    for name in closed:
        tell_apart(f"{name} is closed", SHOWN)
