"""Images without information, of every kind of source: counted, said at every start, refused where
nothing else is left."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from PIL import Image

from data.file_cache import FileCache
from data.memory_map import open_memory_map
from data.settings import DataSettings
from data.sources.bundled import Faces
from data.sources.dicom import Dicom
from data.sources.folder import Folder
from data.sources.nifti import Nifti
from data.sources.npz import Npz
from runtime.errors import UserError
from tests.helpers.dicom_files import write as write_dicom

GRAY = DataSettings(Folder, 8, 1, False)


def pictures(n: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8)).astype(np.uint8)


def folder(root, flat: set[int]) -> Folder:
    for k, picture in enumerate(pictures()):
        if k in flat:
            picture[:] = 40 * k
        Image.fromarray(picture).save(root / f"{k}.png")
    return Folder(FileCache(root / ".m"), str(root), validation=0, test=0)


def dicom(root, flat: set[int]) -> Dicom:
    for k, picture in enumerate(pictures()):
        write_dicom(root / f"{k}.dcm", picture.astype(np.uint16) + 5000 * (k in flat))
    return Dicom(FileCache(root / ".m"), str(root), validation=0, test=0, window=[128, 256])


def npz(root, flat: set[int]) -> Npz:
    images = pictures()
    images[list(flat)] = 7
    np.savez(root / "x.npz", images=images, labels=np.arange(len(images)) % 2)
    return Npz(FileCache(root / ".m"), str(root / "x.npz"), validation=0, test=0)


def nifti(root, flat: set[int]) -> Nifti:
    """Slices that differ, but not in the range that is asked for."""
    volume = pictures().transpose(1, 2, 0).astype(np.int16)
    volume[..., sorted(flat)] += 5000
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), root / "x.nii")
    return Nifti(FileCache(root / ".m"), str(root), range_=[0, 255], validation=0, test=0)


@pytest.mark.parametrize("make", [folder, dicom, npz, nifti])
def test_they_are_counted_and_refused_where_it_is_all_of_them(tmp_path, caplog, make):
    source = make(tmp_path, {1, 4})
    caplog.clear()
    for _ in range(2):  # the second start decodes nothing
        images, _ = open_memory_map(source, GRAY, tmp_path / "cache")
        [line] = [r.message for r in caplog.records if r.levelname == "WARNING"]
        assert "2 of 6 images are of one colour" in line and source.item_name(1) in line
        assert [k for k in range(6) if images[k].std() == 0] == [1, 4]
        source.read_image = None
        caplog.clear()
    source = make(tmp_path, set(range(6)))
    for _ in range(2):
        with pytest.raises(UserError, match="all images to train on are of one colour"):
            open_memory_map(source, GRAY, tmp_path / "cache")


def test_transparent_images_are_such_and_the_message_says_so(tmp_path):
    for k in range(3):
        values = np.random.default_rng(k).integers(0, 256, (8, 8, 4)).astype(np.uint8)
        values[..., 3] = 0
        Image.fromarray(values).save(tmp_path / f"{k}.png")
    source = Folder(FileCache(tmp_path / ".m"), str(tmp_path))
    with pytest.raises(UserError, match="of one colour.*0.png.*transparent all over"):
        open_memory_map(source, replace(GRAY, channels=3), tmp_path / "cache")


def test_only_those_of_other_splits_are_left(tmp_path):
    source = folder(tmp_path, {0, 1, 2, 3})
    source.splits = {"train": [0, 1, 2, 3], "validation": [4], "test": [5]}
    with pytest.raises(UserError, match="all images to train on"):
        open_memory_map(source, GRAY, tmp_path / "cache")


def test_a_map_of_an_earlier_version_tells_of_them_too(tmp_path, caplog, monkeypatch):
    source = folder(tmp_path, {2})
    open_memory_map(source, GRAY, tmp_path / "cache")
    [record] = (tmp_path / "cache").glob("*.json")
    about = json.loads(record.read_text())
    assert about.pop("one colour") == [2]
    monkeypatch.setattr("data.memory_map.read_sealed", lambda path: dict(about))
    caplog.clear()
    source.read_image = None
    open_memory_map(source, GRAY, tmp_path / "cache")
    assert "1 of 6 images are of one colour" in caplog.text


def test_faces_get_no_warning(tmp_path, caplog):
    open_memory_map(Faces(FileCache(tmp_path)), GRAY, tmp_path / "cache")
    assert not caplog.records
