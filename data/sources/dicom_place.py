"""What a DICOM header says of the place of its pixels in the world."""

import numpy as np
from pydicom.dataset import Dataset

from data.sources.dicom_values import numbers

# tags of how high and wide a pixel is, the first that says so
SIZES = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
ENDS = (("left", "right"), ("back", "front"), ("head", "feet"))  # of the axes of a patient


def pixel_height(about: Dataset) -> float | None:
    """In widths of a pixel; None where it is not said."""
    for tag in SIZES:
        height, width = (*numbers(about, tag), None, None)[:2]
        if height and width and height > 0 and width > 0:
            return height / width
    return None


def directions(about: Dataset) -> list[float] | None:
    """ImageOrientationPatient: where rows run and where columns run, each a vector of length 1;
    None where it is not said."""
    found = [each for each in numbers(about, "ImageOrientationPatient") if each is not None]
    vectors = np.reshape(found, (-1, 3)) if len(found) == 6 else np.zeros((2, 3))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / lengths).round(3).ravel().tolist() if lengths.all() else None


def name_directions(directions: list[float]) -> str:
    """As "left, back" of an axial image: where its rows and its columns run, about."""
    vectors = np.reshape(directions, (2, 3))
    axes = np.abs(vectors).argmax(1).tolist()
    return ", ".join(ENDS[axis][int(vector[axis] < 0)] for vector, axis in zip(vectors, axes))
