"""CelebA's aligned photographs (Liu et al. 2015): the official split by file number, and the crop
of DDIM."""

import contextlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from data.file_cache import FileCache
from data.folder_layout import list_files
from data.image_file import read_image_file
from data.image_reader import MEANWHILE, ImageReader
from data.resize import in_bands
from data.splits import SPLITS, Splits, items_by_split
from runtime.content import sha256_of
from runtime.errors import UserError

log = logging.getLogger("data")

COUNT, SIZE = 202_599, (178, 218)  # files; width, height
# the last file number of each split, as in list_eval_partition.txt
LAST = {"train": 162_770, "validation": 182_637, "test": COUNT}
FILE = re.compile(r"\d{6}\.(jpe?g|png)", re.IGNORECASE)
PLACES = ("celeba/img_align_celeba", "img_align_celeba")  # torchvision's, the zip's own
ARCHIVE = "img_align_celeba.zip"


class CelebA(ImageReader):
    """Files named 000001.jpg to 202599.jpg, 178x218, at any depth below path.

    The file number decides the split, whatever folder a file lies in; list_eval_partition.txt says
    the same and is not needed. Where the files that are there give no validation or test, the last
    tenth of them and the tenth before are held out.

    Args:
        crop: left, upper, right and lower edge in pixels of the file, or null. [25, 57, 153, 185]
            is 128x128 around column 89 and row 121.

    Source: Song et al. 2021 (DDIM), datasets/__init__.py, for the crop.
    """

    name = "CelebA"

    def __init__(
        self, file_cache: FileCache, path: str, crop: Sequence[int] | None = (25, 57, 153, 185)
    ):
        self.crop = None if crop is None else _checked_crop(crop)
        self.file_cache = file_cache
        root = Path(path).expanduser()
        found = _find_files(root, path)
        self.numbers, self.files = list(found), list(found.values())
        self.labels = [0] * len(self.files)
        self.splits = split_by_number(self.numbers)
        _tell_of_parts(self.numbers, self.splits, root)
        _check_size(self.files[0])
        numbered = list(zip(self.numbers, file_cache.digests(self.files)))
        self.fingerprint = sha256_of(["CelebA", 1, self.crop, numbered])

    def read_image(self, item: int) -> Image.Image:
        image = read_image_file(self.file_cache.read_bytes(self.files[item]))
        if not isinstance(image, Image.Image):
            raise UserError(f"{in_bands(image).shape[2]} bands: no photograph of CelebA")
        if image.size != SIZE:
            raise UserError(_other_size(image.size))
        return image.crop(self.crop) if self.crop else image


def official_split(number: int) -> str:
    """The split of a file by its number, 1 to 202599."""
    return next(split for split in SPLITS if number <= LAST[split])


def split_by_number(numbers: Sequence[int]) -> Splits:
    """Positions in numbers (ascending) by split. A split that the numbers leave empty is taken from
    the end of train."""
    splits = items_by_split(map(official_split, numbers))
    if not splits["train"]:  # a piece of the validation or test files alone
        splits = items_by_split(["train"] * len(numbers))
    tenth = max(1, len(splits["train"]) // 10)
    for split in ("test", "validation"):
        if not splits[split]:
            splits["train"], splits[split] = splits["train"][:-tenth], splits["train"][-tenth:]
    return splits


def _checked_crop(crop: Sequence[int]) -> tuple[int, int, int, int]:
    if len(crop) == 4:
        left, upper, right, lower = crop
        if 0 <= left < right <= SIZE[0] and 0 <= upper < lower <= SIZE[1]:
            return left, upper, right, lower
    raise UserError(
        f"data.crop={list(crop)}: left, upper, right and lower edge inside 178x218 pixels, or "
        "null for all; DDIM's is [25,57,153,185]."
    )


def _find_files(root: Path, given: str) -> dict[int, Path]:
    """The files by number, ascending."""
    found: dict[int, Path] = {}
    others = 0
    start = next((root / place for place in PLACES if (root / place).is_dir()), root)
    for file in list_files(start) if start.is_dir() else []:
        if not FILE.fullmatch(file.name):
            others += file.suffix.lower() in (".jpg", ".jpeg", ".png")
            continue
        number = int(file.stem)
        if not 1 <= number <= COUNT:
            raise UserError(
                f"{file}: CelebA's files are 000001 to {COUNT}, so this is another set of "
                f"images: use data=folder data.path={given}."
            )
        if number in found:
            raise UserError(
                f"{found[number]} and {file} are the same file of CelebA: name the folder of "
                "one copy by data.path, or remove the other."
            )
        found[number] = file
    if len(found) < 3:
        raise UserError(_missing(root, start, given, len(found), others))
    return dict(sorted(found.items()))


def _missing(root: Path, start: Path, given: str, found: int, others: int) -> str:
    """What to do where no CelebA is found."""
    archives = (root, root / ARCHIVE, root / "celeba" / ARCHIVE)
    if archive := next((p for p in archives if p.is_file()), None):
        return (
            f"data.path={given}: {archive} is not unpacked. Run: unzip -q {archive} -d "
            f"{archive.parent}   and set data.path={archive.parent}. {MEANWHILE}"
        )
    if others:
        return (
            f"data.path={given}: {others} images in {start}, but {found or 'none'} named as "
            f"CelebA's are (000001.jpg to {COUNT}.jpg). For other images, such as CelebA-HQ: "
            f"data=folder data.path={given}."
        )
    state = "CelebA is not there" if root.is_dir() else "there is no such folder"
    if found:
        state = f"only {found} of CelebA's files, too few to split"
    return (
        f"data.path={given}: {state} (looked for celeba/img_align_celeba/*.jpg, "
        "img_align_celeba/*.jpg and 000001.jpg at any depth). "
        f'Download {ARCHIVE} (1.4 GB, "Align&Cropped Images") from '
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html; torchvision.datasets.CelebA(ROOT, "
        "download=True), which needs gdown, gets it from the same Google Drive, whose daily quota "
        f"often fails: try again a day later. Then: unzip -q {ARCHIVE} -d {given}. {MEANWHILE}"
    )


def _tell_of_parts(numbers: Sequence[int], splits: Splits, root: Path) -> None:
    """Says where the files are not all there, and which images are then held out."""
    if len(numbers) == COUNT:
        return
    log.warning(
        f"{root}: {len(numbers):,} of CelebA's {COUNT:,} files (numbers {numbers[0]} to "
        f"{numbers[-1]}). Unless a part is meant, unzip {ARCHIVE} again."
    )
    for split in ("validation", "test"):
        held_out = [numbers[item] for item in splits[split]]
        if any(official_split(number) != split for number in held_out):
            log.warning(
                f"CelebA: no official {split} files among them, so files {held_out[0]:06d} to "
                f"{held_out[-1]:06d} ({len(held_out)}) are held out as {split}."
            )


def _check_size(file: Path) -> None:
    """The header of one file: where all are of another size, that is said before any is decoded."""
    size = SIZE
    with contextlib.suppress(Exception), Image.open(file) as image:
        size = image.size  # where it is broken: decoding lists all that are
    if size != SIZE:
        raise UserError(f"{file}: {_other_size(size)}")


def _other_size(size: tuple[int, int]) -> str:
    return (
        f"{size[0]}x{size[1]} pixels, and CelebA's aligned files have 178x218: these are perhaps "
        'img_celeba ("in the wild") or were cropped already. Use img_align_celeba, or data=folder '
        "for images as they are."
    )
