"""python -m data.check of an .npz: only cures that it has, and one message of what is one fault."""

import logging

import nibabel
import numpy as np
import pytest

from data.check.__main__ import main
from data.check.section import read_section
from data.dataset import open_dataset
from data.decoding import list_broken
from data.settings import parse_data, reader_keys
from data.sources.dicom import Dicom
from data.sources.eurosat import EuroSat, EuroSatBands
from data.sources.folder import Folder
from data.sources.medmnist import MedMnist
from data.sources.nifti import Nifti
from data.sources.npz import Npz
from runtime.errors import UserError

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _own_log():
    """data.check logs to the terminal, as a script; the tests after it do not."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def smooth(n: int, side: int = 24) -> np.ndarray:
    """Images that have nothing in common."""
    y, x = np.mgrid[:side, :side] / side
    waves = RANDOM.uniform(-9, 9, (n, 5, 2)), RANDOM.uniform(0, 6.3, (n, 5))
    field = [
        sum(np.sin(y * u + x * v + phase) for (u, v), phase in zip(uv, phases))
        for uv, phases in zip(*waves)
    ]
    return (128 + 22 * np.stack(field) + RANDOM.normal(0, 4, (n, side, side))).astype(np.uint8)


@pytest.fixture
def checked(tmp_path, capsys):
    def checked(*settings: str, **arrays: np.ndarray) -> tuple[int, str]:
        path = tmp_path / "x.npz"
        if arrays:
            np.savez(path, **arrays)
        size = ("data.size=24", "data.channels=1", f"out={tmp_path / 'out'}")
        try:
            code = main([str(path), *size, *settings])
        except SystemExit as ended:
            code = ended.code
        told = capsys.readouterr()
        return code, told.out + told.err

    return checked


# Copies in two splits


def test_the_cure_of_copies_is_one_that_an_npz_has(checked):
    images = smooth(60)
    code, told = checked(x_train=images[:50], x_test=np.concatenate([images[:3], images[50:]]))
    assert code == 1 and "3 images: nearly the same as an image of another split" in told, told
    assert "data.patient" not in told and "Save them as images of one split" in told


@pytest.mark.parametrize("reader", [Dicom, EuroSat, EuroSatBands, Folder, MedMnist, Nifti, Npz])
def test_data_patient_is_the_cure_of_readers_that_take_it(reader):
    section = {"_target_": f"{reader.__module__}.{reader.__name__}"}
    assert ("data.patient" in reader.together) == ("patient" in reader_keys(section))


# Arrays beside the images


def test_arrays_beside_the_images_are_nothing_suspicious(checked):
    images = smooth(60)
    whose = {"patient_id": np.arange(60) // 4, "ages": np.arange(60.0)}
    code, told = checked(images=images, masks=(images > 128).astype(np.uint8), **whose)
    assert code == 0 and "Nothing is suspicious" in told, told
    assert "not used: masks [60, 24, 24] uint8, ages" in told
    assert "patient_id has 15 values for 60 images" in told


# What is broken


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_a_damaged_array_is_one_message_and_not_one_an_image(checked, tmp_path, kind):
    path = tmp_path / "x.npz"
    np.savez(path, images=smooth(60).astype(kind))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    code, told = checked()
    assert code == 2 and told.count("is damaged or cut short") == 1, told
    assert "file again. (and 59 more of this file)" in told and "... and" not in told
    data = parse_data(read_section([str(path), "data.size=24", "data.channels=1"])[1])
    with pytest.raises(UserError, match="60 of 60 images") as raised:
        open_dataset(data, data.open_reader(tmp_path / "cache"), 0, tmp_path / "cache")
    assert str(raised.value).count("is damaged or cut short") == 1


def test_one_array_of_several_may_be_damaged(checked, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x_train=smooth(60), x_test=smooth(9))
    content = bytearray(path.read_bytes())
    content[-2000] ^= 255
    path.write_bytes(content)
    code, told = checked()
    assert code == 1 and "9 images: refused: " in told and "x_test is damaged" in told, told


def test_slices_of_one_volume_that_are_refused_are_one_line(tmp_path):
    for name, side in (("small", 16), ("large", 30)):
        volume = RANDOM.uniform(0, 9, (side, side, 50)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / f"{name}.nii")
    words = ["data=nifti", "data.size=24", "data.channels=1"]
    data = parse_data(read_section([str(tmp_path), *words])[1])
    with pytest.raises(UserError, match="50 of 100 images") as raised:
        open_dataset(data, data.open_reader(tmp_path / "cache"), 0, tmp_path / "cache")
    told = str(raised.value)
    assert (
        "(and 49 more of this file)" in told
        and "small.nii, slice 0: " in told
        and told.count("slice ") == 1
    )


def test_files_broken_for_the_same_reason_are_each_named():
    broken = dict.fromkeys(range(24), "cut short")
    told = list_broken(broken, "file {}".format, "broken", lambda item: item // 2 if item else "x")
    lines = told.splitlines()
    assert lines[1:3] == ["  file 0: cut short", "  file 1: cut short"]
    assert lines[3] == "  file 2: cut short (and 1 more of this file)" and len(lines) == 14
    plain = list_broken(broken, "file {}".format, "broken").splitlines()
    assert len(plain) == 22 and plain[-1] == "  ... and 4 more"
