"""Any .npz of images: with the keys of MedMNIST, of Keras or of guided-diffusion's samples, or with
keys that are named."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.file_cache import FileCache
from data.image_reader import ImageReader
from data.intensity import LowHigh, to_levels, value_range
from data.sources.npz_content import (
    channel_layout,
    choose_keys,
    list_headers,
    read_array,
    read_headers,
    read_labels,
)
from data.splits import SPLITS, draw_splits
from runtime.content import sha256_of
from runtime.errors import UserError

log = logging.getLogger("data")

USUAL = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))  # ranges in which images are kept


class Npz(ImageReader):
    """An .npz file. Its headers and labels are read at once, an array of images when the first of
    them is asked for.

    Arrays of images are [N, H, W], [N, H, W, 1 or 3] or [N, 1 or 3, H, W]. Bytes are taken as they
    are; other numbers by `range`.

    Args:
        validation, test: shares of the training images to draw where the file has no such split,
            class by class where there are labels.
        images, labels: keys of the two arrays, null for the usual ones.
        range: the values that become black and white; null measures them over the training images,
            and the log tells them.
        classes: names of the labels 0, 1, ..., null for the numbers.
    """

    def __init__(
        self,
        file_cache: FileCache,
        path: str,
        validation: float = 0.1,
        test: float = 0.1,
        images: str | None = None,
        labels: str | None = None,
        range_: Sequence[float] | None = None,
        classes: Sequence[str] | None = None,
    ):
        self.range = None if range_ is None else _checked_range(range_)
        self.path = Path(path).expanduser()
        self.name = self.path.name
        self.file_cache = file_cache
        file_cache.note_reading("headers and labels", self.path)
        self.headers = read_headers(self.path, path)
        self.keys = choose_keys(self.headers, images, labels, self.path)
        chosen = {key: self.headers[key] for key, _ in self.keys.values()}
        self.layouts = {
            split: channel_layout(chosen[key], f"{self.path}: {key}")
            for split, (key, _) in self.keys.items()
        }
        if len({header.dtype for header in chosen.values()}) > 1:
            raise UserError(
                f"{self.path}: {list_headers(chosen)}: of different types, so perhaps in "
                "different ranges. Save them in one type."
            )
        self.counts = {split: chosen[key].shape[0] for split, (key, _) in self.keys.items()}
        self.classes, self.labels = read_labels(self.path, self.headers, self.keys, classes)
        self.splits = self._split(validation, test)
        digest = file_cache.sha256([self.path])[0]
        self.check_files()
        # not the names of the classes, which change no number
        self.fingerprint = sha256_of(
            ["npz", 1, digest, sorted(self.keys.items()), validation, test, self.range, self.labels]
        )
        self._arrays: dict[str, np.ndarray | UserError] = {}
        self._unread: dict[str, int] = {}
        self._lock = threading.RLock()  # images are read on several threads

    def read_image(self, item: int) -> Image.Image:
        split, k = self._place(item)
        image, levels = self._read_row(split, k)
        image = self.layouts[split](image)
        if levels is None:
            return Image.fromarray(np.ascontiguousarray(image))
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise UserError(
                "holds NaN or infinite values: replace them before saving, by numpy.nan_to_num "
                "for example"
            )
        return to_levels(image, *levels)

    def check_files(self) -> None:
        self.file_cache.check_unchanged([self.path])

    def item_name(self, item: int) -> str:
        split, k = self._place(item)
        return f"{self.path}: {self.keys[split][0]}[{k}]"

    def _place(self, item: int) -> tuple[str, int]:
        """The array in which an item lies, and its row there."""
        for split, count in self.counts.items():
            if item < count:
                return split, item
            item -= count
        raise IndexError(item)

    def _read_row(self, split: str, k: int) -> tuple[np.ndarray, LowHigh | None]:
        """One image, and the range that it is shown in; None for bytes that are levels already.
        Decoding reads each image once: with the last one the array is dropped, and not kept through
        the training."""
        with self._lock:
            image = self._read_array(split)[k]
            if self.range is None and image.dtype != np.uint8:
                self._read_array("train")  # which sets the range
            self._unread[split] -= 1
            if self._unread[split] == 0:
                del self._arrays[split]
            return image, self.range

    def _read_array(self, split: str) -> np.ndarray:
        if split not in self._arrays:
            self._unread[split] = self.counts[split]
            try:
                self._arrays[split] = self._open_array(split)
            except (
                UserError
            ) as error:  # kept: the next image shall not do it all again, to fail again
                self._arrays[split] = error
        array = self._arrays[split]
        if isinstance(array, UserError):
            raise array
        return array

    def _open_array(self, split: str) -> np.ndarray:
        key = self.keys[split][0]
        with self.file_cache.unchanged(self.path):
            array = read_array(self.path, key)
        if split == "train" and self.range is None:
            rows = self.splits["train"]  # of the file's first array, whose others may be held out
            trained = array if len(rows) == len(array) else array[rows]
            self.range = range_of(trained, f"{self.path}: {key}")
        return array

    def _split(self, validation: float, test: float) -> dict[str, Sequence[int]]:
        """The file's own splits, and what is missing of them drawn from train."""
        given, start = {}, 0
        for split, count in self.counts.items():
            given[split] = range(start, start + count)
            start += count
        shares = 0 if "validation" in given else validation, 0 if "test" in given else test
        drawn = draw_splits(given.pop("train"), self.labels, range(len(self)), *shares)
        return {split: given.get(split, drawn[split]) for split in SPLITS}


