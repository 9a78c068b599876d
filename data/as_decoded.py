"""What images tell of their set while they are decoded: which may be masks, and how much scaling
cuts off."""

import logging

import numpy as np
from PIL import Image

from data.folder_reader import FolderReader
from data.image_reader import ImageReader
from data.intensity import Levels, seen
from data.mask_names import leave_out, masks_among
from data.resize import height_width

LOOKED_AT = 96  # rows and columns of an image, evenly
ALL_LEVELS = 16  # that a label map has at most
NEAR = 0.1  # of an image's range: a level that a lossy format or scaling has blurred is as near
FEWEST = 64  # pixels, of which less is no evidence
FEW, MANY = 0.9, 0.75  # a mask is above, an image below

log = logging.getLogger("data")


class AsDecoded:
    """Noted of each image, before it is scaled."""

    def __init__(self, count: int):
        self.sizes = np.zeros((count, 2), np.int64)  # height, width
        self.few = np.full(count, np.nan)

    def note(self, item: int, image: Levels) -> None:
        """Called from several threads."""
        self.sizes[item] = height_width(image)
        self.few[item] = likeness_to_mask(image)

    def tell(self, reader: ImageReader, size: tuple[int, int], fit: str) -> None:
        """To the log, of images that are scaled to this height and width."""
        self._tell_scaling(reader.name, size, fit)
        if isinstance(reader, FolderReader):
            self._tell_masks(reader)

    def _tell_masks(self, reader: FolderReader) -> None:
        """Warns of files with few grey levels beside files with many, of which there are hardly any
        in between; not again of those that their names tell."""
        names = [file.relative_to(reader.root).as_posix() for file in reader.files]
        shares: dict[str, list[float]] = {}
        for name, share in zip(names, self.few.tolist()):
            if share == share:
                shares.setdefault(name, []).append(share)
        lowest = {name: min(each) for name, each in shares.items()}
        few = [name for name, share in lowest.items() if share >= FEW]
        many = [name for name, share in lowest.items() if share < MANY]
        known = {*masks_among([*dict.fromkeys(names)])}
        new = [name for name in few if name not in known]
        between = len(lowest) - len(few) - len(many)
        if new and many and between <= 0.1 * len(few) + 0.01 * len(lowest):
            log.warning(
                f"{reader.name}: {len(new)} of {len({*names})} files have few grey levels, as "
                f"masks and label maps do, beside others with many, such as {new[0]}; "
                f"{leave_out(new, names)}"
            )

    def _tell_scaling(self, name: str, size: tuple[int, int], fit: str) -> None:
        """How many images are scaled, and what is cut off of them or laid around them."""
        sizes = self.sizes[self.sizes.all(1)]  # of those that could be read
        changed = sizes[(sizes != size).any(1)]
        if not len(changed):
            return
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
        log.info(f"{name}: {said}")


def likeness_to_mask(image: Levels) -> float:
    """1 of what has few levels. Else, of the pixels that are not near the most frequent level, the
    share that is near the level farthest from it: all of a mask, also of one with blurred edges,
    and few of a photograph, whatever lies around it. NaN where too few pixels differ."""
    image = seen(image)
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
    if np.count_nonzero(counts) <= ALL_LEVELS:
        return 1.0
    return float((apart >= apart.max() - near).sum() / (apart > near).sum())
