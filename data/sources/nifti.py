"""Slices of NIfTI volumes, shown as a radiologist expects them."""

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np

from data.common_range import OwnRange, by_band, warn_of_apart
from data.decoding import told_as
from data.deep_image import DeepImage
from data.file_cache import FileCache
from data.folder_layout import find_files, tell_of_odd
from data.folder_reader import FolderReader
from data.intensity import Levels, check_range, value_apart, value_range
from data.pixel_shape import tell_of_oblong
from data.recent import Recent
from data.sources.contrasts import group_by_contrast
from data.sources.nifti_file import open_volume
from runtime.errors import UserError

SUFFIXES = (".nii", ".nii.gz")
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}  # of axes to the right, to the front and up
# one slice, which fails where it is read
BROKEN: dict[str, Any] = {"slices": [0], "depth": 1, "range": [0, 0], "apart": [[]]}
OTHERS = "; nibabel.save(nibabel.load(FILE), NII_GZ) turns .img, .mgz, .mnc and others into them"
KEPT = 3  # volumes in memory while slices are decoded in their order

_at_once = threading.Semaphore(4)  # volumes that are decoded at the same time: they are large
log = logging.getLogger("data")


class Nifti(FolderReader):
    """A folder of NIfTI volumes (.nii, .nii.gz), at any depth, cut into slices; splits and classes
    by its folders, see FolderReader. What the fourth dimension counts are channels.

    Slices are shown in radiological convention: the patient's right on the image's left; axial ones
    with the front of the body up, coronal ones with the head up, sagittal ones with the head up and
    the front on the left. Slices that are constant are left out.

    Args:
        axis: across which the slices lie, to the nearest axis of the scanner; nothing is resampled,
            so pixels are as wide and high as voxels are.
        every: take slices 0, n, 2n ...
        range: [low, high], what is black and what is white, such as HU; null for each volume's own
            range, of channels for each its own (MRI has no absolute units).
        validation: the share that is drawn where no folders train, val and test are, in whole
            volumes.
        test: as validation.
        patient: a regular expression on a file's path below the folder, whose first group (or all
            that it matches) is the patient; null: each file is one.
        classes: the first level of folders are classes, and not patients.
        contrasts: words in the names of files that differ in nothing else, such as [t1,t2,flair]:
            together they are one image, its channels in this order. Other files are left out.
        include, exclude: globs on a file's path below the folder, see Folder.
        splits: which folders they are, see FolderReader.
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
        contrasts: Sequence[str] | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        splits: dict[str, Any] | None = None,
    ):
        if every < 1:
            raise UserError(f"data.every={every}: every n-th slice is taken, and n is at least 1.")
        across = AXES[axis]
        root, files = find_files(
            path, "NIfTI files", SUFFIXES, known_by=OTHERS, include=include, exclude=exclude
        )
        self.parts: dict[Path, list[Path | None]] = {file: [file] for file in files}
        if contrasts is not None:
            self.parts = group_by_contrast(root, files, contrasts)
        files = [part for parts in self.parts.values() for part in parts if part]
        volumes = self._summaries(file_cache, path, files, axis)
        self.ranges = {file: about["range"] for file, about in volumes.items()}
        self.range = None if range_ is None else check_range(range_)
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

        self.volumes: Recent[Path, np.ndarray] = Recent(
            lambda path: self._load(path, across, contrasts or [""]), KEPT
        )
        settings: list[Any] = [axis, every, range_]
        if contrasts is not None:
            names = [file.relative_to(root).as_posix() for file in files]
            settings += [list(contrasts), names, file_cache.digests(files)]
        super().__init__(
            file_cache, root, frames, {}, validation, test, patient, classes, settings, splits
        )
        if range_ is None:
            self._warn_of_apart(volumes)

    def _summaries(
        self, file_cache: FileCache, path: str, files: Sequence[Path], axis: str
    ) -> dict[Path, dict[str, Any]]:
        """What a start needs of each image, by its first file."""
        known = file_cache.look_up(
            files, f"NIfTI volume across {axis}, 5", lambda file: summarize_volume(file, AXES[axis])
        )
        about = {file: found or BROKEN for file, found in zip(files, known)}
        tell_of_odd(path, {file: found.get("odd", []) for file, found in about.items()})
        tell_of_oblong(path, {file: found.get("pixel height") for file, found in about.items()})
        return {
            file: joined([about[part] if part else None for part in parts])
            for file, parts in self.parts.items()
        }

    def _warn_of_apart(self, volumes: Mapping[Path, Mapping[str, Any]]) -> None:
        measured = {
            file: [
                OwnRange(low, high, "", apart=apart)
                for (low, high), apart in zip(np.reshape(about["range"], (-1, 2)), about["apart"])
            ]
            for file, about in volumes.items()
        }
        for channels in sorted(set(map(len, measured.values()))):
            same = {file: ranges for file, ranges in measured.items() if len(ranges) == channels}
            warn_of_apart(self.name, by_band(same), self._trained, self.levels)

    def _load(self, path: Path, across: int, contrasts: Sequence[str]) -> np.ndarray:
        """All channels of an image, [K, A, B, C]."""
        found = []
        for name, part in zip(contrasts, self.parts[path], strict=True):
            if part is None:
                raise UserError(f"no file of contrast {name} is beside it")
            with self.file_cache.unchanged(part):
                found.append(load_volume(part, across))
            if part != path:
                check_grid(part, path)
        return np.concatenate(found, -1)

    def read_image(self, item: int) -> Levels:
        path, k = self.items[item]
        pixels = self.volumes(path)[k][::-1, ::-1].swapaxes(0, 1)  # [H, W, C]
        own = np.reshape(self.ranges[path], (-1, 2)).tolist()
        ranges = [self.range] * len(own) if self.range else own
        return DeepImage(pixels, bands=pixels.shape[2] > 1).to_levels(lambda parts: ranges)

    def item_name(self, item: int) -> str:
        path, k = self.items[item]
        return f"{path}, slice {k}"


@told_as("NIfTI")
def load_volume(path: Path, axis: int) -> np.ndarray:
    """The voxels in float32, scaled as the file says.

    Returns:
        Slices [K, A, B, C]. All axes run to the right, to the front or up, in this order; then
        channels.

    Raises:
        UserError: for a broken file, colours and a series of volumes.
    """
    with _at_once:
        image, _ = open_volume(path)
        volume = image.get_fdata(dtype=np.float32, caching="unchanged")
        volume = volume.reshape(*(*image.shape, 1, 1)[:3], math.prod(image.shape[3:]))
        volume = nibabel.apply_orientation(volume, nibabel.io_orientation(image.affine))
    return np.moveaxis(volume, axis, 0)


def summarize_volume(path: Path, axis: int) -> dict[str, Any] | None:
    """What a start needs of a volume, for FileCache: which of its slices are not constant, and its
    range. None of a broken file, or where memory was short: the next start tries again."""
    try:
        volume = load_volume(path, axis)
        with told_as("NIfTI"):
            image, odd = open_volume(path)
    except UserError:
        return None
    flat = volume.reshape(len(volume), -1, volume.shape[-1])
    # NaN counts only where all is NaN, and is not below itself
    low, high = np.fmin.reduce(flat, axis=1), np.fmax.reduce(flat, axis=1)
    return {
        "slices": np.flatnonzero((low < high).any(1)).tolist(),
        "depth": len(volume),
        "range": [limit for part in np.moveaxis(volume, -1, 0) for limit in value_range(part)],
        "apart": [value_apart(part) for part in np.moveaxis(volume, -1, 0)],
        "odd": odd,
        "pixel height": pixel_height(image.affine, axis),
    }


def pixel_height(affine: np.ndarray, axis: int) -> float:
    """Of a slice across this axis, in widths of a pixel."""
    across = nibabel.io_orientation(affine)[:, 0].tolist()
    sizes = nibabel.affines.voxel_sizes(affine)
    width, height = (sizes[across.index(k)] for k in range(3) if k != axis)
    return float(height / width)


def joined(contrasts: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """summarize_volume of several as one: its slices are those where any is not constant."""
    if None in contrasts:
        return BROKEN
    found = [about for about in contrasts if about]
    return {
        "slices": sorted(set().union(*(about["slices"] for about in found))),
        "depth": found[0]["depth"],
        "range": [limit for about in found for limit in about["range"]],
        "apart": [apart for about in found for apart in about["apart"]],
    }


def check_grid(one: Path, other: Path) -> None:
    """Contrasts of one image lie voxel upon voxel."""
    ours, theirs = (open_volume(path)[0] for path in (one, other))
    if ours.shape[:3] != theirs.shape[:3] or not np.allclose(ours.affine, theirs.affine, atol=1e-2):
        raise UserError(
            f"{one.name} does not lie on the voxels of {other.name}: register them, or leave one "
            "out of data.contrasts"
        )
