"""Random damage to files and to caches: right pixels or one message, never a traceback.

Of four files one is damaged: what becomes of the others stands in a formula."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.check.section import read_section
from data.dataset import Dataset, open_dataset
from data.settings import parse_data
from runtime.errors import UserError
from tests.helpers import dicom_files

SIDE, FILES = 12, 4
LOW, HIGH = 100, 3100  # what is black and white of more than 8 bits
RANGE = f"data.range=[{LOW},{HIGH}]"
FEW = {"derandomize": True, "deadline": None, "suppress_health_check": list(HealthCheck)}


def stretched(values: np.ndarray) -> np.ndarray:
    scaled = (values.astype(np.float64) - LOW) * 255 / (HIGH - LOW)
    return scaled.clip(0, 255).round().astype(np.uint8)


def write_nifti(path: Path, values: np.ndarray) -> None:
    """One axial slice, which the radiological view shows as it is here."""
    volume = values.astype(np.float32).T[::-1, ::-1, None]
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)


class Kind(NamedTuple):
    """A kind of file: what it holds, how it is written, and the levels that come out."""

    suffix: str
    words: tuple[str, ...]
    high: int
    type: type
    write: Callable[[Path, np.ndarray], object]
    levels: Callable[[np.ndarray], np.ndarray]


def picture(suffix: str, **options) -> Kind:
    def write(path: Path, values: np.ndarray) -> None:
        Image.fromarray(values).save(path, **options)

    return Kind(suffix, ("data=folder",), 256, np.uint8, write, lambda values: values)


KINDS = {
    "png": picture("png"),
    "bmp": picture("bmp"),
    "gif": picture("gif"),
    "pgm": picture("pgm"),
    "tiff": picture("tif", compression="tiff_lzw"),
    "webp": picture("webp", lossless=True),
    "png of 16 bits": Kind(
        "png",
        ("data=folder", RANGE),
        4096,
        np.uint16,
        lambda path, values: Image.fromarray(values).save(path),
        stretched,
    ),
    "tiff of 16 bits": Kind(
        "tif", ("data=folder", RANGE), 4096, np.uint16, tifffile.imwrite, stretched
    ),
    "tiff of floats": Kind(
        "tif", ("data=folder", RANGE), 4096, np.float32, tifffile.imwrite, stretched
    ),
    "dicom": Kind(
        "dcm",
        ("data=dicom", "data.window=[1600,3000]"),
        4096,
        np.uint16,
        dicom_files.write,
        lambda values: dicom_files.linear(values, 1600, 3000).round().astype(np.uint8),
    ),
    "nifti": Kind("nii", ("data=nifti", RANGE), 4096, np.float32, write_nifti, stretched),
    "nifti, packed": Kind(
        "nii.gz", ("data=nifti", RANGE), 4096, np.float32, write_nifti, stretched
    ),
}
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["cut", "set", "zero", "insert", "repeat"]),
        st.floats(0, 1),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, edits: list[tuple[str, float, int]]) -> bytes:
    """Most edits are near the start, where a file says what it is."""
    for what, place, value in edits:
        at = int(place**2 * len(content))
        before, after = content[:at], content[at:]
        content = {
            "cut": before,
            "set": before + bytes([value]) + after[1:],
            "zero": before + bytes(min(value, len(after))) + after[value:],
            "insert": before + bytes([value]) + after,
            "repeat": before + after[:value] + after,
        }[what]
    return content


def values_of(kind: Kind, k: int) -> np.ndarray:
    return np.random.default_rng(k).integers(0, kind.high, (SIDE, SIDE)).astype(kind.type)


def written(folder: Path, kind: Kind) -> list[Path]:
    paths = [folder / f"{k}.{kind.suffix}" for k in range(FILES)]
    for k, path in enumerate(paths):
        kind.write(path, values_of(kind, k))
    return paths


def opened(folder: Path, kind: Kind, cache: Path) -> tuple[Dataset, list[Path]]:
    settled = ("data.validation=0", "data.test=0", f"data.size={SIDE}", "data.channels=1")
    _, section = read_section([str(folder), *kind.words, *settled, "data.skip_broken=true"])
    data = parse_data(section)
    reader = data.open_reader(cache)
    return open_dataset(data, reader, 0, cache), list(reader.files)


def check_pixels(found: Dataset, files: list[Path], kind: Kind, paths: list[Path]) -> None:
    for k, path in enumerate(paths):
        (row,) = (row for row, file in enumerate(files) if file == path)
        assert row in found.splits["train"], path
        np.testing.assert_allclose(
            found.images[row, ..., 0].astype(int), kind.levels(values_of(kind, k)), atol=1
        )


def try_damage(name: str, edits: list[tuple[str, float, int]]) -> None:
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        folder.mkdir()
        *whole, broken = written(folder, kind)
        broken.write_bytes(damaged(broken.read_bytes(), edits))
        try:
            found, files = opened(folder, kind, Path(place) / "cache")
        except UserError as error:
            assert str(error)
        else:
            check_pixels(found, files, kind, whole)


def try_npz_damage(packed: bool, edits: list[tuple[str, float, int]]) -> None:
    """Its arrays have checksums: what is read at all is right."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, SIDE, SIDE + 1)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "x.npz"
        save = np.savez_compressed if packed else np.savez
        save(path, x_train=pixels[:6], y_train=np.arange(6) % 2, X_valid=pixels[6:])
        path.write_bytes(damaged(path.read_bytes(), edits))
        words = ("data=npz", "data.test=0", f"data.size=[{SIDE},{SIDE + 1}]", "data.channels=1")
        _, section = read_section([str(path), *words, "data.skip_broken=true"])
        data = parse_data(section)
        try:
            found = open_dataset(data, data.open_reader(Path(place)), 0, Path(place))
        except UserError as error:
            assert str(error)
            return
        for split, rows in found.splits.items():
            for row in rows:
                assert np.array_equal(found.images[row, ..., 0], pixels[row]), split


