"""What images tell of their set while they are decoded: which may be masks, and how much scaling
cuts off."""

import logging

import numpy as np

from data.folder_reader import FolderReader
from data.image_reader import ImageReader
from data.intensity import Levels
from data.mask_names import leave_out, masks_among
from data.mask_pixels import are_masks, least_of_files, likeness_to_mask
from data.resize import height_width

log = logging.getLogger("data")


class AsDecoded:
    """Noted of each image, before it is scaled."""

    def __init__(self, count: int):
        self.sizes = np.zeros((count, 2), np.int64)  # height, width
        self.likeness = np.full(count, np.nan)

    def note(self, item: int, image: Levels) -> None:
        """Called from several threads."""
        self.sizes[item] = height_width(image)
        self.likeness[item] = likeness_to_mask(image)

    def of(self, item: int) -> tuple[list[int], float]:
        """What was noted of an image, as JSON has it."""
        return self.sizes[item].tolist(), float(self.likeness[item])

    def take(self, item: int, size: list[int], likeness: float) -> None:
        """What was noted of it by an earlier start."""
        self.sizes[item], self.likeness[item] = size, likeness

    def tell(self, reader: ImageReader, size: tuple[int, int], fit: str) -> None:
        """To the log, of images that are scaled to this height and width."""
        if scaled := describe_scaling(self.sizes, size, fit):
            log.info(f"{reader.name}: {scaled}")
        if isinstance(reader, FolderReader):
            self._tell_masks(reader)

    def _tell_masks(self, reader: FolderReader) -> None:
        """Warns of files with few grey levels beside files with many; not again of those that
        their names tell."""
        names = [file.relative_to(reader.root).as_posix() for file in reader.files]
        number = {name: k for k, name in enumerate(dict.fromkeys(names))}
        files = np.array([number[name] for name in names])
        few = are_masks(least_of_files(self.likeness, files))
        known = {*masks_among([*number])}
        new = [name for name, is_one in zip(number, few) if is_one and name not in known]
        if new:
            log.warning(
                f"{reader.name}: {len(new)} of {len(number)} files have few grey levels, as "
                f"masks and label maps do, beside others with many, such as {new[0]}; "
                f"{leave_out(new, names)}"
            )


def describe_scaling(sizes: np.ndarray, size: tuple[int, int], fit: str) -> str:
    """How many images are scaled, and what is cut off of them or laid around them; "" where none
    is.

    Args:
        sizes: height and width of each, [N, 2]; 0 where it cannot be read.
        size: height and width that they are scaled to.
    """
    sizes = sizes[sizes.all(1)]
    changed = sizes[(sizes != size).any(1)]
    if not len(changed):
        return ""
    low, high = ("x".join(map(str, each)) for each in (changed.min(0), changed.max(0)))
    said = f"{len(changed)} of {len(sizes)} images are scaled to {size[0]}x{size[1]} (height x "
    said += f"width), from {low}" + (f" to {high}" if low != high else "")
    scales = np.array(size) / changed
    kept = scales.min(1) / scales.max(1)  # of the area, of either the image or the picture
    if kept.mean() < 0.995:
        said += {
            "crop": "; the centre crop cuts off {0:.0%} of their area, at most {1:.0%}, and "
            "data.fit=pad keeps it",
            "pad": "; {0:.0%} of the picture, at most {1:.0%}, is black around them",
        }[fit].format(1 - kept.mean(), 1 - kept.min())
    return said
