"""What the header of a file says of it, as texts to be counted."""

from itertools import chain
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from PIL import Image

from data.folder_reader import FolderReader
from data.image_reader import ImageReader
from data.sources.dicom import Dicom
from data.sources.nifti import Nifti

Attributes = dict[str, str]
DICOM_TAGS = {
    "modality": "Modality",
    "body part": "BodyPartExamined",
    "view": "ViewPosition",
    "photometric interpretation": "PhotometricInterpretation",
    "bits stored": "BitsStored",
    "manufacturer": "Manufacturer",
}
NO_DEFECTS = ("body part", "view", "manufacturer")  # which differ within good sets, too


def describe_image(path: Path) -> Attributes:
    try:
        with Image.open(path) as image:
            return {"format": image.format or "unknown", "mode": image.mode}
    except Exception:  # Pillow's not to read, or broken: told when it is read
        return {"format": path.suffix.lower() or "without suffix"}


def describe_dicom(path: Path) -> Attributes:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        texts = {name: str(header.get(tag, "")).strip() for name, tag in DICOM_TAGS.items()}
        return {"format": "DICOM"} | texts
    except Exception:
        return {"format": "not readable as DICOM"}


def describe_nifti(path: Path) -> Attributes:
    try:
        image: Any = nibabel.load(path)
        spacing = " x ".join(f"{side:.2g}" for side in image.header.get_zooms()[:3])
        return {
            "format": type(image).__name__,
            "type of voxel": str(image.get_data_dtype()),
            "spacing": spacing,
        }
    except Exception:
        return {"format": "not readable as NIfTI"}


DESCRIBE = {Dicom: describe_dicom, Nifti: describe_nifti}


def number_files(reader: ImageReader) -> np.ndarray:
    """The number of each image's file, [N], 0 .. M - 1; where the images lie in one file, each is
    as a file of its own."""
    if not isinstance(reader, FolderReader):
        return np.arange(len(reader))
    return np.unique([*map(str, reader.files)], return_inverse=True)[1]


def describe_files(reader: ImageReader) -> dict[str, list[str]]:
    """By the name of an attribute, its text for each item; {} where the images lie in one file."""
    if not isinstance(reader, FolderReader):
        return {}
    describe = next((d for kind, d in DESCRIBE.items() if isinstance(reader, kind)), describe_image)
    once = list(dict.fromkeys(reader.files))
    of_file = dict(zip(once, reader.file_cache.look_up(once, describe.__name__, describe)))
    names = dict.fromkeys(chain(*of_file.values()))
    return {name: [of_file[file].get(name, "") for file in reader.files] for name in names}
