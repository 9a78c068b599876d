"""One look at each image of a data set: what is told of it, and a thumbnail to compare it by."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data.check.damaged import is_damaged_jpeg
from data.decoding import decode_all
from data.image_reader import ImageReader
from data.intensity import Levels
from data.mask_pixels import least_of_files, likeness_to_mask
from data.resize import height_width, to_array
from data.settings import DataSettings
from data.sources.folder import Folder
from runtime.errors import UserError

SIDE = 16  # of a thumbnail, in pixels
ROWS = 128  # of an image, in which neighbours are compared


@dataclass(frozen=True)
class Looks:
    """What was seen of each image; 0 where it cannot be read.

    Attributes:
        size: [N, 2] height and width, in pixels.
        uniform: [N] bool, all its pixels are the same.
        colour: [N] bool, some pixels are not gray.
        levels: [N] how many of the 256 levels of gray it has.
        mean: [N] of its levels, 0 to 255.
        deviation: [N] the standard deviation of its levels.
        roughness: [N] how much neighbouring pixels differ, as a share of how much any do: 1.3 of
            noise, as of what is decoded wrongly.
        likeness_to_mask: [N] 1 of a mask or a label map, NaN where that is not known.
        damaged: [N] bool, its file opens and lacks a part.
        thumbnails: [N, SIDE * SIDE] its gray, centred and of norm 1, or 0 without contrast.
        failures: by item, why it cannot be read, or not be used as the settings ask.
    """

    size: np.ndarray
    uniform: np.ndarray
    colour: np.ndarray
    levels: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    roughness: np.ndarray
    likeness_to_mask: np.ndarray
    damaged: np.ndarray
    thumbnails: np.ndarray
    failures: dict[int, UserError]

    @property
    def readable(self) -> np.ndarray:
        """[N] bool."""
        return self.size[:, 0] > 0

    def by_file(self, files: np.ndarray) -> "Looks":
        """Of each file, the mean of those of its images that can be read; the size is one image's,
        and the likeness to a mask the least.

        Args:
            files: of each image [N], 0 .. M - 1.
        """
        first, mean = _mean_of_files(files, self.readable)
        thumbnails = mean(self.thumbnails)
        norms = np.linalg.norm(thumbnails, axis=1, keepdims=True)
        return Looks(
            size=self.size[first],
            uniform=mean(self.uniform) == 1,
            colour=mean(self.colour) > 0,
            levels=mean(self.levels),
            mean=mean(self.mean),
            deviation=mean(self.deviation),
            roughness=mean(self.roughness),
            likeness_to_mask=least_of_files(self.likeness_to_mask, files),
            damaged=mean(self.damaged) > 0,
            thumbnails=thumbnails / np.maximum(norms, 1e-9),
            failures={},
        )


def look_at_all(reader: ImageReader, settings: DataSettings) -> Looks:
    """Reads all images, and makes of each what a run with these settings would."""
    n = len(reader)
    seen = {
        "size": np.zeros((n, 2), np.int64),
        "uniform": np.zeros(n, bool),
        "colour": np.zeros(n, bool),
        "levels": np.zeros(n, np.int64),
        "mean": np.zeros(n),
        "deviation": np.zeros(n),
        "roughness": np.zeros(n),
        "likeness_to_mask": np.full(n, np.nan),
        "damaged": np.zeros(n, bool),
        "thumbnails": np.zeros((n, SIDE * SIDE), np.float32),
    }

    def look(item: int) -> None:
        image = reader.read_image(item)
        for key, value in look_at(image).items():
            seen[key][item] = value
        seen["damaged"][item] = isinstance(reader, Folder) and is_damaged_jpeg(reader.files[item])
        to_array(image, *settings.resizing)

    failures = decode_all(look, n, f"reading {reader.name}", reader.item_name)
    return Looks(**seen, failures=failures)


def look_at(image: Levels) -> dict[str, object]:
    """Of one image, what Looks has of each."""
    whole, likeness = height_width(image), likeness_to_mask(image)
    if isinstance(image, np.ndarray):  # of bands their mean
        image = Image.fromarray(image.mean(-1, dtype=np.float32))
    pixels = Image.fromarray(to_array(image, whole, 3, upscale=False))
    gray = pixels.convert("L")
    histogram = np.asarray(gray.histogram())
    levels = np.arange(256)
    mean = float(histogram @ levels / histogram.sum())
    small = to_array(pixels, (SIDE, SIDE), 1, upscale=True, resample="box")
    centred = small.ravel() - small.mean(dtype=np.float32)
    return {
        "size": whole,
        "uniform": len(pixels.getcolors(1) or ()) == 1,
        "colour": _is_coloured(pixels),
        "levels": np.count_nonzero(histogram),
        "mean": mean,
        "deviation": float(histogram @ (levels - mean) ** 2 / histogram.sum()) ** 0.5,
        "roughness": _roughness(np.asarray(gray)),
        "likeness_to_mask": likeness,
        "thumbnails": centred / max(float(np.linalg.norm(centred)), 1.0),
    }


def _mean_of_files(
    files: np.ndarray, readable: np.ndarray
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The first readable image of each file, or its first; and what takes the mean of values of
    the images, 0 where none is readable."""
    order = np.lexsort((~readable, files))  # those that are readable first in each file
    first = order[np.unique(files[order], return_index=True)[1]]
    counted = np.flatnonzero(readable)
    counts = np.bincount(files[counted], minlength=len(first)).clip(1)

    def mean(values: np.ndarray) -> np.ndarray:
        total = np.zeros((len(first), *values.shape[1:]))
        np.add.at(total, files[counted], values[counted])
        return total / counts.reshape(-1, *[1] * (values.ndim - 1))

    return first, mean


def _roughness(gray: np.ndarray) -> float:
    values = gray[:: max(1, len(gray) // ROWS)].astype(np.float32)
    apart = np.abs(values - values.mean()).mean()
    return float(np.abs(np.diff(values)).mean() / apart) if apart and values.shape[1] > 1 else 0.0


def _is_coloured(pixels: Image.Image) -> bool:
    red, green, blue = (channel.tobytes() for channel in pixels.split())
    return not red == green == blue
