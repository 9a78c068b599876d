"""What a folder, or an .npz, of images holds. Every file is opened, nothing is trained.

python -m data.check PATH [data=dicom] [data.KEY=VALUE ...] [out=DIR]

Tells how many images of which kinds, sizes, splits, classes and patients there are, and what is
suspicious, with its cure. The settings are those of train.py. DIR (data_check/NAME) gets sheet.png,
images as the network will see them, suspicious.png, those that are suspicious, and images.csv, a
row for each image. Exit code 0: nothing is suspicious; 1: something is; 2: a mistake.
"""

from runtime.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # also while the rest is imported, which takes seconds

import contextlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.check.attributes import describe_files, number_files
from data.check.look import look_at, look_at_all
from data.check.report import summary, write_files
from data.check.section import read_section
from data.check.suspicious import find_suspicious
from data.decoding import IN_A_FILE, list_broken
from data.image_reader import ImageReader
from data.settings import parse_data
from data.splits import spread
from runtime import terminal
from runtime.errors import UserError, script
from runtime.log import log_to_terminal, recorded

TRIED = 48  # images that are read to tell how long all will take
PATIENCE = 2.0  # seconds that this may take
LONG = 10.0  # seconds, from which on it is told

log = logging.getLogger("data")


@script
def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    log_to_terminal()
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: not in_summary(record))
    out, section = read_section(arguments)
    with tempfile.TemporaryDirectory() as cache, recorded() as said:
        data = parse_data(section)
        reader = data.open_reader(Path(cache))
        files = number_files(reader)
        tell_time(reader, files)
        looks = look_at_all(reader, data)
        if not looks.readable.any():
            heading = f"{reader.name}: none of its {len(reader)} images can be read"
            raise UserError(list_broken(looks.failures, reader.item_name, heading, reader.file_of))
        attributes = describe_files(reader)
        found = find_suspicious(looks, attributes, reader.splits, files, reader.together)
    warned = [each.getMessage() for each in said if in_summary(each)]
    written = write_files(out, reader, looks, data, found)
    print(summary(reader, looks, data, attributes, found, warned))
    print("\nWritten:", *written)
    return 1 if found or warned else 0


def in_summary(record: logging.LogRecord) -> bool:
    """Warnings are, but not that the terminal is lost, on which it would stand."""
    return record.levelno >= logging.WARNING and record.name != terminal.__name__


def tell_time(reader: ImageReader, files: np.ndarray) -> None:
    """Says how long reading all images will take, where that is long, from some of them.

    Args:
        files: the number of each image's file [N].
    """
    first = again = 0.0  # seconds; of a volume the next slice costs less, of a clip it may not
    each_file = np.unique(files, return_index=True)[1]
    clips = len(each_file) < len(files)
    tried = 0
    for item in spread(each_file, TRIED).tolist():
        first += _seconds(reader, item)
        again += _seconds(reader, item) if clips else 0
        tried += 1
        if first + again > PATIENCE:
            break
    seconds = first * len(each_file) + again * (len(files) - len(each_file))
    seconds /= tried * (os.cpu_count() or 1)
    if seconds > LONG:
        log.info(f"{reader.name}: reading {len(reader)} images takes about {_duration(seconds)}")


def _seconds(reader: ImageReader, item: int) -> float:
    started = time.monotonic()
    with contextlib.suppress(UserError, *IN_A_FILE):  # told when all are read
        look_at(reader.read_image(item))
    return time.monotonic() - started


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
