"""EuroSAT (Helber et al. 2019): patches of Sentinel-2's images, 64x64 in colour, in ten classes of
land use and land cover."""

import logging
import re
from collections import Counter
from pathlib import Path

from data.file_cache import FileCache
from data.image_file import SUFFIXES
from data.image_reader import MEANWHILE
from data.sources.folder import Folder
from data.unpack import unpack
from runtime.errors import UserError

log = logging.getLogger("data")

COUNTS = {  # the images of each class
    "AnnualCrop": 3000,
    "Forest": 3000,
    "HerbaceousVegetation": 3000,
    "Highway": 2500,
    "Industrial": 2500,
    "Pasture": 2000,
    "PermanentCrop": 2500,
    "Residential": 3000,
    "River": 2500,
    "SeaLake": 3000,
}
ARCHIVE, INSIDE = "EuroSAT.zip", "2750"
PLACES = (INSIDE, "EuroSAT_RGB", "")  # of the class folders; the second is a later archive's
FILE = re.compile(rf"{INSIDE}/((?:{'|'.join(COUNTS)})/\w+\.jpg)")


class EuroSat(Folder):
    """The 27,000 images of EuroSAT.zip, by class in root/2750, root/EuroSAT_RGB or root itself;
    fetched where none of them is there.

    No official split exists, so it is drawn, class by class. The files do not say which scene they
    are of: neighbouring patches of one may fall on either side.

    Args:
        validation: the share that is drawn.
        test: as validation.
    """

    places = ("root",)

    def __init__(
        self, file_cache: FileCache, root: str, validation: float = 0.1, test: float = 0.1
    ):
        folder = _find_classes(Path(root).expanduser())
        again = f"remove the classes from {folder}, and data.root={root} is made again"
        try:
            super().__init__(file_cache, str(folder), validation, test)
        except UserError as error:  # in the settings of any folder
            raise UserError(f"{error} Or {again}.") from error
        found = Counter(self.classes[label] for label in self.labels)
        if found != Counter(COUNTS):
            others = [
                f"{name} {found[name]:,} of {COUNTS.get(name, 0):,}"
                for name in sorted({*found, *COUNTS})
                if found[name] != COUNTS.get(name, 0)
            ]
            log.warning(
                "%s: %s images, and EuroSAT has %s: %s; %s",
                folder,
                f"{len(self):,}",
                f"{sum(COUNTS.values()):,}",
                ", ".join(others),
                again,
            )


def _find_classes(root: Path) -> Path:
    """The folder of the class folders: one that is there is taken as it is."""
    for place in PLACES:
        files = (file for name in COUNTS for file in (root / place / name).rglob("[!.]*"))
        if any(file.suffix.lower() in SUFFIXES for file in files):
            return root / place
    unpack(root / ARCHIVE, root / INSIDE, _place, sum(COUNTS.values()), MEANWHILE)
    return root / INSIDE


def _place(name: str) -> str | None:
    found = FILE.fullmatch(name)
    return found and found[1]