def try_cache_damage(name: str, which: float, edits: list[tuple[str, float, int]]) -> None:
    """What was damaged is made anew."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as place:
        folder, cache = Path(place) / "images", Path(place) / "cache"
        folder.mkdir()
        paths = written(folder, kind)
        opened(folder, kind, cache)
        kept = sorted(path for path in cache.rglob("*") if path.is_file())
        victim = kept[int(which * (len(kept) - 1))]
        victim.write_bytes(damaged(victim.read_bytes(), edits))
        check_pixels(*opened(folder, kind, cache), kind, paths)


@pytest.fixture(autouse=True)
def _silent():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@settings(max_examples=20, **FEW)
@given(st.sampled_from(sorted(KINDS)), EDITS)
def test_a_damaged_file_spoils_no_other(name, edits):
    try_damage(name, edits)


@settings(max_examples=20, **FEW)
@given(st.sampled_from(sorted(KINDS)), st.floats(0, 1), EDITS)
def test_a_damaged_cache_is_made_anew(name, which, edits):
    try_cache_damage(name, which, edits)


@settings(max_examples=20, **FEW)
@given(st.booleans(), EDITS)
def test_a_damaged_npz_is_told_or_right(packed, edits):
    try_npz_damage(packed, edits)


@pytest.mark.slow
@settings(max_examples=500, **FEW)
@given(st.booleans(), EDITS)
def test_damaged_npz(packed, edits):
    try_npz_damage(packed, edits)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=200, **FEW)
@given(edits=EDITS)
def test_damaged_files_of_each_kind(name, edits):
    try_damage(name, edits)


@pytest.mark.slow
@settings(max_examples=200, **FEW)
@given(st.sampled_from(sorted(KINDS)), st.floats(0, 1), EDITS)
def test_damaged_caches(name, which, edits):
    try_cache_damage(name, which, edits)
