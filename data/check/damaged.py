"""JPEGs that are damaged and open all the same: libjpeg warns of them, and Pillow does not tell."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SOI = b"\xff\xd8\xff"
EOI = b"\xff\xd9"
SEQUENTIAL = (0xC0, 0xC1)  # kinds of frames; what a progressive one lacks is less sharp
DHT, SOS = 0xC4, 0xDA
ZEROS = bytes(256)  # half a sector of a disk
END_OF_BLOCK = 0
MISSING = 128  # the level of a block of which nothing is there
LEAST = 8  # one in so many rows
# each behind a mark at which a decoder restarts that has come to the end of a part
MORE = b"".join(bytes((*[0x5A] * 64, 0xFF, 0xD0 + k % 8)) for k in range(16))


def is_damaged_jpeg(path: Path) -> bool:
    """Whether it is a JPEG that was cut and given an end, or has zeros where nothing was written.
    Not all damage is found."""
    with open(path, "rb") as file:
        if file.read(len(SOI)) != SOI:
            return False
    data = path.read_bytes()
    segments = dict(_segments(data))
    if SOS not in segments or not any(kind in segments for kind in SEQUENTIAL):
        return False
    end = data.find(EOI, segments[SOS])
    return end > 0 and (_has_zeros(data, segments, end) or _lacks_the_rest(data, end))


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Markers and where they are, up to the first scan; of tables, 0x1000 and their number."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 < len(data):
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, at
        table = at + 4
        while marker == DHT and table + 17 < end:
            yield 0x1000 | data[table], table
            table += 17 + sum(data[table + 1 : table + 17])
        if marker == SOS:
            return
        at = end


def _has_zeros(data: bytes, segments: dict[int, int], end: int) -> bool:
    """Zero bits are the shortest code of a table. Where that of the first component is not the end
    of a block, as in the tables of most programs, they never come in such numbers."""
    scan = segments[SOS]
    table = segments.get(0x1010 | data[scan + 6] & 15)
    ends_blocks = table is not None and data[table + 17] == END_OF_BLOCK
    return not ends_blocks and ZEROS in data[scan:end]


def _lacks_the_rest(data: bytes, end: int) -> bool:
    """Whether the last rows are missing, and come of more bytes: a whole file needs none, whatever
    border it has."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("L", (image.width // 8, image.height // 8))  # blocks, which is fast
        if not _misses_rows(np.asarray(image.convert("L"))):
            return False
    pixels, with_more = (
        np.asarray(Image.open(io.BytesIO(each))) for each in (data, data[:end] + MORE + data[end:])
    )
    return not np.array_equal(pixels, with_more)


def _misses_rows(levels: np.ndarray) -> bool:
    """At the end; not where they are few, or all."""
    missing = (levels == MISSING).reshape(len(levels), -1).all(1)
    return int(np.argmin(missing[::-1])) * LEAST >= max(1, len(missing))
