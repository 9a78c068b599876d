"""What libraries warn of while they read files: caught, and said once, with a file."""

import logging
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from runtime.errors import numbers_as_0

# those who log; pydicom gives to warnings, too, what it logs
LIBRARIES = ("PIL", "nibabel.global", "tifffile")
OF_CODE = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)  # no user's matter


class Heard:
    """Warnings, and the items that they are of. Two that differ in their numbers alone are one."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}  # by the text without its numbers
        self._items: dict[str, set[int]] = {}
        self._thread = threading.local()
        self._lock = threading.Lock()

    @contextmanager
    def of(self, item: int) -> Iterator[None]:
        """What this thread hears inside is of this item."""
        self._thread.item = item
        try:
            yield
        finally:
            del self._thread.item

    def add(self, text: str) -> None:
        text = " ".join(text.split())
        key = numbers_as_0(text)
        with self._lock:
            if hasattr(self._thread, "item"):
                self._texts.setdefault(key, text)
                self._items.setdefault(key, set()).add(self._thread.item)

    def told_of(self, item: int) -> list[str]:
        with self._lock:
            return [self._texts[key] for key, items in self._items.items() if item in items]

    def lines(self, name_of: Callable[[int], object], failed: Collection[int]) -> Iterator[str]:
        """Each warning, with the first item that it is of and how many others; not of items that
        failed, which say so themselves."""
        for key, text in self._texts.items():
            if items := sorted(self._items[key].difference(failed)):
                more = f" (and {len(items) - 1} other images)" if len(items) > 1 else ""
                yield f"{name_of(items[0])}{more}: {text}"


class _Ear(logging.Handler):
    """Gives what a library logs to who hears."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[Heard] = []

    def emit(self, record: logging.LogRecord) -> None:
        for each in self.heard[-1:]:
            each.add(record.getMessage())


_ear = _Ear()


def told_of(item: int) -> list[str]:
    """What is heard now of an item."""
    return [text for each in _ear.heard[-1:] for text in each.told_of(item)]


def tell_again(texts: Iterable[str]) -> None:
    """What an earlier start heard of the item that this thread is at."""
    for text in texts:
        for each in _ear.heard[-1:]:
            each.add(text)


@contextmanager
def heard() -> Iterator[Heard]:
    """What libraries warn of inside, on any thread, in place of it being printed."""
    found = Heard()

    def show(message: Any, *place: Any, **more: Any) -> None:
        found.add(str(message))

    for library in map(logging.getLogger, LIBRARIES):  # some add a handler when they are imported
        library.handlers[:], library.propagate = [_ear], False
    with warnings.catch_warnings():
        warnings.simplefilter("always", append=True)  # but what is ignored on purpose
        for category in OF_CODE:
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        _ear.heard.append(found)
        try:
            yield found
        finally:
            _ear.heard.remove(found)
