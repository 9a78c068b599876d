"""NIfTI files as people have met them: compressed whatever the name says, with headers that are
void in part, and volumes that are none. What is right is written here voxel by voxel."""

from __future__ import annotations

import gzip
import logging
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from data.file_cache import FileCache
from data.memory_map import open_memory_map
from data.settings import DataSettings
from data.sources.nifti import Nifti
from runtime.errors import UserError

SHAPE = (12, 14, 5)


def body() -> np.ndarray:
    """Voxels [right, front, up]."""
    return np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)


def axial(volume: np.ndarray, k: int) -> np.ndarray:
    """Front up, the patient's right on the image's left, of voxels that run right, front, up."""
    return volume[::-1, ::-1, k].T / 1000 * 255


@pytest.fixture
def slices(tmp_path):
    def slices(folder: Path = tmp_path, **settings) -> list[np.ndarray]:
        memory = FileCache(tmp_path / ".memory")
        settings = {"range_": [0, 1000], "validation": 0, "test": 0} | settings
        source = Nifti(memory, str(folder), **settings)
        return [np.asarray(source.read_image(item)) for item in range(len(source))]

    return slices


def store(path: Path, volume: np.ndarray, kind=nibabel.Nifti1Image, **header) -> Path:
    """With a qform and no sform, and fields of the header as they are given."""
    image = kind(volume, None)
    image.set_qform(np.diag([2.0, 2, 3, 1]), code=1)
    image.set_sform(None, code=0)
    plain = path.with_name("plain.nii")
    nibabel.save(image, plain)
    data = bytearray(plain.read_bytes())
    plain.unlink()
    places = {
        "pixdim": (76, "<8f"),
        "vox_offset": (108, "<f"),
        "scl": (112, "<2f"),
        "codes": (252, "<2h"),
        "quatern": (256, "<3f"),
        "srow": (280, "<12f"),
    }
    for name, values in header.items():
        at, form = places[name]
        data[at : at + struct.calcsize(form)] = struct.pack(form, *np.ravel(values))
    path.write_bytes(gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)
    return path


def same(found: list[np.ndarray], volume: np.ndarray) -> None:
    assert len(found) == volume.shape[2]
    for k, image in enumerate(found):
        np.testing.assert_allclose(image, axial(volume, k), atol=2e-3)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.NII.GZ"])
@pytest.mark.parametrize("compressed", [False, True])
def test_the_first_bytes_say_whether_a_file_is_compressed(tmp_path, slices, kind, name, compressed):
    data = store(tmp_path / "a.nii", body(), kind).read_bytes()
    (tmp_path / "a.nii").unlink()
    (tmp_path / name).write_bytes(gzip.compress(data, mtime=0) if compressed else data)
    same(slices(), body())


VOID = [np.zeros(12), np.full(12, np.nan), [1, 0, 0, 0] * 3, [0, 0, 0, 5] * 3]


@pytest.mark.parametrize("srow", VOID)
def test_where_the_sform_is_void_the_qform_serves(tmp_path, slices, caplog, srow):
    # a quarter turn about the axis of the body: the first axis runs to the front
    stored = body().transpose(1, 0, 2)[:, ::-1]
    half = np.sqrt(0.5)
    for name in ("x.nii", "y.nii.gz"):
        store(tmp_path / name, stored, codes=(1, 2), srow=srow, quatern=(0, 0, half))
    found = slices()
    same(found[:5], body())
    same(found[5:], body())
    [line] = [record.message for record in caplog.records]
    assert "2 of 2 files have an odd header" in line and "sform is void" in line


def test_a_sform_that_is_whole_comes_first(tmp_path, slices):
    flipped = [-2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 3, 0]
    store(tmp_path / "x.nii", body()[::-1], codes=(1, 1), srow=flipped)
    same(slices(), body())


@pytest.mark.parametrize("codes", [(0, 0), (1, 0)])
@pytest.mark.parametrize("quatern", [(np.nan, 0, 0), (3, 3, 3)])
def test_where_nothing_says_how_a_volume_lies_that_is_told(
    tmp_path, slices, caplog, codes, quatern
):
    """By the older convention of Analyze the first axis runs to the left."""
    store(tmp_path / "x.nii", body()[::-1], codes=codes, quatern=quatern)
    same(slices(), body())
    assert "left and right are a guess" in caplog.text and "x.nii" in caplog.text


