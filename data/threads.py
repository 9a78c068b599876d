"""Threads that do no more than they have begun when something ends their work, such as Ctrl-C."""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor


@contextlib.contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """One for each core."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
