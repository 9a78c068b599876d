"""In which layout an array of an .npz holds images."""

from collections.abc import Sequence

import numpy as np

from data.sources.npz_content import Header
from runtime.errors import UserError

MOST_CHANNELS = 64  # more are perhaps the rows of a small image


def channels_axis(shape: Sequence[int]) -> int | None:
    """Which axis of an image of three axes is that of its channels, 0 or 2; None where none or both
    may be: 1 or 3 is gray or colour, and others are fewer than rows and columns, or beside as many
    columns as rows."""
    first, middle, last = shape
    usual = [axis for axis in (0, 2) if shape[axis] in (1, 3)]
    square = {0: middle == last != first, 2: first == middle != last}
    fewer = {0: first < min(middle, last), 2: last < min(first, middle)}
    likely = [
        axis for axis in (0, 2) if shape[axis] <= MOST_CHANNELS and (square[axis] or fewer[axis])
    ]
    found = usual or likely
    return found[0] if len(found) == 1 else None


def count_channels(shape: Sequence[int]) -> int:
    """Of an array of images."""
    axis = channels_axis(shape[1:]) if len(shape) == 4 else None
    return 1 if axis is None else shape[1 + axis]


def channels_last(images: np.ndarray) -> np.ndarray:
    """[N, H, W], or with its channels behind N or at the end, as [N, H, W, C]."""
    if images.ndim == 3:
        return images[..., None]
    return np.moveaxis(images, 1, -1) if channels_axis(images.shape[1:]) == 0 else images


def check_images(header: Header, where: str) -> None:
    """Whether rows of the array are images, as channels_last takes them.

    Raises:
        UserError: for what is no array of images, or could be two.
    """
    shape, dtype = header.shape, header.dtype
    if dtype.hasobject:
        raise UserError(
            f"{where} holds Python objects, which are pickled; a pickle can run code, so it is "
            "not opened. Save the images as one array of numbers, all of one size: "
            "numpy.savez(FILE, images=numpy.stack(LIST))."
        )
    if dtype.kind not in "uifb":
        raise UserError(
            f"{where} is {header}, and images are numbers. Name another array by data.images=KEY."
        )
    if 0 in shape:
        raise UserError(f"{where} is {header}: there are no images in it.")
    if len(shape) == 3 and shape[2] not in (1, 3, 4):
        return
    known = len(shape) == 4 and channels_axis(shape[1:]) is not None
    if known and (count_channels(shape) in (1, 3) or shape[0] not in (1, 3)):  # or [C, H, W, N]
        return
    if len(shape) == 4 and {shape[1], shape[3]} <= {1, 3}:
        raise UserError(
            f"{where} is {header}: which number is the channels. Save it in another size or as "
            "[N, H, W]."
        )
    raise UserError(f"{where} is {header}: {_why_no_images(shape)}.")


def _why_no_images(shape: tuple[int, ...]) -> str:
    """Why an array of this shape cannot be read, and what would be."""
    if len(shape) == 3:
        return (
            "this is perhaps one image [H, W, channels]; save images as [N, H, W] or [N, H, W, 3]"
        )
    if len(shape) == 4 and (shape[2] in (1, 3) or shape[0] in (1, 3)):
        order, axes = (
            ("[H, W, C, N]", (3, 0, 1, 2)) if shape[2] in (1, 3) else ("[C, H, W, N]", (3, 1, 2, 0))
        )
        return f"this is perhaps {order}; save images.transpose{axes}, which is [N, H, W, C]"
    if len(shape) in (4, 5):
        return (
            "volumes [N, D, H, W], and this code learns images of two dimensions; save slices as "
            "[N, H, W], such as volumes[:, D // 2] for the middle one of each, with the slices of "
            "one volume in one split"
        )
    return "images are [N, H, W], [N, H, W, 3] or [N, 3, H, W]; reshape it and save it again"
