"""Being asked to stop: by a scheduler (SIGTERM, SIGUSR1, SIGUSR2), by Ctrl-C (SIGINT), by a
terminal that is gone (SIGHUP, not under nohup), or because its time is up. Imports nothing that
takes long, as a script heeds signals before it imports the rest."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from runtime.time_limit import TimeLimit

INTERRUPTED = 130  # exit code, after Ctrl-C
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


class Stopped(KeyboardInterrupt):
    """A script was asked to stop by this signal, outside of a StopRequest. As Ctrl-C, it is no
    error that anything would catch."""

    def __init__(self, number: signal.Signals):
        super().__init__(number.name)
        self.number = number


def told(stop: KeyboardInterrupt) -> tuple[str, int]:
    """What to tell of it first, and the exit code."""
    number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
    if number == signal.SIGINT:
        return "interrupted", INTERRUPTED
    return f"stopped by {number.name}", PREEMPTED


def last_line(stop: KeyboardInterrupt) -> str:
    return f"\n{told(stop)[0]}; what was finished stays, and the same command continues\n"


def end_at_once() -> None:
    """From here on a signal ends this process with one line: while a script imports, where there is
    nothing to clean up, and again when it has ended. While the interpreter is torn down, which
    resets handlers and takes a while with torch, a signal is ignored and changes no exit code."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        stop = Stopped(signal.Signals(number))
        with contextlib.suppress(OSError):  # the terminal is gone
            if select.select([], [2], [], 1)[1]:  # nor would one that is not read let it end
                os.write(2, last_line(stop).encode())
        os._exit(told(stop)[1])

    _heed(end)
    atexit.register(lambda: _heed(signal.SIG_IGN))  # the first that is registered runs last


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """While inside, a signal raises Stopped where it strikes, or where it is no longer held."""

    def strike(number: int, frame: FrameType | None) -> None:
        _hold.asked = True
        if _hold.on and _hold.waiting is None:  # a second one acts at once
            _hold.waiting = signal.Signals(number)
        else:
            _hold.waiting = None
            raise Stopped(signal.Signals(number))

    previous = _heed(strike)
    try:
        yield
    finally:
        _hold.waiting = None
        for s, handler in previous.items():
            signal.signal(s, handler)


class _Hold:
    on = False
    asked = False  # ever
    waiting: signal.Signals | None = None


_hold = _Hold()


def was_asked() -> bool:
    """Whether this process was ever asked to stop."""
    return _hold.asked


@contextlib.contextmanager
def held(on: bool = True) -> Iterator[None]:
    """A signal waits for the end of this: for what Hydra and OmegaConf do, which is short, and in
    which any exception may come out as another. on=False: a part of that in which it strikes."""
    before, _hold.on = _hold.on, on
    try:
        _let_go()
        yield
    finally:
        _hold.on = before
    _let_go()


def _let_go() -> None:
    if _hold.waiting and not _hold.on:
        number, _hold.waiting = _hold.waiting, None
        raise Stopped(number)


def _heed(
    handler: Callable[[int, FrameType | None], object] | signal.Handlers,
) -> dict[signal.Signals, Any]:
    """Signals that are not ignored, as by nohup, and what handled them before."""
    ignored = (signal.SIG_IGN, None)
    heeded = [s for s in SIGNALS if signal.getsignal(s) not in ignored]
    return {s: signal.signal(s, handler) for s in heeded}


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
        _hold.asked = True
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
        _hold.asked = True
        raise Preempted(signal.Signals(number))
