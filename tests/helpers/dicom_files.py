"""DICOM files of any kind, written by pydicom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid


def linear(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, as it is written there: a window in levels 0..255."""
    x = values.astype(np.float64)
    y = ((x - (center - 0.5)) / (width - 1) + 0.5) * 255
    return np.where(
        x <= center - 0.5 - (width - 1) / 2, 0, np.where(x > center - 0.5 + (width - 1) / 2, 255, y)
    )


def dataset(kind=CTImageStorage, syntax=ExplicitVRLittleEndian, **tags) -> Dataset:
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = syntax
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID = kind
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID = generate_uid()
    found.PatientID, found.StudyInstanceUID = "P1", generate_uid()
    for name, value in tags.items():
        setattr(found, name, value)
    return found


def save(path: Path, found: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save_as(path, enforce_file_format=True)
    return path


def write(
    path: Path, values: np.ndarray, bits: int | None = None, syntax=ExplicitVRLittleEndian, **tags
) -> Path:
    """values: [H, W], [H, W, 3], [frames, H, W] where tags say NumberOfFrames."""
    size = values.dtype.itemsize * 8
    colour = tags.get(
        "SamplesPerPixel", 3 if values.ndim == 3 and "NumberOfFrames" not in tags else 1
    )
    rows, columns = values.shape[1:3] if "NumberOfFrames" in tags else values.shape[:2]
    if tags.get("PlanarConfiguration"):
        values = values.transpose(2, 0, 1)
    data = values.astype(
        values.dtype.newbyteorder(">" if syntax == ExplicitVRBigEndian else "<")
    ).tobytes()
    about = {
        "Rows": rows,
        "Columns": columns,
        "SamplesPerPixel": colour,
        "BitsAllocated": size,
        "BitsStored": bits or size,
        "HighBit": (bits or size) - 1,
        "PixelRepresentation": int(values.dtype.kind == "i"),
        "PhotometricInterpretation": "RGB" if colour == 3 else "MONOCHROME2",
        **({"PlanarConfiguration": 0} if colour == 3 else {}),
    }
    found = dataset(syntax=syntax, **{**about, **tags})
    found.PixelData = data + b"\0" * (len(data) % 2)
    found["PixelData"].VR = "OB" if size == 8 else "OW"
    return save(path, found)
