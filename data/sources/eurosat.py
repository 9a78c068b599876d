"""EuroSAT (Helber et al. 2019): patches of Sentinel-2's images, 64x64 in colour or in 13 bands, in
ten classes of land use and land cover."""

import logging
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from data.file_cache import FileCache
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


class EuroSat(Folder):
    """The 27,000 images of EuroSAT.zip, by class in root/2750, root/EuroSAT_RGB or root itself;
    fetched where none of them is there.

    No official split exists, so it is drawn, class by class. The files do not say which scene they
    are of: neighbouring patches of one may fall on either side.

    Args:
        validation: the share that is drawn.
        test: as validation.
    """

    together = ""  # it takes no data.patient
    places = ("root",)
    archive, inside = "EuroSAT.zip", "2750"
    others: Collection[str] = (
        "EuroSAT_RGB",
        "",
    )  # of the class folders; the first of a later archive
    packed = "jpg"

    def __init__(
        self, file_cache: FileCache, root: str, validation: float = 0.1, test: float = 0.1
    ):
        folder = self._find_classes(Path(root).expanduser())
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

    def _find_classes(self, root: Path) -> Path:
        """The folder of the class folders: one that is there is taken as it is."""
        for place in (self.inside, *self.others):
            files = (file for name in COUNTS for file in (root / place / name).rglob("[!.]*"))
            if any(file.suffix.lower() in self.suffixes for file in files):
                return root / place
        inside, count = root / self.inside, sum(COUNTS.values())
        unpack(root / self.archive, inside, self._place, count, MEANWHILE)
        return inside

    def _place(self, name: str) -> str | None:
        pattern = rf"{self.inside}/((?:{'|'.join(COUNTS)})/\w+\.{self.packed})"
        found = re.fullmatch(pattern, name)
        return found and found[1]


class EuroSatBands(EuroSat):
    """The same patches in 13 bands of 16 bits, of EuroSAT_MS.zip: B01 to B09, B10, B11, B12 and, as
    the last, B8A. The colours red, green and blue are bands 4, 3 and 2."""

    suffixes = (".tif",)
    archive, inside = "EuroSAT_MS.zip", "EuroSAT_MS"
    others = ("ds/images/remote_sensing/otherDatasets/sentinel_2/tif", "")  # of EuroSATallBands.zip
    packed = "tif"
