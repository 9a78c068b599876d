"""Values that several threads ask for, loaded once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The last few of what load gave, by key. Threads that want the same one wait for one load; an
    error is kept as a value is."""

    def __init__(self, load: Callable[[K], V], kept: int = 1):
        self.load, self.kept, self._lock = load, kept, threading.Lock()
        self._futures: OrderedDict[K, Future[V]] = OrderedDict()

    def __call__(self, key: K) -> V:
        with self._lock:
            ours = key not in self._futures
            future = self._futures.setdefault(key, Future())
            self._futures.move_to_end(key)
            while len(self._futures) > self.kept:
                self._futures.popitem(last=False)
        if ours:
            try:
                future.set_result(self.load(key))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def clear(self) -> None:
        self._futures.clear()
