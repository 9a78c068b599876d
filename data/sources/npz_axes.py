"""Whether the images of an array lie along its first axis, as they should."""

from pathlib import Path

import numpy as np

from data.file_cache import FileCache
from data.sources.npz_content import Header, of_array
from data.sources.npz_keys import Keys
from runtime.errors import UserError

SEEN = 128  # along an axis, in the middle of the array


def check_axes(file_cache: FileCache, path: Path, headers: dict[str, Header], keys: Keys) -> None:
    """
    Raises:
        UserError: where an array without labels, which would tell, is [H, W, N] or [H, W, N, 3].
    """
    for key, label in keys.values():
        shape = headers[key].shape
        if label or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
            continue
        if file_cache.look_up([path], f"axes of {key}, 1", of_array(key, is_last_axis))[0]:
            axis, order = (-1, "[H, W, N]") if len(shape) == 3 else (2, "[H, W, N, 3]")
            sure = "[..., None]" if len(shape) == 3 else ".transpose(0, 3, 1, 2)"
            raise UserError(
                f"{path}: {key} is {headers[key]}, and looks like {order}. Save it as [N, H, W"
                f"{order[8:]}: numpy.moveaxis({key}, {axis}, 0). If its first axis counts images, "
                f"say so by {key}{sure}."
            )


def is_last_axis(images: np.ndarray) -> bool:
    """Whether images [A, B, C] or [A, B, C, 3] lie along the third axis: neighbours are alike along
    the height and width of an image. Where that does not show, as in noise, two equal sides in
    front are those of a square."""
    middle = tuple(slice(max(0, (n - SEEN) // 2), (n + SEEN) // 2) for n in images.shape[:3])
    some = images[middle].astype(np.float64)
    with np.errstate(invalid="ignore"):
        steps = [np.abs(np.diff(some, axis=axis)) for axis in range(3)]
    first, second, third = (float(np.nanmean(step)) if step.size else 0.0 for step in steps)
    if max(second, third) < first / 2:
        return False
    square = images.shape[0] == images.shape[1] != images.shape[2]
    return square or max(first, second) < third / 2
