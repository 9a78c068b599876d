"""NIfTI: where the patient's left, front and head lie on an image, however the voxels are stored;
ranges; slices; what is refused."""

from __future__ import annotations

import itertools
import struct
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest

import data.sources.nifti
from data.dataset import open_dataset
from data.file_cache import FileCache
from data.recent import Recent
from data.settings import DataSettings
from data.sources.nifti import Nifti
from runtime.errors import UserError
from tests.helpers.caches import new_cache

MEMORY = new_cache()
SPLITS = ("train", "validation", "test")
SHAPE = (12, 14, 9)  # voxels to the right, to the front, up


def body(seed: int = 0) -> np.ndarray:
    """A volume [right, front, up] in which no slice is constant."""
    return np.random.default_rng(seed).integers(0, 1000, SHAPE).astype(np.int16)


def store(path: Path, volume: np.ndarray, codes: str = "RAS", tilt: float = 0.0) -> Path:
    """Writes a volume that is given as [right, front, up] with its axes in another order: codes
    such as LPS or AIL say where each stored axis runs. tilt: radians by which the scanner's axes
    are turned about the body's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place, sign = [], []
    for c in codes:
        axis = next(k for k, pair in enumerate(("LR", "PA", "IS")) if c in pair)
        place.append(axis)
        sign.append(1 if c in "RAS" else -1)
    stored = volume.transpose(place)
    stored = stored[tuple(slice(None, None, s) for s in sign)]
    affine = np.zeros((4, 4))
    for column, (axis, s) in enumerate(zip(place, sign, strict=True)):
        affine[axis, column] = s * (1.5, 0.8, 3.0)[axis]
    affine[:3, 3], affine[3, 3] = [-30, 20, 5], 1
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(stored), turn @ affine), path)
    return path


def levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255


def shown(volume: np.ndarray, axis: str, k: int) -> np.ndarray:
    """Pixel by pixel, from what the convention says. volume: [right, front, up]."""
    right, front, up = volume.shape
    if axis == "axial":  # front up; the patient's right on the image's left
        return np.array(
            [
                [volume[right - 1 - column, front - 1 - row, k] for column in range(right)]
                for row in range(front)
            ]
        )
    if axis == "coronal":  # head up; the patient's right on the image's left
        return np.array(
            [
                [volume[right - 1 - column, k, up - 1 - row] for column in range(right)]
                for row in range(up)
            ]
        )
    # head up, front left
    return np.array(
        [
            [volume[k, front - 1 - column, up - 1 - row] for column in range(front)]
            for row in range(up)
        ]
    )


def slices(folder: Path, **settings) -> tuple[Nifti, list[np.ndarray]]:
    source = Nifti(MEMORY, str(folder), validation=0, test=0, **settings)
    return source, [np.asarray(source.read_image(item)) for item in range(len(source))]


ORDERS = [
    "".join(letters)
    for pairs in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*pairs)
]


@pytest.mark.parametrize("codes", ORDERS)
def test_slices_are_shown_as_radiologists_expect_them(tmp_path, codes):
    """All 48 ways in which voxels can be stored."""
    volume = body()
    store(tmp_path / "x.nii", volume, codes)
    for axis, depth in zip(("sagittal", "coronal", "axial"), SHAPE, strict=True):
        source, found = slices(tmp_path, axis=axis, range_=[0, 1000])
        assert len(source) == depth
        for k in range(depth):
            np.testing.assert_allclose(found[k], levels(shown(volume, axis, k), 0, 1000), atol=1e-3)


def test_marks_on_a_body_lie_where_they_should(tmp_path):
    """The same in words: something at the patient's left, in front, below."""
    volume = np.zeros(SHAPE, np.int16)
    volume[1, -2, 2] = 100  # left is where "right" is small
    store(tmp_path / "x.nii.gz", volume, "PIL")
    _, [axial] = slices(tmp_path, range_=[0, 100])
    row, column = np.unravel_index(axial.argmax(), axial.shape)
    assert axial.shape == (14, 12) and row == 1 and column == 10  # up, on the image's right
    _, [coronal] = slices(tmp_path, axis="coronal", range_=[0, 100])
    row, column = np.unravel_index(coronal.argmax(), coronal.shape)
    assert coronal.shape == (9, 12) and row == 6 and column == 10  # below, on the image's right
    _, [sagittal] = slices(tmp_path, axis="sagittal", range_=[0, 100])
    row, column = np.unravel_index(sagittal.argmax(), sagittal.shape)
    assert sagittal.shape == (9, 14) and row == 6 and column == 1  # below, on the image's left


def test_an_oblique_scan_is_not_resampled(tmp_path):
    volume = body()
    store(tmp_path / "x.nii", volume, "LPS", tilt=0.5)
    _, found = slices(tmp_path, range_=[0, 1000])
    np.testing.assert_allclose(found[4], levels(shown(volume, "axial", 4), 0, 1000), atol=1e-3)


