"""Masks and label maps among images, by their pixels."""

import numpy as np
from PIL import Image

from data.intensity import Levels, seen

LOOKED_AT = 96  # rows and columns of an image, evenly
ALL_LEVELS = 16  # that a label map has at most
NEAR = 0.1  # of an image's range: a level that a lossy format or scaling has blurred is as near
FEWEST = 64  # pixels, of which less is no evidence
APART = 3  # levels
SAME = 0.5  # of the pixels near a level have one value, at least, in a mask
CONNECTED = 0.9  # of neighbours are equal: 0.6 to 0.84 in water
FEW, MANY = 0.9, 0.75  # a mask is above, an image below


def are_masks(likeness: np.ndarray) -> np.ndarray:
    """Which images of a set are masks, [N] bool: those with few levels beside others with many.
    What may be a blurred mask counts where there is hardly any image in between.

    Args:
        likeness: of each image, [N], NaN for what is not known.
    """
    few, many = likeness >= FEW, likeness < MANY
    between = np.count_nonzero(likeness < FEW) - np.count_nonzero(many)
    if not many.any():
        return np.zeros_like(few)
    if between <= 0.1 * few.sum() + 0.01 * np.count_nonzero(~np.isnan(likeness)):
        return few
    return likeness == 1


def least_of_files(likeness: np.ndarray, files: np.ndarray) -> np.ndarray:
    """Of each file the least likeness of its images, [M]: slices of air have few levels.

    Args:
        likeness: of each image, [N], NaN for what is not known.
        files: the number of its file, [N], 0 .. M - 1.
    """
    least = np.full(files.max() + 1, np.nan)
    np.fmin.at(least, files, likeness)
    return least


def likeness_to_mask(image: Levels) -> float:
    """1 of what has few levels. Else, of the pixels that are not near the most frequent level, the
    share that is near the level farthest from it: all of a mask, also of one with blurred edges,
    and few of a photograph, whatever lies around it. NaN where too few pixels differ.

    An image of mode "F" has more values than levels, as a range for all files may leave it few of
    these: it has few levels where it has few values, and is no mask (0) where the most frequent
    level, or the farthest, is of many.
    """
    image = seen(image)
    stretched = isinstance(image, Image.Image) and image.mode == "F"
    if isinstance(image, Image.Image):
        size = min(LOOKED_AT, image.width), min(LOOKED_AT, image.height)
        image = np.asarray(image.resize(size, Image.Resampling.NEAREST))
    rows, columns = (max(1, side // LOOKED_AT) for side in image.shape[:2])
    values = image[::rows, ::columns].astype(np.float32)
    values = values.reshape(*values.shape[:2], -1)[..., :3].mean(-1).clip(0, 255)
    counts = np.bincount(values.round().astype(np.uint8).ravel())
    apart = np.abs(values - counts.argmax())
    near = NEAR * float(np.ptp(values))
    if (apart > near).sum() < FEWEST:
        return np.nan
    n = len(np.unique(values)) if stretched else np.count_nonzero(counts)
    if n <= ALL_LEVELS:
        levels = np.flatnonzero(counts)
        return 1.0 if _is_label_map(values.round(), levels, stretched) else np.nan
    far = apart >= apart.max() - near
    if stretched and not (_mostly_one(values[apart <= near]) and _mostly_one(values[far])):
        return 0.0
    return float(far.sum() / (apart > near).sum())


def _mostly_one(values: np.ndarray) -> bool:
    return bool(np.unique(values, return_counts=True)[1].max() >= SAME * values.size)


def flatness(image: Levels) -> float:
    """The share of pixels that are equal to their neighbour: most in a mask, also of one with soft
    edges, in many colours or saved as JPEG; few in a photograph."""
    pixels = np.asarray(seen(image))
    pixels = pixels[:: max(1, len(pixels) // LOOKED_AT)]
    equal = pixels[:, 1:] == pixels[:, :-1]
    return float(equal.reshape(*equal.shape[:2], -1).all(-1).mean()) if equal.size else np.nan


def _is_label_map(values: np.ndarray, levels: np.ndarray, stretched: bool) -> bool:
    """Whether few levels are labels, and not those of an image of little contrast, such as water:
    they lie apart, which those of counts do where they were stretched, or their regions are
    connected."""
    equal = (values[1:] == values[:-1]).mean() + (values[:, 1:] == values[:, :-1]).mean()
    lie_apart = not stretched and np.median(np.diff(levels)) >= APART
    return len(levels) <= 3 or bool(lie_apart) or equal / 2 >= CONNECTED
