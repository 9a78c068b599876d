"""python -m data.check of an .npz: only cures that it has, and one message of what is one fault."""

import logging

import numpy as np
import pytest

from data.check.__main__ import main
from data.settings import reader_keys
from data.sources.dicom import Dicom
from data.sources.eurosat import EuroSat, EuroSatBands
from data.sources.folder import Folder
from data.sources.medmnist import MedMnist
from data.sources.nifti import Nifti
from data.sources.npz import Npz

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
