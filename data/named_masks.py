"""Masks, label maps and thumbnails that names tell, where pixels do not say otherwise: a class mask
beside nomask has photographs."""

import contextlib
import logging
from collections.abc import Callable, Sequence

import numpy as np

from data.decoding import IN_A_FILE
from data.folder_reader import FolderReader
from data.intensity import Levels
from data.mask_names import COPY, leave_out, masks_by_word
from data.mask_pixels import flatness
from data.resize import height_width
from data.splits import spread
from runtime.errors import UserError

LOOKED_AT = 16  # files that are named alike, and as many others
PHOTOGRAPHS = 0.5  # are less flat: 0 to 0.4; maps of superpixels 0.67, other masks 0.8 or more
ALIKE = 0.05  # in flatness, as drawings are to drawings
SMALLER = 0.5  # thumbnails have at most this share of the others' pixels
THUMBS = {"thumb", "thumbs"}  # which a hand has too
THUMBNAILS = {"thumbnail", "thumbnails", COPY}

log = logging.getLogger("data")


def warn_of_masks(reader: FolderReader) -> None:
    """Of files that names tell to be no images to train on."""
    items: dict[str, list[int]] = {}
    for item, file in enumerate(reader.files):
        items.setdefault(file.relative_to(reader.root).as_posix(), []).append(item)
    by_word = masks_by_word([*items])
    named = {name for found in by_word.values() for name in found}
    others = [name for name in items if name not in named]

    def typical(measure: Callable[[Levels], float], names: Sequence[str]) -> float:
        """The median of a few of them; NaN where none can be read."""
        found = []
        for k in spread(np.arange(len(names)), LOOKED_AT).tolist():
            frames = items[names[k]]
            with contextlib.suppress(UserError, *IN_A_FILE):  # told when all are read
                found.append(measure(reader.read_image(frames[len(frames) // 2])))
        return float(np.median(found)) if found else np.nan

    def are_images(words: frozenset[str], names: Sequence[str]) -> bool:
        if words <= THUMBS:
            return typical(_pixels, names) > SMALLER * typical(_pixels, others)
        if words & THUMBNAILS:
            return False
        flat = typical(flatness, names)
        return flat < PHOTOGRAPHS or abs(flat - typical(flatness, others)) < ALIKE

    told = [
        name for words, names in by_word.items() if not are_images(words, names) for name in names
    ]
    reader.release()
    if told:
        log.warning(
            f"{reader.root}: {len(told)} of {len(items)} files are masks, label maps or thumbnails "
            f"by their names, such as {told[0]}, and are trained on as images: "
            f"{leave_out(told, [*items])}"
        )


def _pixels(image: Levels) -> float:
    height, width = height_width(image)
    return height * width
