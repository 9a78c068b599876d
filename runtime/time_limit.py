"""The time that a process was given."""

import contextlib
import math
import time
from collections.abc import Iterator
from functools import cache

ROOM = 2.0  # times what something took at most
SHARE, MOST = 0.02, 300.0  # of the whole, and seconds: what is taken for what was not measured yet


@cache
def began() -> float:
    """When this process began its work, which is when it was first asked."""
    return time.monotonic()


class TimeLimit:
    """Says when to stop, so that there is time to save.

    Args:
        hours: since the process began; None for no limit.
    """

    def __init__(self, hours: float | None):
        self.hours = hours
        self._seconds = math.inf if hours is None else hours * 3600
        self._took: dict[str, float] = {}

    @contextlib.contextmanager
    def measured(self, what: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._took[what] = max(self._took.get(what, 0.0), time.monotonic() - start)

    def is_over(self, *before: str) -> bool:
        """Whether there is no more time than for saving, and for what is done before that."""
        unknown = min(SHARE * self._seconds, MOST)
        needed = ROOM * sum(self._took.get(what, unknown) for what in (*before, "saving"))
        return time.monotonic() - began() > self._seconds - needed
