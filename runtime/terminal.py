"""The terminal is side output: one that is closed, gone or full, or that cannot encode a character,
ends nothing."""

import contextlib
import io
import logging
import os
import select
import sys
import threading

log = logging.getLogger(__name__)


class SideOutput(io.FileIO):
    """The file descriptor of stdout or stderr. Where writing to it fails, it leads nowhere from
    then on, also for what libraries and children write to it."""

    def __init__(self, fd: int, called: str):
        super().__init__(fd, "w", closefd=False)
        self._called = called

    def write(self, data) -> int:
        try:
            while (written := super().write(data)) is None:  # a full pipe that does not wait
                select.select([], [self], [])
            return written
        except OSError as error:
            lead_nowhere(self.fileno())
            tell_apart(f"{self._called} is lost ({error.strerror})")
            return memoryview(data).nbytes


def lead_nowhere(fd: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != fd:
        os.dup2(nowhere, fd)
        os.close(nowhere)


def tell_apart(loss: str) -> None:
    """On a thread of its own, as this one is inside the stream's lock."""
    said = f"{loss}: what is printed there from here on is not shown, and all else goes on"
    with contextlib.suppress(RuntimeError):  # the interpreter ends
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
        tell_apart(f"{name} is closed")
