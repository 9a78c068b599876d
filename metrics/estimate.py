"""evaluation.json, and how a number with its uncertainty stands in it."""

import math
from typing import Any, TypedDict

from torch import Tensor

from metrics.intervals import image_interval

Record = dict[str, Any]  # a part of evaluation.json
EVALUATION, VERSION = "evaluation.json", 2  # the file, and its format
# of the held-out loss: raise when the same rows and draws give other triples of image, t and noise
GRID = 2


def as_now(evaluation: Record) -> Record:
    """The content of an evaluation.json, whose baselines were once called floors."""
    return {"baselines" if key == "floors" else key: value for key, value in evaluation.items()}


class OfImages(TypedDict, total=False):
    of_images: int


class Estimate(OfImages):
    """value: of all images. low, high: the 95% interval over images, None of a single one.
    replicates: of the bootstrap, to pair with another model's. images: from how many they were
    drawn, the fewest where there are several sets: of images in groups, such as patients, from how
    many groups. of_images: there alone, how many images these groups are; where one has it and
    another has not, the two were drawn otherwise and are not paired."""

    value: float
    low: float | None
    high: float | None
    replicates: list[float]
    images: int


def estimate(
    value: float, replicates: Tensor, images: int, of_images: int | None = None
) -> Estimate:
    """replicates [draws], finite; kept to 6 significant digits. ValueError where anything is NaN or
    infinite. images, of_images: see metrics.resampling.drawn_from."""
    low, high = image_interval(value, replicates, images)
    if not math.isfinite(value):
        raise ValueError(f"An estimate needs a finite number, not {value}.")
    found: Estimate = {
        "value": float(value),
        "low": low,
        "high": high,
        "replicates": [float(f"{r:.6g}") for r in replicates.tolist()],
        "images": images,
    }
    return found if of_images is None else {**found, "of_images": of_images}
