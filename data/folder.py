"""Any folder of images."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from data.memory import Memory
from data.source import SPLITS, hash_of, random_split
from runtime.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm"}
SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
               "test": "test", "testing": "test"}


class Folder:
    """A folder of images, at any depth.

    Subfolders named train, val (valid, validation) and test are the splits; what is missing of validation and test is drawn
    from train, by the shares given. The first level below that, if it is folders, gives the classes.
    """

    def __init__(self, memory: Memory, path: str, validation: float = 0.1, test: float = 0.1):
        self.root = Path(path).expanduser()
        self.name = f"folder {self.root}"
        if not self.root.is_dir():
            raise UserError(f"data.source.path={path}: there is no such folder. Set data.source.path to the folder of your images.")
        self.files = sorted(p for p in self.root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not self.files:
            raise UserError(f"data.source.path={path}: no images in it (looked for {', '.join(sorted(SUFFIXES))}).")
        parts = [p.relative_to(self.root).parts for p in self.files]
        named = [SPLIT_NAMES.get(p[0].lower()) if len(p) > 1 else None for p in parts]
        if "train" not in named:  # no such layout: "test" may then be a class like any other
            named = [None] * len(parts)
        if any(named) and not all(named):
            stray = self.files[named.index(None)]
            raise UserError(f"{self.root}: {stray} lies beside the folders train and test: move it into one of them.")
        inside = [p[1:] if split else p for p, split in zip(parts, named, strict=True)]
        names = [p[0] if len(p) > 1 else "" for p in inside]
        self.classes = sorted(set(names)) if all(names) else []
        self.labels = [self.classes.index(n) if self.classes else 0 for n in names]
        self.fingerprint = hash_of("folder", validation, test,
                                   list(zip(map("/".join, parts), memory.sha256(self.files), strict=True)))
        self.splits = self._split(named, validation, test)

    def _split(self, named: list[str | None], validation: float, test: float) -> dict[str, list[int]]:
        given = {split: [i for i, n in enumerate(named) if n == split] for split in SPLITS}
        drawn = random_split(given["train"] or range(len(named)), 0 if given["validation"] else validation,
                             0 if given["test"] else test, "folder")
        return {split: given[split] if split != "train" and given[split] else drawn[split] for split in SPLITS}

    def __len__(self) -> int:
        return len(self.files)

    def read(self, item: int) -> Image.Image:
        try:
            with Image.open(self.files[item]) as image:
                image.load()
                return image
        except Exception as error:  # a broken file can raise anything: OSError, SyntaxError, DecompressionBombError ...
            raise UserError(f"cannot be read as an image ({error})") from error

    def label_of(self, item: int) -> str:
        """How a message calls this item."""
        return str(self.files[item])
