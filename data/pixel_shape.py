"""Pixels that are not square, which are taken as if they were."""

import logging
from collections.abc import Mapping
from pathlib import Path

OBLONG = 1.05  # times as long as wide, from which on it shows
log = logging.getLogger("data")


def tell_of_oblong(name: str, heights: Mapping[Path, float | None]) -> None:
    """Warns of files whose pixels are not square.

    Args:
        name: of the set.
        heights: of the pixels of each file, in their widths; None where that is not known.
    """
    found = {p: h for p, h in heights.items() if h and max(h, 1 / h) > OBLONG}
    if found:
        path, height = max(found.items(), key=lambda each: max(each[1], 1 / each[1]))
        log.warning(
            f"{name}: the pixels of {len(found)} of {len(heights)} files are not square, such as "
            f"those of {path}, {height:.3g} times as high as wide. They are taken as square, so "
            f"what they show is too {'low' if height > 1 else 'high'} by that. Resample "
            "them to square pixels beforehand, or leave them out."
        )
