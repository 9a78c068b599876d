"""Files that are replaced while a start looks at them: nothing is decoded of one content and kept
under the fingerprint of another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

import data.sources.cifar10
from data.dataset import open_dataset
from data.file_cache import Changed, FileCache
from data.memory_map import open_memory_map
from data.settings import DataSettings
from data.sources.bundled import Faces, Tissue
from data.sources.celeba import CelebA
from data.sources.cifar10 import BATCHES, Cifar10
from data.sources.dicom import Dicom
from data.sources.folder import Folder
from data.sources.nifti import Nifti
from data.sources.npz import Npz
from runtime.errors import UserError
from tests.helpers.dicom_files import write as write_dicom

SETTINGS = [
    DataSettings(Folder, 8, 1, False, upscale=True, skip_broken=skip) for skip in (False, True)
]


def pictures(
    n: int, version: int, kind: type = np.uint8, size: tuple[int, int] = (12, 12)
) -> np.ndarray:
    """Ramps, whose pixels depend on each other. [n, H, W]"""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    scale = max(1, np.iinfo(kind).max // 256)
    return np.stack(
        [
            ((5 * y + (k + 1 + 3 * version) * x + 60 * version) % 256 * scale).astype(kind)
            for k in range(n)
        ]
    )


def folder(root: Path, version: int, kind: type = np.uint8) -> list[Path]:
    files = [root / f"{name}/{k}.png" for name in ("a", "b") for k in range(4)]
    for file, picture in zip(files, pictures(8, version, kind), strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    return files


def deep(root: Path, version: int) -> list[Path]:
    return folder(root, version, np.uint16)


def celeba(root: Path, version: int) -> list[Path]:
    root.mkdir(exist_ok=True)
    for k, picture in enumerate(pictures(5, version, size=(218, 178)), 1):
        Image.fromarray(picture).save(root / f"{k:06d}.png")
    return sorted(root.iterdir())


def npz(root: Path, version: int) -> list[Path]:
    root.mkdir(exist_ok=True)
    np.savez_compressed(
        root / "x.npz", images=pictures(20, version), labels=np.arange(20) % (2 + version)
    )
    return [root / "x.npz"]


def nifti(root: Path, version: int) -> list[Path]:
    root.mkdir(exist_ok=True)
    for k in range(4):
        nibabel.save(
            nibabel.Nifti1Image(pictures(12, version + k, np.int16), np.eye(4)),
            root / f"{k}.nii.gz",
        )
    return sorted(root.iterdir())


def dicom(root: Path, version: int) -> list[Path]:
    return [
        write_dicom(
            root / f"{k}.dcm",
            pictures(3, version + k, np.uint16),
            16,
            NumberOfFrames=3,
            PatientID=f"P{k}",
        )
        for k in range(4)
    ]


def cifar10(root: Path, version: int) -> list[Path]:
    root.mkdir(exist_ok=True)
    for k, name in enumerate(BATCHES):
        planes = pictures(30, version + k, size=(32, 32)).reshape(10, 3 * 1024)
        (root / f"{name}.bin").write_bytes(
            b"".join(bytes([n]) + image.tobytes() for n, image in enumerate(planes))
        )
    return sorted(root.iterdir())


KINDS: dict[str, tuple[Callable[[Path, int], list[Path]], Callable]] = {
    "folder": (folder, Folder),
    "deep": (deep, Folder),
    "celeba": (celeba, CelebA),
    "nifti": (nifti, Nifti),
    "dicom": (dicom, Dicom),
    "npz": (npz, lambda memory, path: Npz(memory, f"{path}/x.npz")),
    "cifar10": (cifar10, Cifar10),
}


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    monkeypatch.setattr(data.sources.cifar10, "IMAGES", 10)
    return KINDS[request.param]


def kept(cache: Path) -> list[str]:
    return sorted(
        path.name for path in cache.glob("*") if path.is_file() and path.suffix != ".lock"
    )


@pytest.mark.parametrize(
    "settings",
    [pytest.param(SETTINGS[0], marks=pytest.mark.slow), SETTINGS[1]],
    ids=["", "skip_broken"],
)
def test_files_that_are_replaced_after_they_were_hashed_are_not_decoded(tmp_path, kind, settings):
    """Each by another one of its kind; by garbage and by nothing, which skip_broken does not take
    for broken images."""
    make, opened = kind
    for spoil in ("other", "garbage", "gone"):
        make(tmp_path / "images", 0)
        source = opened(FileCache(tmp_path / "memory"), str(tmp_path / "images"))
        if spoil == "other":
            make(tmp_path / "images", 1)
        for file in (
            make(tmp_path / "images", 1) if spoil == "other" else make(tmp_path / "images", 0)[-1:]
        ):
            if spoil == "garbage":
                file.write_bytes(b"no such thing")
            if spoil == "gone":
                file.unlink()
        with pytest.raises(Changed, match=r"images/.*run the same command again"):
            open_dataset(settings, source, 0, tmp_path / "cache")
        assert not kept(tmp_path / "cache")
    expected = {}
    for version in (0, 1):
        make(tmp_path / "images", version)
        source = opened(FileCache(tmp_path / "memory"), str(tmp_path / "images"))
        expected[version] = np.array(open_memory_map(source, settings, tmp_path / "cache")[0])
    assert not np.array_equal(expected[0], expected[1])
    make(tmp_path / "images", 0)
    source = opened(FileCache(tmp_path / "memory"), str(tmp_path / "images"))
    assert np.array_equal(open_memory_map(source, settings, tmp_path / "cache")[0], expected[0])


@pytest.mark.parametrize(
    "make, opened", [KINDS["nifti"], KINDS["dicom"], KINDS["npz"]], ids=["nifti", "dicom", "npz"]
)
def test_what_was_found_out_before_the_hash_is_of_the_same_content(
    tmp_path, monkeypatch, make, opened
):
    """Slices and ranges, frames and patients, labels."""
    make(tmp_path / "images", 0)
    hashed = FileCache.digests
    monkeypatch.setattr(
        FileCache,
        "digests",
        lambda memory, paths: (make(tmp_path / "images", 1), hashed(memory, paths))[1],
    )
    with pytest.raises(Changed, match="images/"):
        opened(FileCache(tmp_path / "memory"), str(tmp_path / "images"))


def test_a_range_is_measured_on_what_was_hashed(tmp_path, monkeypatch):
    files, look_up = deep(tmp_path / "images", 0), FileCache.look_up

    def replaced(memory, paths, what, compute):
        if what.startswith("range"):
            Image.fromarray(np.full((12, 12), 60_000, np.uint16)).save(files[0])
        return look_up(memory, paths, what, compute)

    monkeypatch.setattr(FileCache, "look_up", replaced)
    with pytest.raises(Changed, match=str(files[0])):
        Folder(FileCache(tmp_path / "memory"), str(tmp_path / "images"))


@pytest.mark.parametrize("source", [Faces, Tissue])
def test_bundled_images_are_those_of_the_fingerprint(tmp_path, monkeypatch, source):
    """Another version of scikit-image could carry others."""
    name = {Faces: "lfw_subset", Tissue: "immunohistochemistry"}[source]
    found = np.array(getattr(data.sources.bundled.skimage.data, name)())
    found[3, 3] = found[4, 4] + 0.01 if found.dtype.kind == "f" else found[4, 4] ^ 1
    monkeypatch.setattr(data.sources.bundled.skimage.data, name, lambda: found)
    with pytest.raises(UserError, match=f"skimage.data.{name}"):
        source(FileCache(tmp_path))
