"""Runs a script and disturbs it at its N-th operation on files: python tests/helpers/kill_at.py N
train.py ARGS...

What a run keeps is written with os.write, os.fsync and os.replace alone (runtime/files.py,
runtime/log.py); they are counted together.

    12        SIGKILL at the 12th: a write after half of its bytes, a sync or a rename before it is
    done 12+       SIGKILL right after the 12th
    12=TERM   another signal right after the 12th, here SIGTERM
    12=FULL   from the 12th on the disk is full: that write is short, the next ones fail with ENOSPC
    0         only counts

The environment variable OPERATIONS names a file that gets a line for each operation, such as "17
replace checkpoints/step_8".
"""

from __future__ import annotations

import errno
import os
import re
import runpy
import signal
import sys
from pathlib import Path


class Hook:
    """Stands in for the three primitives. at: N, N+, N=NAME."""

    def __init__(self, at: str):
        number, self.after, self.what = re.fullmatch(r"(\d+)(\+?)(?:=(\w+))?", at).groups()
        self.number, self.what = int(number), self.what or "KILL"
        self.done: list[str] = []
        self.write, self.fsync, self.replace = os.write, os.fsync, os.replace
        os.write, os.fsync, os.replace = self.writes, self.syncs, self.renames

    def writes(self, fd: int, data) -> int:
        name = name_of(fd)
        if name is None:  # a pipe or a terminal
            return self.write(fd, data)
        due = self.count("write", name)
        if self.what == "FULL" and len(self.done) > self.number > 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        half = bytes(data)[: len(data) // 2]
        if due and self.what == "FULL":
            return self.write(fd, half)
        if due and self.what == "KILL" and not self.after:
            self.write(fd, half)
            self.strike()
        return self.finished(due, self.write(fd, data))

    def syncs(self, fd: int) -> None:
        due = self.count("fsync", name_of(fd))
        return self.finished(due, self.fsync(fd))

    def renames(self, source, target) -> None:
        due = self.count("replace", short(str(target)))
        return self.finished(due, self.replace(source, target))

    def count(self, kind: str, name: str) -> bool:
        """Notes an operation; True where it is the N-th. A kill before it happens here, but for a
        write."""
        self.done.append(f"{len(self.done) + 1} {kind} {name}")
        due = len(self.done) == self.number
        if due and kind != "write" and self.what == "KILL" and not self.after:
            self.strike()
        return due

    def finished(self, due: bool, result):
        if due and self.what != "FULL":
            self.strike()
        return result

    def strike(self) -> None:
        os.kill(os.getpid(), getattr(signal, f"SIG{self.what}"))

    def report(self, path: str) -> None:
        Path(path).write_text("".join(line + "\n" for line in self.done))


def name_of(fd: int) -> str | None:
    path = os.readlink(f"/proc/self/fd/{fd}")
    return short(path) if path.startswith("/") and not path.startswith("/dev/") else None


def short(path: str) -> str:
    """The last two parts of a path, without the process id of what is written aside."""
    return re.sub(r"\.\d+(?=/|$)", "", "/".join(path.split("/")[-2:]))


def main(at: str, script: str, arguments: list[str]) -> None:
    hook = Hook(at)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        if "OPERATIONS" in os.environ:
            hook.report(os.environ["OPERATIONS"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