# Ranges


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_each_volume_has_its_own_range(tmp_path, kind):
    """MRI has no absolute units. An outlier darkens nothing."""
    first, second = body(1).clip(0, 250).astype(kind), (body(2) // 5).astype(kind)
    second[3, 3, 3] = 255
    store(tmp_path / "a.nii.gz", first)
    store(tmp_path / "b.nii.gz", second)
    _, found = slices(tmp_path)
    for volume, images in ((first, found[:9]), (second, found[9:])):
        low, high = np.quantile(volume.astype(float), [0.001, 0.999])
        for k in range(9):
            np.testing.assert_allclose(
                images[k], levels(shown(volume, "axial", k), low, high), atol=2e-3
            )


def test_slope_and_intercept_of_the_file(tmp_path):
    volume = body()
    data = bytearray(store(tmp_path / "x.nii", volume, "LAS").read_bytes())
    data[112:120] = struct.pack("<ff", 2.5, -1024)  # scl_slope, scl_inter
    (tmp_path / "x.nii").write_bytes(data)
    _, found = slices(tmp_path, range_=[-160, 240])
    np.testing.assert_allclose(
        found[5], levels(shown(volume * 2.5 - 1024, "axial", 5), -160, 240), atol=2e-3
    )


def test_what_is_no_number_is_black(tmp_path):
    volume = body().astype(np.float32)
    volume[:2] = np.nan
    volume[:, :, 0] = np.nan
    store(tmp_path / "x.nii", volume)
    source, found = slices(tmp_path)
    low, high = np.quantile(volume[np.isfinite(volume)], [0.001, 0.999])
    assert len(source) == 8 and not found[0][:, -2:].any()
    np.testing.assert_allclose(
        found[0][:, :-2], levels(shown(volume, "axial", 1), low, high)[:, :-2], atol=2e-3
    )


# Slices


def test_constant_slices_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    volume = body()
    volume[:, :, [0, 4]], volume[:, :, 8] = 0, 7
    store(tmp_path / "a.nii", volume)
    store(tmp_path / "b.nii", body(1))
    source, found = slices(tmp_path, range_=[0, 1000])
    assert [frame for _, frame in source.items] == [1, 2, 3, 5, 6, 7, *range(9)]
    np.testing.assert_allclose(found[3], levels(shown(volume, "axial", 5), 0, 1000), atol=1e-3)
    assert any(
        "left out 3 constant (empty) slices of 18" in record.message for record in caplog.records
    )
    assert source.item_name(3) == f"{tmp_path / 'a.nii'}, slice 5"


def test_every_so_many(tmp_path):
    store(tmp_path / "a.nii", body())
    source, _ = slices(tmp_path, every=4)
    assert [frame for _, frame in source.items] == [0, 4, 8]
    with pytest.raises(UserError, match="data.every=0"):
        slices(tmp_path, every=0)


def test_nothing_but_constant_slices_is_refused(tmp_path):
    store(tmp_path / "a.nii", np.zeros(SHAPE, np.int16))
    with pytest.raises(UserError, match="all 9 slices of its 1 volumes are constant"):
        slices(tmp_path)


@pytest.mark.parametrize("shape", [(12, 14), (12, 14, 1), (12, 14, 9, 1), (12, 14, 9, 1, 1)])
def test_flat_and_padded_volumes(tmp_path, shape):
    volume = np.random.default_rng(0).integers(0, 1000, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.0, 1, 1, 1])), tmp_path / "x.nii")
    full = volume.reshape([*shape[:3], *[1] * (3 - len(shape))])
    source, found = slices(tmp_path, range_=[0, 1000])
    assert len(source) == full.shape[2]
    np.testing.assert_allclose(found[0], levels(shown(full, "axial", 0), 0, 1000), atol=1e-3)


# Splits


def test_a_volume_is_in_one_split(tmp_path):
    for k in range(10):
        store(tmp_path / f"{k}.nii", body(k))
    source = Nifti(MEMORY, str(tmp_path), validation=0.2, test=0.1)
    files = {split: {source.files[item].name for item in source.splits[split]} for split in SPLITS}
    assert [len(source.splits[split]) for split in SPLITS] == [63, 18, 9] and [
        len(files[split]) for split in SPLITS
    ] == [7, 2, 1]
    assert sorted(item for split in SPLITS for item in source.splits[split]) == list(range(90))
    with pytest.raises(UserError, match="all 9 images are of one patient"):
        store(tmp_path / "one/x.nii", body())
        Nifti(MEMORY, str(tmp_path / "one"))


def test_sessions_of_a_patient_are_in_one_split(tmp_path):
    for patient in range(8):
        for session in range(2):
            store(
                tmp_path / f"sub-{patient}" / f"ses-{session}.nii.gz", body(patient * 2 + session)
            )
    source = Nifti(
        MEMORY, str(tmp_path), every=3, validation=0.25, test=0.25, patient=r"sub-[^/_]+"
    )
    folders = {
        split: {source.files[item].parent.name for item in source.splits[split]} for split in SPLITS
    }
    assert [len(folders[split]) for split in SPLITS] == [4, 2, 2] and not folders[
        "train"
    ] & folders["test"]
    assert list(source.classes) == [] and len(set.union(*folders.values())) == 8


