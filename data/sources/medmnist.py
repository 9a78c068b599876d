"""MedMNIST+ (Yang et al. 2023): twelve sets of medical images, 28 to 224 pixels, with their
official splits."""

import importlib
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from data.file_cache import FileCache
from data.sources.npz import Npz
from data.sources.npz_content import list_headers
from data.splits import SPLITS
from runtime.errors import UserError, near
from runtime.files import locked

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
URL = "https://zenodo.org/records/10519652/files/{file}?download=1"  # of medmnist 3.0.2


class MedMnist(Npz):
    """One set of MedMNIST: root/NAME.npz at 28 pixels, root/NAME_SIZE.npz at 64, 128 and 224.

    Args:
        name: such as pneumoniamnist.
        file_size: of the images in the file, 28, 64, 128 or 224.
        download: fetch a file that is missing through the medmnist package, which is needed for
            nothing else.
        classes: names of the labels 0, 1, ..., null for the numbers.
    """

    def __init__(
        self,
        file_cache: FileCache,
        name: str,
        file_size: int,
        root: str,
        download: bool = False,
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
        if not path.is_file():
            if not download:
                raise UserError(
                    f"{path} is not there. Where there is a network: pip install medmnist, then "
                    "data.download=true. Or by hand: " + _by_hand(name, file_size, path)
                )
            download_file(name, file_size, path)
        super().__init__(file_cache, str(path), classes=classes)
        shape = self.headers[self.keys["train"][0]].shape
        if shape[1:3] != (file_size, file_size) or tuple(self.keys) != SPLITS:
            raise UserError(
                f"{path} is not {name} at {file_size}x{file_size}: it holds "
                f"{list_headers(self.headers)}. Put the official file there "
                f"({URL.format(file=path.name)}), or read this one as it is: data=npz "
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


def file_name(name: str, size: int) -> str:
    return f"{name}.npz" if size == 28 else f"{name}_{size}.npz"


def download_file(name: str, size: int, path: Path) -> None:
    """Fetches a file through the medmnist package, which checks its md5. It appears whole or not at
    all.

    Raises:
        UserError: where that fails, with what to do by hand.
    """
    aside = path.parent / f".{path.name}.{os.getpid()}"
    try:
        with locked(path.parent / f".{path.name}.lock"):
            if path.is_file():  # another process was faster
                return
            aside.mkdir(exist_ok=True)
            package = vars(importlib.import_module("medmnist"))
            # PneumoniaMNIST and the like
            kind = next(package[found] for found in package if found.lower() == name)
            kind(split="val", download=True, root=str(aside), size=size)
            os.replace(aside / path.name, path)
    except ImportError as error:
        raise UserError(
            f"data.download=true needs the medmnist package ({error}): pip install medmnist. Or "
            "by hand: " + _by_hand(name, size, path)
        ) from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error}): set data.root to a folder of yours."
        ) from error
    except Exception as error:  # the package makes a RuntimeError of many lines of anything
        raise UserError(
            f"{path.name}: the download through the medmnist package failed; there is no "
            "network, or its version is below 3. By hand: " + _by_hand(name, size, path)
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _by_hand(name: str, size: int, path: Path) -> str:
    beside = ""
    for other in SIZES:
        file = path.parent / file_name(name, other)
        if file.is_file():
            end = f", with data.upscale=true up to data.size={size}." if other < size else "."
            beside += f" {file} is there: data.file_size={other} takes it{end}"
    return (
        f"download {URL.format(file=path.name)} to {path}.{beside} Meanwhile, with no download: "
        "python train.py +experiment=transfer_demo"
    )
