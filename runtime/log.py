"""What a run tells: log.txt, metrics.jsonl, pictures, and the same to wandb where it is on. Of
these metrics.jsonl and the pictures belong to the run; without the others it goes on."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from runtime import terminal
from runtime.files import put_aside, raise_if_full, sync, write_all, write_atomically
from runtime.image_grid import png
from runtime.terminal import guard_terminal
from runtime.wandb_copy import WandbCopy, WandbSettings

log = logging.getLogger(__name__)


class _Calls(logging.Handler):
    """Calls a function with each record."""

    def __init__(self, function: Callable[[logging.LogRecord], object]):
        super().__init__()
        self._function = function

    def emit(self, record):
        self._function(record)


class _File(logging.FileHandler):
    """Without which all goes on: what a full disk does not take is written when there is room."""

    def __init__(self, path: Path):
        # a file may have a name in no encoding
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self._told = False

    def handleError(self, record):
        _, error, _ = sys.exc_info()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            log.warning(f"{self.baseFilename} is not written ({error.strerror}); all else goes on")

    def close(self):
        with contextlib.suppress(OSError):
            super().close()


_warned: set[str] = set()  # in this process


def log_to_terminal(heard: Collection[str] | None = None) -> None:
    """Messages on stdout, without tearing the progress bar; that one of stdout and stderr is lost
    on both, as the other may be there.

    Args:
        heard: the loggers whose messages are shown, and beside them each warning once; None for
            all.
    """

    def show(record: logging.LogRecord) -> None:
        if heard is not None and record.name not in heard:
            if record.levelno < logging.WARNING or record.getMessage() in _warned:
                return
            _warned.add(record.getMessage())
        both = record.name == terminal.__name__
        for stream in (sys.stdout, sys.stderr) if both else (sys.stdout,):
            tqdm.write(logging.Formatter().format(record), stream)

    guard_terminal()
    root = logging.getLogger()
    root.handlers[:] = [_Calls(show)]
    root.setLevel(logging.INFO)


@contextlib.contextmanager
def recorded() -> Iterator[list[logging.LogRecord]]:
    """The records of what is logged inside, for those who want them later."""
    records: list[logging.LogRecord] = []
    with _attached(_Calls(records.append)):
        yield records


@contextlib.contextmanager
def logged_to(path: Path, said: Iterable[logging.LogRecord]) -> Iterator[None]:
    """What is logged inside goes to a file too, after what was said before the file was known."""
    handler = _File(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for record in said:
        handler.handle(record)
    with _attached(handler):
        yield


@contextlib.contextmanager
def _attached(handler: logging.Handler) -> Iterator[None]:
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


class RunLog:
    """metrics.jsonl is the truth, wandb a copy of it. rows: how many of its rows the checkpoint
    knows of; those after them, left by a run that was killed, are dropped: the file is that of a
    run that was never interrupted. A row among them that is damaged or gone cannot be made again:
    it is told, the file is put aside, and {} keeps its place."""

    def __init__(self, directory: Path, rows: int, wandb: WandbSettings, config: dict[str, Any]):
        self.directory = directory
        (directory / "samples").mkdir(exist_ok=True)
        self._path = directory / "metrics.jsonl"
        kept = _kept_rows(self._path, rows)
        write_atomically(self._path, "".join(json.dumps(row or {}) + "\n" for row in kept))
        self.rows = rows
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        self._wandb = WandbCopy(wandb, directory, config)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        try:
            write_all(self._file, (json.dumps({"step": step} | values) + "\n").encode())
        except OSError as error:
            raise_if_full(error, self._path)
            raise
        self.rows += 1
        self._wandb.metrics(step, values)

    def samples(self, step: int, pixels: np.ndarray) -> None:
        """pixels: [H, W, C] uint8 -> samples/samples_STEP.png"""
        write_atomically(self.directory / f"samples/samples_{step:07d}.png", png(pixels))
        self._wandb.samples(step, pixels)

    def sync(self) -> None:
        """Everything told so far is on the disk."""
        sync(self._file)

    def close(self) -> None:
        os.close(self._file)
        self._wandb.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl. A last line torn by a kill is left out, and so is, with a word,
    what is damaged before it."""
    rows = _parsed_rows(path)
    if damaged := [number for number, row in enumerate(rows, 1) if row is None]:
        log.warning(
            f"{path}: {len(damaged)} of its {len(rows)} lines are damaged and left out, line "
            f"{damaged[0]} first"
        )
    return [row for row in rows if row]


def _kept_rows(path: Path, rows: int) -> list[dict[str, Any] | None]:
    """The first `rows` lines of the file, None in the place of one that is damaged or gone; the
    file is then put aside."""
    found = _parsed_rows(path)[:rows]
    found += [None] * (rows - len(found))
    if lost := found.count(None):
        why = (
            f"{path}: {lost} of the {rows} rows that the checkpoint counts are damaged or gone "
            "and stay so"
        )
        if path.exists():
            put_aside(path, why)
        else:
            log.warning(why)
    return found


def _parsed_rows(path: Path) -> list[dict[str, Any] | None]:
    """A row for each line, None for one that is damaged; without what is behind the last line
    break, which a kill may have torn."""
    rows: list[dict[str, Any] | None] = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        known = isinstance(row, dict) and (not row or isinstance(row.get("step"), int))
        rows.append(row if known else None)
    return rows


def table(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as aligned columns, the first row being the heading."""
    cells = [list(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