def test_all_that_changes_pixels_is_in_the_fingerprint(tmp_path):
    for k in range(2):
        store(tmp_path / f"{k}.nii", body(k))
    changes = [{}, {"axis": "coronal"}, {"every": 2}, {"range_": [0, 1]}, {"range_": [0, 2]}]
    assert len({Nifti(MEMORY, str(tmp_path), **change).fingerprint for change in changes}) == len(
        changes
    )


# Files


def test_broken_files_are_listed(tmp_path):
    for k in range(5):
        store(tmp_path / "x" / f"good{k}.nii.gz", body(k))
    good = (tmp_path / "x/good0.nii.gz").read_bytes()
    (tmp_path / "x/short.nii.gz").write_bytes(good[:500])
    (tmp_path / "x/text.nii").write_bytes(b"not NIfTI")
    (tmp_path / "x/empty.nii.gz").write_bytes(b"")
    nibabel.save(
        nibabel.Nifti1Image(np.stack([body(k)[:4, :4, :1] for k in range(5)], -1), np.eye(4)),
        tmp_path / "x/series.nii",
    )
    colours = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "x/colours.nii")
    source = Nifti(MEMORY, str(tmp_path / "x"))
    with pytest.raises(UserError, match="5 of 50 images") as raised:
        open_dataset(DataSettings(Nifti, 8, 1, False), source, 0, tmp_path / "cache")
    for text in (
        "short.nii.gz, slice 0: cannot be read",
        "text.nii",
        "empty.nii.gz",
        "series.nii, slice 0: 5 channels, and data.channels=1",
        "colours.nii, slice 0: voxels of colours",
    ):
        assert text in str(raised.value)
    assert "good" not in str(raised.value)
    kept = open_dataset(
        DataSettings(Nifti, 8, 1, False, skip_broken=True), source, 0, tmp_path / "cache"
    )
    assert sum(map(len, kept.splits.values())) == 45


def test_what_could_not_be_read_once_is_read_at_the_next_start(tmp_path, monkeypatch):
    """FileCache was short, or the disk was away: the file is as it was, so its time of change does
    not tell."""
    for k in range(3):
        store(tmp_path / "x" / f"{k}.nii", body(k))
    memory = FileCache(tmp_path / "memory")
    monkeypatch.setattr("data.file_cache.FRESH", -1e9)
    with monkeypatch.context() as patch:
        patch.setattr(data.sources.nifti, "load_volume", raise_user_error)
        assert len(Nifti(memory, str(tmp_path / "x"))) == 3
    assert len(Nifti(memory, str(tmp_path / "x"))) == 3 * SHAPE[2]


def raise_user_error(*_):
    raise UserError("cannot be read as NIfTI (MemoryError)")


def test_other_files_are_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    for k in range(20):
        store(tmp_path / f"{k}.nii", body(k))
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "._1.nii").write_text("of macOS")
    assert len(Nifti(MEMORY, str(tmp_path))) == 180
    [line, oblong] = [record.message for record in caplog.records]
    assert "left out 1 file that is no NIfTI file: .json 1" in line
    assert "20 of 20 files are not square" in oblong and "0.533 times" in oblong  # 0.8 by 1.5 mm
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no NIfTI files in it"):
        Nifti(MEMORY, str(tmp_path / "none"))


# Each volume once


def test_volumes_are_decoded_once_for_all_of_their_slices(tmp_path, monkeypatch):
    monkeypatch.setattr("data.file_cache.FRESH", -1e9)
    memory, loads, real = FileCache(tmp_path / "memory"), [], data.sources.nifti.load_volume
    monkeypatch.setattr(
        data.sources.nifti,
        "load_volume",
        lambda path, axis: (loads.append(path), real(path, axis))[1],
    )
    for k in range(6):
        store(tmp_path / "x" / f"{k}.nii.gz", body(k))
    source = Nifti(memory, str(tmp_path / "x"))
    assert len(loads) == 6
    images = open_dataset(DataSettings(Nifti, 8, 1, False), source, 0, tmp_path / "cache").images
    assert len(loads) == 12 and len(images) == 54
    again = Nifti(memory, str(tmp_path / "x"))
    assert (
        len(loads) == 12 and again.items == source.items and again.fingerprint == source.fingerprint
    )


def test_threads_wait_for_one_load():
    loads, gate = [], threading.Event()

    def load(key):
        loads.append(key)
        gate.wait(10)
        if key == "bad":
            raise UserError("broken")
        return np.zeros(1)

    recent, found = Recent(load, 2), []

    def ask(key):
        try:
            found.append(recent(key))
        except UserError as error:
            found.append(error)

    threads = [threading.Thread(target=ask, args=(key,)) for key in ("good", "bad") * 4]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert sorted(loads) == ["bad", "good"] and sum(isinstance(f, UserError) for f in found) == 4
    recent("another"), recent("good")
    assert loads.count("good") <= 2 and recent._future.cache_info().currsize == 2