@pytest.mark.parametrize(
    "slope, intercept, factor, offset",
    [
        (0, 7, 1, 0),
        (np.nan, 7, 1, 0),
        (np.inf, np.nan, 1, 0),
        (2, np.nan, 2, 0),
        (2, np.inf, 2, 0),
        (0.5, 100, 0.5, 100),
    ],
)
def test_slopes_and_intercepts_that_are_none(tmp_path, slices, slope, intercept, factor, offset):
    store(tmp_path / "x.nii", body() // 4, scl=(slope, intercept))
    same(slices(), body() // 4 * factor + offset)


@pytest.mark.parametrize(
    "pixdim",
    [
        [0, 2, 2, 3, 1, 1, 1, 1],  # qfac
        [1, 0, 2, 3, 0, 0, 0, 0],
        [1, -2, 2, 3, 1, 1, 1, 1],
        [1, np.nan, 2, np.nan, 1, 1, 1, 1],
        [np.nan, 2, 2, 3, 1, 1, 1, 1],
    ],
)
def test_sizes_of_voxels_that_are_none(tmp_path, slices, pixdim, capfd):
    store(tmp_path / "x.nii", body(), pixdim=pixdim)
    same(slices(), body())
    assert not capfd.readouterr().err


def test_a_place_of_the_voxels_that_is_missing(tmp_path, slices):
    store(tmp_path / "x.nii", body(), vox_offset=0)
    same(slices(), body())


def test_complex_numbers_are_refused(tmp_path, caplog):
    volume = body() * np.exp(1j * body())
    for kind in (np.complex64, np.complex128):
        store(tmp_path / f"{kind.__name__}.nii.gz", volume.astype(kind))
    source = Nifti(FileCache(tmp_path / ".memory"), str(tmp_path), validation=0, test=0)
    with pytest.raises(UserError, match="(?s)2 of 2 images.*complex numbers: save the magnitude"):
        open_memory_map(source, DataSettings(Nifti, 8, 1, False), tmp_path / "cache")


@pytest.mark.parametrize("shape", [(12, 14, 5, 65), (12, 14, 1, 65), (12, 14, 5, 2, 2)])
def test_series_are_refused_with_their_shape(tmp_path, slices, shape):
    store(tmp_path / "x.nii", np.zeros(shape, np.int16))
    with pytest.raises(UserError, match="dimensions .* a series and not a volume"):
        slices()


def test_a_volume_of_one_slice_is_an_image(tmp_path, slices):
    store(tmp_path / "x.nii", body()[..., :1])
    same(slices(), body()[..., :1])


def test_files_of_other_kinds_are_named_with_the_way_to_turn_them(tmp_path, slices, caplog):
    caplog.set_level(logging.INFO)
    nibabel.save(nibabel.Nifti1Pair(body(), np.eye(4)), tmp_path / "x.img")
    with pytest.raises(UserError, match=r"nibabel.save\(nibabel.load\(FILE\), NII_GZ\).*\.img 1"):
        slices()
    nibabel.save(nibabel.load(tmp_path / "x.img"), tmp_path / "x.nii.gz")
    same(slices(), body())
    assert "left out 2 files that are no NIfTI files: .hdr 1, .img 1" in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"DICM" * 200, gzip.compress(b"no volume", mtime=0)]
)
@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_what_does_not_begin_as_nifti_is_said_to(tmp_path, slices, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="no NIfTI file: it does not begin as one"):
        slices()


@pytest.mark.parametrize(
    "axis, height", [("axial", 2.5), ("coronal", 5.0), ("sagittal", 2.0), (None, None)]
)
def test_voxels_that_are_not_square_in_a_slice_are_told(tmp_path, slices, caplog, axis, height):
    """Voxels to the front, up and to the right, 2.5, 5 and 1 mm."""
    sizes = [2.5, 5, 1] if axis else [2.5, 2.5, 2.6]
    affine = np.zeros((4, 4))
    affine[[1, 2, 0, 3], range(4)] = *sizes, 1
    nibabel.save(nibabel.Nifti1Image(body(), affine), tmp_path / "x.nii")
    slices(axis=axis or "axial")
    said = [record.message for record in caplog.records]
    assert len(said) == bool(axis)
    assert all(
        "1 of 1 files" in line and f"x.nii, {height:g} times as high as wide" in line
        for line in said
    )


@pytest.mark.parametrize(
    "qform, said",
    [
        (np.diag([-2.0, 2, 3, 1]), True),
        (np.array([[0.0, 2, 0, 0], [2, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]]), True),
        (np.diag([2.0, 2, 3, 1]), False),
        (np.array([[1.8, -0.8, 0, 5], [0.8, 1.8, 0, 9], [0, 0, 3, 2], [0, 0, 0, 1]]), False),
    ],
)
def test_forms_that_contradict_each_other_are_told(tmp_path, slices, caplog, qform, said):
    image = nibabel.Nifti1Image(body(), None)
    image.set_sform(np.diag([2.0, 2, 3, 1]), 2)
    image.set_qform(qform, 1)
    nibabel.save(image, tmp_path / "x.nii")
    same(slices(), body())
    told = [record.message for record in caplog.records]
    assert len(told) == said
    assert all("1 of 1 files" in x and "x.nii" in x and "the sform holds" in x for x in told)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_value_that_seems_to_be_none_is_told(tmp_path, slices, caplog, channels):
    shape = (*SHAPE, channels) if channels > 1 else SHAPE
    for k in range(3):
        volume = np.random.default_rng(k).integers(0, 1000, shape).astype(np.int16)
        volume[:3] = -9999
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / f"{k}.nii.gz")
    slices(range_=None)
    [line] = [record.message for record in caplog.records]
    assert "25.0% of the pixels in 3 of 3 files" in line and "the value -9999, far" in line
    assert "choose: data.range=[" in line
    caplog.clear()
    slices(range_=[0, 1000])
    assert not caplog.records


def test_a_skull_that_was_stripped_is_no_such_value(tmp_path, slices, caplog):
    """Around the brain is 0, and the darkest of the brain is near it."""
    for k in range(3):
        volume = np.random.default_rng(k).gamma(4, 80, SHAPE).astype(np.float32)
        volume[:4] = 0
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / f"{k}.nii.gz")
    slices(range_=None)
    assert not caplog.records
