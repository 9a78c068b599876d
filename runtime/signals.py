"""Being asked to stop: by a scheduler (SIGTERM, SIGUSR1, SIGUSR2) or by Ctrl-C (SIGINT)."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn

PREEMPTED = 75  # exit code: saved, run the same command again (EX_TEMPFAIL)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Preempted(Exception):
    """The run was asked to stop by this signal and has saved what it did. train.py then calls
    leave."""

    def __init__(self, number: signal.Signals):
        super().__init__(number.name)
        self.number = number


class StopRequest:
    """Notes a signal while active, so that the loop can stop where nothing is lost. A second one of
    the same kind acts at once."""

    def __init__(self):
        self.received: signal.Signals | None = None

    def __enter__(self) -> StopRequest:
        self._previous = {s: signal.signal(s, self._note) for s in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for s, handler in self._previous.items():
            signal.signal(s, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(number, self._previous[self.received])

    def check(self) -> None:
        """Raises Preempted once a signal has come."""
        if self.received:
            raise Preempted(self.received)


class StopAtOnce(StopRequest):
    """While inside, a signal raises Preempted where it strikes: for what is made before the first
    step, piece by piece and each piece atomically, so that the next start goes on with it."""

    def _note(self, number: int, frame: FrameType | None) -> NoReturn:
        raise Preempted(signal.Signals(number))
