"""What a DICOM header says of the place of its pixels in the world."""

from pydicom.dataset import Dataset

from data.sources.dicom_values import numbers

# tags of how high and wide a pixel is, the first that says so
SIZES = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")


def pixel_height(about: Dataset) -> float | None:
    """In widths of a pixel; None where it is not said."""
    for tag in SIZES:
        height, width = (*numbers(about, tag), None, None)[:2]
        if height and width and height > 0 and width > 0:
            return height / width
    return None
