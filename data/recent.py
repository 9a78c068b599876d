"""Values that several threads ask for, loaded once."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The last few of what load gave, by key. Threads that want the same one wait for one load; an
    error is kept as a value is."""

    def __init__(self, load: Callable[[K], V], kept: int = 1):
        pool = ThreadPoolExecutor()
        self._future = lru_cache(kept)(lambda key: pool.submit(load, key))
        self._lock = threading.Lock()  # two misses at a time would be two loads
        self.clear = self._future.cache_clear

    def __call__(self, key: K) -> V:
        with self._lock:
            future = self._future(key)
        return future.result()
