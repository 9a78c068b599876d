"""Any .npz of images: with the keys of MedMNIST, of Keras or of guided-diffusion's samples, or with keys that are named."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.file_cache import FileCache
from data.image_reader import hash_of
from data.intensity import to_levels, value_range
from data.sources.npz_content import channel_layout, choose_keys, list_headers, read_array, read_headers, read_labels
from data.splits import SPLITS, draw_splits
from runtime.errors import UserError

log = logging.getLogger("data")

USUAL = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))  # ranges in which images are kept


class Npz:
    """An .npz file. Its headers and labels are read at once, an array of images when the first of them is asked for.

    Arrays of images are [N, H, W], [N, H, W, 1 or 3] or [N, 1 or 3, H, W]. Bytes are taken as they are; other numbers by `range`:
    the values that become black and white or, where it is null, those measured over the training images, which the log tells.
    validation, test: shares of the training images to draw where the file has no such split, class by class where there are labels.
    images, labels: keys of the two arrays, null for the usual ones. classes: names of the labels 0, 1, ..., null for the numbers.
    """

    def __init__(self, file_cache: FileCache, path: str, validation: float = 0.1, test: float = 0.1, images: str | None = None,
                 labels: str | None = None, range_: Sequence[float] | None = None, classes: Sequence[str] | None = None):
        if range_ is not None and not (len(range_) == 2 and all(map(math.isfinite, range_)) and range_[0] != range_[1]):
            raise UserError(f"data.range={list(range_)}: two different numbers, the values that become black and white.")
        self.path = Path(path).expanduser()
        self.name = self.path.name
        self.file_cache = file_cache
        file_cache.note_reading("headers and labels", self.path)
        self.headers = read_headers(self.path, path)
        self.keys = choose_keys(self.headers, images, labels, self.path)
        self.layouts = {split: channel_layout(self.headers[key], f"{self.path}: {key}") for split, (key, _) in self.keys.items()}
        if len({self.headers[key].dtype for key, _ in self.keys.values()}) > 1:
            raise UserError(f"{self.path}: {list_headers({key: self.headers[key] for key, _ in self.keys.values()})}: of different types, so "
                            "perhaps in different ranges. Save them in one type.")
        self.counts = {split: self.headers[key].shape[0] for split, (key, _) in self.keys.items()}
        self.classes, self.labels = read_labels(self.path, self.headers, self.keys, classes)
        self.splits = self._split(validation, test)
        self.range = None if range_ is None else (float(range_[0]), float(range_[1]))
        digest = file_cache.sha256([self.path])[0]
        self.check_files()
        self.fingerprint = hash_of("npz", 1, digest, sorted(self.keys.items()), validation, test, self.range,
                                   self.labels)  # not the names of the classes, which change no number
        self._arrays: dict[str, np.ndarray | UserError] = {}
        self._unread: dict[str, int] = {}
        self._lock = threading.RLock()  # images are read on several threads

    def __len__(self) -> int:
        return sum(self.counts.values())

    def read_image(self, item: int) -> Image.Image:
        split, k = self._place(item)
        image = self.layouts[split](self._image(split, k))
        if image.dtype == np.uint8 and self.range is None:
            return Image.fromarray(np.ascontiguousarray(image))
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise UserError("holds NaN or infinite values: replace them before saving, by numpy.nan_to_num for example")
        return to_levels(image, *self.range)

    def check_files(self) -> None:
        """Raises Changed where the labels and the hash are of two contents."""
        self.file_cache.check_unchanged([self.path])

    def item_name(self, item: int) -> str:
        """How a message calls this item."""
        split, k = self._place(item)
        return f"{self.path}: {self.keys[split][0]}[{k}]"

    def _place(self, item: int) -> tuple[str, int]:
        """The array in which an item lies, and its row there."""
        for split, count in self.counts.items():
            if item < count:
                return split, item
            item -= count
        raise IndexError(item)

    def _image(self, split: str, k: int) -> np.ndarray:
        """Decoding reads each image once: with the last one the array is dropped, and not kept through the training."""
        with self._lock:
            image = self._array(split)[k]
            if self.range is None and image.dtype != np.uint8:
                self._array("train")  # which sets the range
            self._unread[split] -= 1
            if self._unread[split] == 0:
                del self._arrays[split]
            return image

    def _array(self, split: str) -> np.ndarray:
        if split not in self._arrays:
            self._unread[split] = self.counts[split]
            try:
                with self.file_cache.unchanged(self.path):
                    self._arrays[split] = read_array(self.path, self.keys[split][0])
                if split == "train" and self.range is None:
                    rows = self.splits["train"]  # of the file's first array, whose others may be held out
                    trained = self._arrays[split] if len(rows) == self.counts[split] else self._arrays[split][rows]
                    self.range = range_of(trained, f"{self.path}: {self.keys[split][0]}")
            except UserError as error:
                self._arrays[split] = error  # kept: reading the next image shall not do it all again, to fail again
        array = self._arrays[split]
        if isinstance(array, UserError):
            raise array
        return array

    def _split(self, validation: float, test: float) -> dict[str, Sequence[int]]:
        """The file's own splits, and what is missing of them drawn from train."""
        given, start = {}, 0
        for split, count in self.counts.items():
            given[split] = range(start, start + count)
            start += count
        shares = 0 if "validation" in given else validation, 0 if "test" in given else test
        train = given.pop("train")
        drawn = draw_splits(train, self.labels, range(len(self)), *shares)
        return {split: given.get(split, drawn[split]) for split in SPLITS}


def range_of(images: np.ndarray, where: str) -> tuple[float, float] | None:
    """The values that become black and white; None for bytes, which are levels already."""
    if images.dtype != np.uint8:
        return measured_range(images, where)
    if (greatest := images.max()) < 64:  # masks of 0 and 1, or 4 bits, are saved as bytes too
        log.warning("%s: no pixel is above %d of 255, so all will be dark; data.range=[0,%d] makes that white", where, greatest,
                    greatest)
    return None


def measured_range(images: np.ndarray, where: str) -> tuple[float, float]:
    """The values that become black and white: the least and the greatest, or the usual range that these nearly fill. A few pixels
    far from all others, such as hot ones, do not count."""
    low, high = _extremes(images)
    if not low < high:
        raise UserError(f"{where}: all pixels are {low:g}, or none is finite: there is nothing to learn from.")
    robust_low, robust_high = value_range(images)
    usual = next(((a, b) for a, b in USUAL if a <= low and high <= b and high - low >= 0.9 * (b - a)), None)
    if usual:
        chosen = usual
    elif high - low > 2 * (robust_high - robust_low) > 0:
        chosen = robust_low, robust_high
        log.warning("%s: a few pixels lie far outside of %g .. %g and are cut off there; data.range=[%g,%g] shows them too", where,
                    *chosen, low, high)
    else:
        chosen = low, high
    log.info("%s (%s): values %g .. %g; black is %g and white %g (data.range=[LOW,HIGH] sets others)", where, images.dtype,
             low, high, *chosen)
    return chosen


def _extremes(images: np.ndarray) -> tuple[float, float]:
    """Least and greatest finite value, (inf, -inf) where there is none; in blocks, so that no copy of the array is made."""
    low, high = np.inf, -np.inf
    for start in range(0, len(images), 256):
        block = images[start : start + 256]
        values = block[np.isfinite(block)]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return low, high
