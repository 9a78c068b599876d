"""What a start that was stopped has decoded of a memory map, for the next one to go on from."""

import contextlib
import json
import logging
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.as_decoded import AsDecoded
from data.library_warnings import tell_again, told_of

BLOCK = 64  # images that are noted together, once all of them were tried

log = logging.getLogger("data")


class DecodedSoFar:
    """Which images of a map are as they have to be, noted in a file with a line for each block: the
    crc32 of all that the line stands for, and JSON of what the images told. A line that is torn, or
    whose images did not come to the disk, counts for nothing. An image that cannot be read is tried
    again.

    Args:
        images: the map, new or as it was left.
        seen: gets what the images told of the earlier start.
    """

    def __init__(self, file: Path, images: np.ndarray, seen: AsDecoded):
        self._file, self._images, self._seen = file, images, seen
        self._lock = threading.Lock()
        self._good: dict[int, list[str]] = {}  # each with what libraries warned of
        lines = file.read_bytes().splitlines() if file.exists() else []
        for line in lines:
            self._take_over(line)
        self._before = {*self._good}
        items = [item for item in range(len(images)) if item not in self._before]
        self._left = np.bincount([item // BLOCK for item in items] or [0])
        if self._good:
            log.info(f"{len(self._good)} of {len(images)} images were decoded by an earlier start")

    def has(self, item: int) -> bool:
        """Whether it was decoded before; what libraries warned of is then told again."""
        if item in self._before:
            tell_again(self._good[item])
        return item in self._before

    @contextlib.contextmanager
    def noted(self, item: int) -> Iterator[None]:
        """Around the decoding of an image, on any thread."""
        try:
            yield
            self._good[item] = told_of(item)
        finally:
            with self._lock:
                self._left[item // BLOCK] -= 1
                if not self._left[item // BLOCK]:
                    self._note(item // BLOCK)

    def _note(self, block: int) -> None:
        items = range(len(self._images))[block * BLOCK : (block + 1) * BLOCK]
        told = [[k, self._good[k], *self._seen.of(k)] for k in items if k in self._good]
        line = f"{self._crc32(told):08x} {json.dumps(told)}"
        with open(self._file, "a") as file:
            file.write(f"\n{line}")  # the line before may be torn

    def _take_over(self, line: bytes) -> None:
        with contextlib.suppress(ValueError, TypeError, LookupError):
            told = json.loads(line[9:])
            if self._crc32(told) != int(line[:8], 16):
                return
            for item, warned, size, likeness in told:
                self._good[item] = warned
                self._seen.take(item, size, likeness)

    def _crc32(self, told: list) -> int:
        found = zlib.crc32(json.dumps(told).encode())
        for item, *_ in told:
            found = zlib.crc32(self._images[item], found)
        return found
