"""The files that pydicom, nibabel and scikit-image bring in their wheels: all are read, or refused
in one line. docs/data.md has the counts."""

from __future__ import annotations

from collections import Counter
from importlib import metadata
from pathlib import Path

import nibabel
import numpy as np
import pydicom.data
import pytest
import skimage.data
from pydicom.uid import JPEGLosslessSV1

from data.decoding import decode_all
from data.file_cache import FileCache
from data.folder_reader import FolderReader
from data.sources.dicom import Dicom
from data.sources.folder import Folder
from data.sources.nifti import Nifti

NIBABEL = Path(nibabel.__file__).parent
# how a refusal is counted, by what its message says
REFUSALS = {
    "pip install": "a decoder lacks",
    "pages or frames": "several pages",
    "no volume of voxels": "no volume",
    "it has no pixels": "no pixels",
    "cut short": "cut short",
    "it has no DICM": "no DICOM",
}
# of which version these are the numbers of files
WHEELS = {
    "pydicom": (
        Path(pydicom.data.__file__).parent / "test_files",
        Dicom,
        "3.0.2",
        {"read": 73, "a decoder lacks": 10, "cut short": 1, "no DICOM": 1, "left out": 91},
    ),
    "nibabel": (
        NIBABEL / "tests/data",
        Nifti,
        "5.4.2",
        {"read": 7, "no volume": 1, "left out": 76},
    ),
    "nibabel's DICOM": (
        NIBABEL / "nicom/tests/data",
        Dicom,
        "5.4.2",
        {"read": 4, "no pixels": 1, "left out": 9},
    ),
    "scikit-image": (
        Path(skimage.data.__file__).parent,
        Folder,
        "0.26.0",
        {"read": 26, "several pages": 3, "left out": 4},
    ),
}


@pytest.mark.parametrize("wheel", WHEELS)
def test_all_files_are_read_or_refused_in_one_line(tmp_path, wheel):
    folder, kind, version, counts = WHEELS[wheel]
    code = (".py", ".pyc", ".pyi", ".rst", ".typed")
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix not in code]
    for k, file in enumerate(files):
        (tmp_path / "x" / str(k)).mkdir(parents=True)
        (tmp_path / "x" / str(k) / file.name).symlink_to(file)
    memory = FileCache(tmp_path / "memory")
    options = {"classes": False} if kind is Folder else {}
    source = kind(memory, str(tmp_path / "x"), validation=0, test=0, **options)
    found = outcomes(source)
    found["left out"] = len(files) - found.total()
    assert found["read"] and not [kind for kind in found if kind.startswith("broken")]
    decoders = pydicom.pixels.get_decoder(JPEGLosslessSV1).is_available
    if metadata.version(wheel.split("'")[0]) == version and not decoders:
        assert found == counts


def outcomes(source: FolderReader) -> Counter[str]:
    """Of each file of the set, whether its images are read, or why not."""

    def read(item: int) -> None:
        assert np.asarray(source.read_image(item)).ndim in (2, 3)

    failures = decode_all(read, len(source), "reading", source.item_name)
    found = dict.fromkeys(source.files, "read")
    for item, error in failures.items():
        message = str(error)
        assert "\n" not in message and "has no attribute" not in message, message
        kinds = [kind for said, kind in REFUSALS.items() if said in message]
        found[source.files[item]] = kinds[0] if kinds else f"broken: {message}"
    return Counter(found.values())
