"""Being asked to stop: by a scheduler (SIGTERM, SIGUSR1, SIGUSR2), by Ctrl-C (SIGINT), by a
terminal that is gone (SIGHUP, not under nohup), or because its time is up."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn

from runtime.time_limit import TimeLimit

PREEMPTED = 75  # exit code: saved, run the same command again (EX_TEMPFAIL)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
NO_LIMIT = TimeLimit(None)


class Preempted(Exception):
    """The run was asked to stop by this signal and has saved what it did. train.py then calls
    leave.

    Args:
        why: what to tell where that is not the signal's name.
    """

    def __init__(self, number: signal.Signals, why: str = ""):
        super().__init__(why or number.name)
        self.number = number


class StopRequest:
    """Notes a signal while active, so that the loop can stop where nothing is lost. A second one of
    the same kind acts at once, but for SIGHUP, which shell and terminal both send.

    Args:
        limit: the time after which it is asked to stop, as by the signal that submitit requeues a
            job on.
    """

    def __init__(self, limit: TimeLimit = NO_LIMIT):
        self.received: signal.Signals | None = None
        self._limit = limit

    def __enter__(self) -> StopRequest:
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heeded = [s for s in SIGNALS if s != signal.SIGHUP or not nohup]
        self._previous = {s: signal.signal(s, self._note) for s in heeded}
        return self

    def __exit__(self, *_) -> None:
        for s, handler in self._previous.items():
            signal.signal(s, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if number != signal.SIGHUP:
            signal.signal(number, self._previous[self.received])

    def asked(self, *before: str) -> Preempted | None:
        """What it was asked, once it was, or where its limit leaves no time for these."""
        if self.received:
            return Preempted(self.received)
        if self._limit.is_over(*before):
            return Preempted(signal.SIGUSR2, f"run.hours={self._limit.hours:g}")
        return None

    def check(self, *before: str) -> None:
        """Raises what was asked."""
        if asked := self.asked(*before):
            raise asked


class StopAtOnce(StopRequest):
    """While inside, a signal raises Preempted where it strikes: for what is made before the first
    step, piece by piece and each piece atomically, so that the next start goes on with it."""

    def _note(self, number: int, frame: FrameType | None) -> NoReturn:
        raise Preempted(signal.Signals(number))
