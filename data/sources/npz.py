"""Any .npz of images: with the keys of MedMNIST, of Keras or of guided-diffusion's samples, or with
keys that are named."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.file_cache import FileCache
from data.image_reader import ImageReader
from data.intensity import LowHigh, check_range, to_levels, value_range
from data.recent import Recent
from data.sources.npz_content import (
    check_images,
    choose_keys,
    list_headers,
    read_array,
    read_headers,
    read_labels,
    to_gray_or_rgb,
)
from data.splits import complete_splits, items_by_split
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
        validation: the share of the training images to draw where the file has no such split, class
            by class where there are labels.
        test: as validation.
        images: key of the array of images, null for the usual ones.
        labels: key of the array of labels, as images.
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
        self.range: LowHigh | None = None
        if range_ is not None:
            check_range(sorted(range_))  # one that falls turns black and white around
            self.range = float(range_[0]), float(range_[1])
        self.path = Path(path).expanduser()
        self.name, self.file_cache = self.path.name, file_cache
        file_cache.note_reading(self.path)
        self.headers = read_headers(self.path, path)
        self.keys = choose_keys(self.headers, images, labels, self.path)
        chosen = {key: self.headers[key] for key, _ in self.keys.values()}
        for key, header in chosen.items():
            check_images(header, f"{self.path}: {key}")
        if len({header.dtype for header in chosen.values()}) > 1:
            raise UserError(
                f"{self.path}: {list_headers(chosen)}: of different types, so perhaps in "
                "different ranges. Save them in one type."
            )
        self.counts = {split: chosen[key].shape[0] for split, (key, _) in self.keys.items()}
        self.classes, self.labels = read_labels(self.path, self.headers, self.keys, classes)
        self.places = [(split, k) for split, count in self.counts.items() for k in range(count)]
        given = items_by_split(split for split, _ in self.places)
        self.splits = complete_splits(given, self.labels, range(len(self)), validation, test)
        self._arrays = Recent(self._load, 2)  # one ends where the next begins
        self._measured = Recent(self._measure)
        digest = file_cache.sha256([self.path])[0]
        # not the names of the classes, which change no number
        self.fingerprint = sha256_of(
            ["npz", 1, digest, sorted(self.keys.items()), validation, test, self.range, self.labels]
        )

    def read_image(self, item: int) -> Image.Image:
        split, k = self.places[item]
        image = to_gray_or_rgb(self._arrays(split)[k])
        low_high = self.range or self._measured("train")
        if low_high is None:
            return Image.fromarray(image)
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise UserError(
                "holds NaN or infinite values: replace them before saving, by numpy.nan_to_num "
                "for example"
            )
        return to_levels(image, *low_high)

    def _load(self, split: str) -> np.ndarray:
        with self.file_cache.unchanged(self.path):
            return read_array(self.path, self.keys[split][0])

    def _measure(self, split: str) -> LowHigh | None:
        array, rows = self._arrays(split), self.splits[split]  # some of the array's may be held out
        trained = array if len(rows) == len(array) else array[rows]
        return measured_range(trained, f"{self.path}: {self.keys[split][0]}")

    def release(self) -> None:
        self._arrays.clear()

    def item_name(self, item: int) -> str:
        split, k = self.places[item]
        return f"{self.path}: {self.keys[split][0]}[{k}]"


def measured_range(images: np.ndarray, where: str) -> LowHigh | None:
    """The values that become black and white: the least and the greatest, or the usual range that
    these nearly fill. A few pixels far from all others, such as hot ones, do not count. None for
    bytes, which are levels already."""
    if images.dtype == np.uint8:
        if (greatest := images.max()) < 64:  # masks of 0 and 1, or 4 bits, are saved as bytes too
            log.warning(
                f"{where}: no pixel is above {greatest} of 255, so all will be dark; "
                f"data.range=[0,{greatest}] makes that white"
            )
        return None
    robust_low, robust_high = value_range(images)
    values = images[np.isfinite(images)] if images.dtype.kind == "f" else images
    low, high = (float(values.min()), float(values.max())) if values.size else (np.nan, np.nan)
    if not low < high:
        raise UserError(
            f"{where}: all pixels are {low:g}, or none is finite: there is nothing to learn from."
        )
    usual = next(
        ((a, b) for a, b in USUAL if a <= low and high <= b and high - low >= 0.9 * (b - a)), None
    )
    black, white = usual or (low, high)
    if not usual and high - low > 2 * (robust_high - robust_low) > 0:
        black, white = robust_low, robust_high
        log.warning(
            f"{where}: a few pixels lie far outside of {black:g} .. {white:g} and are cut off "
            f"there; data.range=[{low:g},{high:g}] shows them too"
        )
    log.info(
        f"{where} ({images.dtype}): values {low:g} .. {high:g}; black is {black:g} and white "
        f"{white:g} (data.range=[LOW,HIGH] sets others)"
    )
    return black, white
