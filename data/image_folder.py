"""Images in a folder, such as others' samples or those that sample.py wrote."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data.decoding import decode_all, list_broken
from data.folder_layout import beside_others, list_folder, none_found
from data.image_file import read_image_file
from data.image_formats import SUFFIXES, looks_like_image
from data.intensity import Levels, seen
from data.library_warnings import heard
from data.resize import height_width, to_array
from runtime.errors import UserError

SHEETS = {"grid.png", "strip.png"}  # of sample.py, beside its numbered images and none of them
GRAY = {"1", "L", "LA", "La", "F"}  # of Pillow's modes


def open_images(
    folder: str | Path,
    size: Sequence[int] | None = None,
    channels: int | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> np.ndarray:
    """All images below the folder, by path and by number: 10.png comes after 9.png. Left out are
    hidden files, and the sheets of sample.py. Of files of more than 8 bits each is shown over its
    own range.

    Args:
        size: [height, width], to which images are scaled and cut as those of data/ are; None: as
            they are, all alike.
        channels: 1 (colour becomes luma), 3 (gray is repeated), or as many as there are; None: 3
            where any image has colour, and of bands as many as the first image has.
        say: told where images were scaled.

    Returns:
        [N, H, W, C] uint8.

    Raises:
        UserError: where there are no images, where any is broken, and where sizes differ and none
            is given.
    """
    files = image_files(folder)
    first = _first(files[0])
    H, W = size or height_width(first)
    bands = first.shape[2] if isinstance(first, np.ndarray) else 3
    images = np.empty((len(files), H, W, channels or bands), np.uint8)
    coloured: list[int] = []
    scaled: list[int] = []

    def decode(k: int) -> None:
        image = read_image_file(files[k])
        height, width = height_width(image)
        if (height, width) != (H, W):
            if not size:
                raise UserError(
                    f"{height} high and {width} wide, and {files[0]} is {H} high and "
                    f"{W} wide. Images of several sizes need one to be scaled to: "
                    "size=[HEIGHT,WIDTH]"
                )
            scaled.append(k)
        picture = seen(image)
        if isinstance(picture, np.ndarray) or picture.mode not in GRAY:
            coloured.append(k)
        images[k] = to_array(image, (H, W), images.shape[-1], upscale=True)

    failures = decode_all(decode, len(files), f"reading {folder}", files.__getitem__)
    if failures:
        heading = f"{folder}: {len(failures)} of {len(files)} images cannot be used"
        raise UserError(list_broken(failures, files.__getitem__, heading))
    if scaled:
        say(f"the images are not all {H} high and {W} wide, and were scaled and cut to that")
    return images if channels or coloured else images[..., :1].copy()


def image_files(folder: str | Path) -> list[Path]:
    """Those of open_images, in their order."""
    root, found = list_folder(folder, str(folder))
    numbered = {path.parent for path in found if re.fullmatch(r"\d+(_.+)?", path.stem)}
    beside = beside_others(found)
    files = [
        path
        for path in found
        if path not in beside
        and (path.suffix.lower() in SUFFIXES or looks_like_image(path))
        and not (path.name in SHEETS and path.parent in numbered)
    ]
    if not files:
        raise none_found(str(folder), "images", SUFFIXES, found)
    return sorted(files, key=lambda path: by_number(path.relative_to(root).as_posix()))


def by_number(name: str) -> list[tuple[int, str]]:
    """A key by which img10 comes after img9."""
    return [
        (int(part), part) if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _first(path: Path) -> Levels:
    try:
        with heard():  # it is told when all are read
            return read_image_file(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
