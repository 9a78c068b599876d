"""CIFAR-10 (Krizhevsky 2009), from the binary or the Python version of its authors."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from data.file_cache import FileCache
from data.image_reader import MEANWHILE, ImageReader
from data.recent import Recent
from data.unpack import unpack
from runtime.content import sha256_of
from runtime.errors import UserError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
IMAGES, RECORD = 10_000, 1 + 3 * 32 * 32  # of a batch; bytes: a label, the planes R, G and B
PICKLES = {  # md5, as the authors' page and torchvision have them
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
BATCHES = list(PICKLES)
URL = "https://www.cs.toronto.edu/~kriz/cifar.html"
BINARY, PYTHON = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"
ARCHIVES = {  # the folder inside, and the end of its batches' names
    BINARY: ("cifar-10-batches-bin", ".bin"),
    PYTHON: ("cifar-10-batches-py", ""),
}
INSTEAD = (
    "For a folder of images (DIR/train/airplane/*.png ...): data=folder data.path=DIR "
    f"data.size=32. {MEANWHILE}"
)


class Cifar10(ImageReader):
    """The 60,000 images of cifar-10-batches-bin or cifar-10-batches-py, in path or one level below;
    out of an archive in path where neither is there, which is fetched where none is.

    The 50,000 training images stay whole, as in the papers; of the official test set the images at
    even places are for validation, those at odd places for test. The fingerprint is of the images
    and labels, whichever version they come from.
    """

    name = "CIFAR-10"
    classes = CLASSES

    def __init__(self, file_cache: FileCache, path: str):
        root = Path(path).expanduser()
        root = root.parent if root.name in ARCHIVES else root
        self.files = _find_batches(root) or _unpack_batches(root)
        known = file_cache.look_up(
            self.files, "CIFAR-10: sha256 of the records and labels, 1", _summarize_batch
        )
        file_cache.sha256(self.files)  # refuses what cannot be opened
        self.fingerprint = sha256_of(["CIFAR-10", 1, [batch["sha256"] for batch in known]])
        self.labels = [int(digit) for batch in known for digit in batch["labels"]]
        n, n_train = len(self.labels), 5 * IMAGES
        self.splits = {
            "train": range(n_train),
            "validation": range(n_train, n, 2),
            "test": range(n_train + 1, n, 2),
        }

        def load(file: Path) -> np.ndarray:
            with file_cache.unchanged(file):
                return read_records(file)

        self._records = Recent(load, len(self.files))

    def read_image(self, item: int) -> Image.Image:
        batch, k = divmod(item, IMAGES)
        planes = self._records(self.files[batch])[k, 1:].reshape(3, 32, 32)
        return Image.fromarray(planes.transpose(1, 2, 0))

    def file_of(self, item: int) -> Path:
        return self.files[item // IMAGES]

    def item_name(self, item: int) -> str:
        return f"image {item % IMAGES} of {self.file_of(item)}"


def read_records(file: Path) -> np.ndarray:
    """One batch, in the form of the binary version.

    Returns:
        [IMAGES, RECORD] uint8.

    Raises:
        UserError: where the file is another.
    """
    data = file.read_bytes()
    found = np.frombuffer(data, np.uint8) if file.suffix == ".bin" else _unpickled(data, file)
    again = f"Unpack {BINARY} again, or download it again from {URL}."
    if found.size != IMAGES * RECORD:
        raise UserError(
            f"{file}: {found.size} bytes, and a batch of CIFAR-10 has {IMAGES * RECORD}; the "
            f"file is cut short or another. {again}"
        )
    found = found.reshape(IMAGES, RECORD)
    if found[:, 0].max() >= len(CLASSES):
        raise UserError(
            f"{file}: a label of {found[:, 0].max()}, and CIFAR-10 has 0 to 9: this is another "
            f"file. {again}"
        )
    return found


def _unpickled(data: bytes, file: Path) -> np.ndarray:
    """A pickle can run any code while it is read, so only the authors' own bytes are."""
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if md5 != PICKLES[file.name]:
        raise UserError(
            f"{file}: its md5 is {md5} and not {PICKLES[file.name]}, that of the official file. "
            "It is damaged or was changed, and a pickle can run code, so it is not opened. "
            f"Unpack {PYTHON} again, download it again from {URL}, or use {BINARY}, which holds "
            "no code."
        )
    batch = pickle.loads(data, encoding="latin1")
    return np.column_stack([np.asarray(batch["labels"], np.uint8), batch["data"]])


def _summarize_batch(file: Path) -> dict[str, str]:
    """What a later start needs of a batch without reading it: a hash of its records, and their
    labels as a row of digits."""
    found = read_records(file)
    return {
        "sha256": hashlib.sha256(found.tobytes()).hexdigest(),
        "labels": "".join(map(str, found[:, 0].tolist())),
    }


def _find_batches(root: Path) -> list[Path]:
    """The six batches, from one folder; the binary version where both are there. Empty where none
    is."""
    below = sorted(p for p in root.glob("[!.]*") if p.is_dir())
    for suffix in (".bin", ""):
        for folder in [root, *below]:
            files = [folder / f"{name}{suffix}" for name in BATCHES]
            missing = [file.name for file in files if not file.is_file()]
            if not missing:
                return files
            if len(missing) < len(files):
                raise UserError(
                    f"{folder}: {', '.join(missing)} missing, the rest of CIFAR-10 is there. "
                    f"Remove the other batches from {folder}, and they are made again."
                )
    return []


def _unpack_batches(root: Path) -> list[Path]:
    name = next((name for name in ARCHIVES if (root / name).is_file()), BINARY)
    inside, end = ARCHIVES[name]
    members = {f"{inside}/{batch}{end}": f"{batch}{end}" for batch in BATCHES}
    unpack(root / name, root / inside, members.get, len(members), INSTEAD)
    return [root / inside / file for file in members.values()]
