"""One look at each image of a data set: what is told of it, and a thumbnail to compare it by."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from data.decoding import decode_all
from data.image_reader import ImageReader
from data.intensity import Levels
from data.mask_pixels import likeness_to_mask
from data.resize import height_width, to_array
from data.settings import DataSettings
from runtime.errors import UserError

SIDE = 16  # of a thumbnail, in pixels


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
        likeness_to_mask: [N] 1 of a mask or a label map, NaN where that is not known.
        thumbnails: [N, SIDE * SIDE] its gray, centred and of norm 1, or 0 without contrast.
        failures: by item, why it cannot be read, or not be used as the settings ask.
    """

    size: np.ndarray
    uniform: np.ndarray
    colour: np.ndarray
    levels: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    likeness_to_mask: np.ndarray
    thumbnails: np.ndarray
    failures: dict[int, UserError]

    @property
    def readable(self) -> np.ndarray:
        """[N] bool."""
        return self.size[:, 0] > 0


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
        "likeness_to_mask": np.full(n, np.nan),
        "thumbnails": np.zeros((n, SIDE * SIDE), np.float32),
    }

    def look(item: int) -> None:
        image = reader.read_image(item)
        for key, value in look_at(image).items():
            seen[key][item] = value
        to_array(image, *settings.resizing)

    failures = decode_all(look, n, f"reading {reader.name}", reader.item_name)
    return Looks(**seen, failures=failures)


def look_at(image: Levels) -> dict[str, object]:
    """Of one image, what Looks has of each."""
    whole, likeness = height_width(image), likeness_to_mask(image)
    if isinstance(image, np.ndarray):  # of bands their mean
        image = Image.fromarray(image.mean(-1, dtype=np.float32))
    pixels = Image.fromarray(to_array(image, whole, 3, upscale=False))
    histogram = np.asarray(pixels.convert("L").histogram())
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
        "likeness_to_mask": likeness,
        "thumbnails": centred / max(float(np.linalg.norm(centred)), 1.0),
    }


def _is_coloured(pixels: Image.Image) -> bool:
    red, green, blue = (channel.tobytes() for channel in pixels.split())
    return not red == green == blue
