"""MedMNIST+ (Yang et al. 2023): twelve sets of medical images, 28 to 224 pixels, with their
official splits."""

import logging
from collections.abc import Sequence
from pathlib import Path

from data.file_cache import FileCache
from data.image_reader import MEANWHILE
from data.sources.npz import Npz
from data.sources.npz_content import list_headers
from data.splits import SPLITS
from runtime.download import PublishedFile, digest, fetch, published
from runtime.errors import UserError, near

log = logging.getLogger("data")

# the images of train, val and test
SETS = {
    "pathmnist": (89996, 10004, 7180),
    "chestmnist": (78468, 11219, 22433),
    "dermamnist": (7007, 1003, 2005),
    "octmnist": (97477, 10832, 1000),
    "pneumoniamnist": (4708, 524, 624),
    "retinamnist": (1080, 120, 400),
    "breastmnist": (546, 78, 156),
    "bloodmnist": (11959, 1712, 3421),
    "tissuemnist": (165466, 23640, 47280),
    "organamnist": (34561, 6491, 17778),
    "organcmnist": (12975, 2392, 8216),
    "organsmnist": (13932, 2452, 8827),
}
SIZES = (28, 64, 128, 224)


class MedMnist(Npz):
    """One set of MedMNIST: root/NAME.npz at 28 pixels, root/NAME_SIZE.npz at 64, 128 and 224;
    fetched where it is missing.

    Args:
        name: such as pneumoniamnist.
        file_size: of the images in the file, 28, 64, 128 or 224.
        classes: names of the labels 0, 1, ..., null for the numbers.
    """

    together = ""  # the splits are official

    def __init__(
        self,
        file_cache: FileCache,
        name: str,
        file_size: int,
        root: str,
        classes: Sequence[str] | None = None,
    ):
        if name.endswith("mnist3d"):
            raise UserError(
                f"data.name={name}: volumes, and this code learns images of two dimensions: "
                f"{', '.join(sorted(SETS))}."
            )
        if name not in SETS:
            raise UserError(
                f"data.name={name}: there is no such set in MedMNIST; {near(name.lower(), SETS)}"
            )
        if file_size not in SIZES:
            raise UserError(
                f"data.file_size={file_size}: MedMNIST has {', '.join(map(str, SIZES))}; "
                "data.size scales them to any other."
            )
        path = Path(root).expanduser() / file_name(name, file_size)
        fetch(path.name, path, _instead(path, name, file_size))
        super().__init__(file_cache, str(path), classes=classes)
        shape = self.headers[self.keys["train"][0]].shape
        if shape[1:3] != (file_size, file_size) or tuple(self.keys) != SPLITS:
            raise UserError(
                f"{path} is not {name} at {file_size}x{file_size}: it holds "
                f"{list_headers(self.headers)}. Put the official file there "
                f"({_known(path).url}), or read this one as it is: data=npz "
                f"data.path={path}."
            )
        counts = tuple(self.counts.values())
        if counts != SETS[name]:
            log.warning(
                "%s: %s, %s and %s images to train, validate and test; the official file has %s, "
                "%s and %s",
                path,
                *counts,
                *SETS[name],
            )
        elif (found := file_cache.look_up([path], "md5, 1", _md5)[0]) != _known(path).md5:
            log.warning(
                "%s: its md5 is %s, and that of the official file %s; it is taken as it is",
                path,
                found,
                _known(path).md5,
            )


def _known(path: Path) -> PublishedFile:
    return published()[path.name]


def _md5(path: Path) -> str:
    return digest(path, "md5")


def file_name(name: str, size: int) -> str:
    return f"{name}.npz" if size == 28 else f"{name}_{size}.npz"


def _instead(path: Path, name: str, size: int) -> str:
    """What else there is where a file cannot be had: the same images in another size, or a demo."""
    found = []
    for other in SIZES:
        file = path.with_name(file_name(name, other))
        if file.is_file():
            end = f", with data.upscale=true up to data.size={size}." if other < size else "."
            found.append(f"{file} is there: data.file_size={other} takes it{end}")
    return " ".join([*found, MEANWHILE])
