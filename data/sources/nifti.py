"""Slices of NIfTI volumes, shown as a radiologist expects them."""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from PIL import Image

from data.decoding import told_as
from data.file_cache import FileCache
from data.folder_layout import find_files, tell_of_odd
from data.folder_reader import FolderReader
from data.intensity import check_range, to_levels, value_range
from data.recent import Recent
from data.sources.nifti_file import open_volume
from runtime.errors import UserError

SUFFIXES = (".nii", ".nii.gz")
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}  # of axes to the right, to the front and up
# one slice, which fails where it is read
BROKEN: dict[str, Any] = {"slices": [0], "depth": 1, "range": [0, 0]}
OTHERS = "; nibabel.save(nibabel.load(FILE), NII_GZ) turns .img, .mgz, .mnc and others into them"
KEPT = 3  # volumes in memory while slices are decoded in their order

_at_once = threading.Semaphore(4)  # volumes that are decoded at the same time: they are large
log = logging.getLogger("data")


class Nifti(FolderReader):
    """A folder of NIfTI volumes (.nii, .nii.gz), at any depth, cut into slices; splits and classes
    by its folders, see FolderReader. Volumes of 4 dimensions are refused.

    Slices are shown in radiological convention: the patient's right on the image's left; axial ones
    with the front of the body up, coronal ones with the head up, sagittal ones with the head up and
    the front on the left. Slices that are constant are left out.

    Args:
        axis: across which the slices lie, to the nearest axis of the scanner; nothing is resampled,
            so pixels are as wide and high as voxels are.
        every: take slices 0, n, 2n ...
        range: [low, high], what is black and what is white, such as HU; null for each volume's own
            range (MRI has no absolute units).
        validation: the share that is drawn where no folders train, val and test are, in whole
            volumes.
        test: as validation.
        patient: a regular expression on a file's path below the folder, whose first group (or all
            that it matches) is the patient; null: each file is one.
        classes: the first level of folders are classes, and not patients.
    """

    levels = "data.range=[LOW,HIGH]"

    def __init__(
        self,
        file_cache: FileCache,
        path: str,
        axis: Literal["axial", "coronal", "sagittal"] = "axial",
        every: int = 1,
        range_: Sequence[float] | None = None,
        validation: float = 0.1,
        test: float = 0.1,
        patient: str | None = None,
        classes: bool = False,
    ):
        if every < 1:
            raise UserError(f"data.every={every}: every n-th slice is taken, and n is at least 1.")
        across = AXES[axis]
        root, files = find_files(path, "NIfTI files", SUFFIXES, known_by=OTHERS)
        known = file_cache.look_up(
            files, f"NIfTI volume across {axis}, 3", lambda file: summarize_volume(file, across)
        )
        volumes = {file: about or BROKEN for file, about in zip(files, known)}
        tell_of_odd(path, {file: about.get("odd", []) for file, about in volumes.items()})
        self.ranges = {file: about["range"] for file, about in volumes.items()}
        if range_ is not None:
            self.ranges = dict.fromkeys(files, check_range(range_))
        frames = {
            file: [k for k in about["slices"] if k % every == 0] for file, about in volumes.items()
        }
        taken = sum(map(len, frames.values()))
        constant = sum(len(range(0, about["depth"], every)) for about in volumes.values()) - taken
        if not taken:
            raise UserError(
                f"data.path={path}: all {constant} slices of its {len(files)} volumes are constant."
            )
        if constant:
            log.info(f"{path}: left out {constant} constant (empty) slices of {constant + taken}")

        def load(path: Path) -> np.ndarray:
            with file_cache.unchanged(path):
                return load_volume(path, across)

        self.volumes = Recent(load, KEPT)
        settings = [axis, every, range_]
        super().__init__(file_cache, root, frames, {}, validation, test, patient, classes, settings)

    def read_image(self, item: int) -> Image.Image:
        path, k = self.items[item]
        pixels = self.volumes(path)[k][::-1, ::-1].T
        return to_levels(pixels, *self.ranges[path])

    def item_name(self, item: int) -> str:
        path, k = self.items[item]
        return f"{path}, slice {k}"


@told_as("NIfTI")
def load_volume(path: Path, axis: int) -> np.ndarray:
    """The voxels in float32, scaled as the file says.

    Returns:
        Slices [K, A, B]. All axes run to the right, to the front or up, in this order.

    Raises:
        UserError: for a broken file, colours and a series of volumes.
    """
    with _at_once:
        image, _ = open_volume(path)
        volume = image.get_fdata(dtype=np.float32, caching="unchanged")
        volume = volume.reshape((*image.shape, 1, 1)[:3])
        volume = nibabel.apply_orientation(volume, nibabel.io_orientation(image.affine))
    return np.moveaxis(volume, axis, 0)


def summarize_volume(path: Path, axis: int) -> dict[str, Any] | None:
    """What a start needs of a volume, for FileCache: which of its slices are not constant, and its
    range. None of a broken file, or where memory was short: the next start tries again."""
    try:
        volume = load_volume(path, axis)
        with told_as("NIfTI"):
            _, odd = open_volume(path)
    except UserError:
        return None
    flat = volume.reshape(len(volume), -1)
    # NaN counts only where all is NaN, and is not below itself
    low, high = np.fmin.reduce(flat, axis=1), np.fmax.reduce(flat, axis=1)
    return {
        "slices": np.flatnonzero(low < high).tolist(),
        "depth": len(volume),
        "range": list(value_range(volume)),
        "odd": odd,
    }