def _checked_range(low_high: Sequence[float]) -> LowHigh:
    if len(low_high) != 2 or not all(map(math.isfinite, low_high)) or low_high[0] == low_high[1]:
        raise UserError(
            f"data.range={list(low_high)}: two different numbers, the values that become black "
            "and white."
        )
    return float(low_high[0]), float(low_high[1])


def range_of(images: np.ndarray, where: str) -> LowHigh | None:
    """The values that become black and white; None for bytes, which are levels already."""
    if images.dtype != np.uint8:
        return measured_range(images, where)
    if (greatest := images.max()) < 64:  # masks of 0 and 1, or 4 bits, are saved as bytes too
        log.warning(
            "%s: no pixel is above %d of 255, so all will be dark; data.range=[0,%d] makes that "
            "white",
            where,
            greatest,
            greatest,
        )
    return None


def measured_range(images: np.ndarray, where: str) -> LowHigh:
    """The values that become black and white: the least and the greatest, or the usual range that
    these nearly fill. A few pixels far from all others, such as hot ones, do not count."""
    low, high = _extremes(images)
    if not low < high:
        raise UserError(
            f"{where}: all pixels are {low:g}, or none is finite: there is nothing to learn from."
        )
    robust_low, robust_high = value_range(images)
    usual = next(
        ((a, b) for a, b in USUAL if a <= low and high <= b and high - low >= 0.9 * (b - a)), None
    )
    chosen = usual or (low, high)
    if not usual and high - low > 2 * (robust_high - robust_low) > 0:
        chosen = robust_low, robust_high
        log.warning(
            "%s: a few pixels lie far outside of %g .. %g and are cut off there; "
            "data.range=[%g,%g] shows them too",
            where,
            *chosen,
            low,
            high,
        )
    log.info(
        "%s (%s): values %g .. %g; black is %g and white %g (data.range=[LOW,HIGH] sets others)",
        where,
        images.dtype,
        low,
        high,
        *chosen,
    )
    return chosen


def _extremes(images: np.ndarray) -> LowHigh:
    """Least and greatest finite value, (inf, -inf) where there is none; in blocks, so that no copy
    of the array is made."""
    low, high = np.inf, -np.inf
    for start in range(0, len(images), 256):
        block = images[start : start + 256]
        values = block[np.isfinite(block)]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return low, high
