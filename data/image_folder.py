"""Images in a folder, such as others' samples or those that sample.py wrote."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.folder_layout import count_suffixes, list_files
from data.image_file import SUFFIXES, read_image_file
from data.intensity import value_range
from data.resize import to_array
from runtime.errors import UserError

SHEETS = {"grid.png", "strip.png"}  # of sample.py, beside its numbered images and none of them
SHOWN = 20  # files that a message names
GRAY = {"1", "L", "LA", "La", "F"}  # of Pillow's modes


def open_images(
    folder: str | Path,
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> np.ndarray:
    """[N, H, W, C] uint8: all images below the folder, by path and by number: 10.png comes after
    9.png.

    size: [height, width] or one number, to which images are scaled and cut as those of data/ are;
    None: as they are, all alike. channels: 1 (colour becomes luma) or 3 (gray is repeated); None: 3
    where any image has colour. Left out are hidden files, and the sheets of sample.py. Of files of
    more than 8 bits each is shown over its own range. say: told where images were scaled. Raises
    UserError where there are no images, where any is broken, and where sizes differ and none is
    given.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels} must be 1, 3 or None.")
    files = _files(folder)
    as_they_are = size is None
    height, width = (
        _size_of(files[0]) if size is None else (size, size) if isinstance(size, int) else size
    )
    size = height, width
    images = np.empty((len(files), *size, channels or 3), np.uint8)
    failures: dict[int, UserError] = {}
    scaled: list[int] = []

    def decode(k: int) -> bool:
        """Whether the image has colour."""
        try:
            image = read_image_file(files[k], value_range)
            if as_they_are and (image.height, image.width) != size:
                raise UserError(
                    f"{image.height} high and {image.width} wide, and {files[0]} is {size[0]} "
                    f"high and {size[1]} wide. Images of several sizes need one to be scaled to: "
                    "size=[HEIGHT,WIDTH]"
                )
            if (image.height, image.width) != size:
                scaled.append(k)
            images[k] = to_array(image, size, images.shape[-1], upscale=True)
            return image.mode not in GRAY
        except UserError as error:
            failures[k] = error
            return False

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        coloured = list(
            tqdm(
                pool.map(decode, range(len(files))),
                desc=f"reading {folder}",
                total=len(files),
                delay=2,
                leave=False,
            )
        )
    if failures:
        shown = [f"  {files[k]}: {failures[k]}" for k in sorted(failures)[:SHOWN]]
        more = f"\n  ... and {len(failures) - SHOWN} more" if len(failures) > SHOWN else ""
        raise UserError(
            f"{folder}: {len(failures)} of {len(files)} images cannot be used\n"
            + "\n".join(shown)
            + more
        )
    if scaled:
        say(
            f"the images are not all {size[0]} high and {size[1]} wide, and were scaled and cut "
            "to that"
        )
    return images if channels or any(coloured) else images[..., :1].copy()


def _files(folder: str | Path) -> list[Path]:
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(
            f"{folder}: "
            + (
                "a file, and a folder of images is needed."
                if root.is_file()
                else "there is no such folder."
            )
        )
    found = list_files(root)
    numbered = {path.parent for path in found if path.stem.isdecimal()}
    files = [
        path
        for path in found
        if path.suffix.lower() in SUFFIXES and not (path.name in SHEETS and path.parent in numbered)
    ]
    if not files:
        beside = (
            f"it has {len(found)} other files: {count_suffixes(found)}"
            if found
            else "it has no files"
        )
        raise UserError(
            f"{folder}: no images in it (looked for {', '.join(sorted(SUFFIXES))}; {beside})."
        )
    return sorted(files, key=lambda path: by_number(path.relative_to(root).as_posix()))


def by_number(name: str) -> list[tuple[int, str]]:
    """A key by which img10 comes after img9."""
    return [
        (int(part), part) if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _size_of(path: Path) -> tuple[int, int]:
    try:
        image = read_image_file(path, value_range)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return image.height, image.width
