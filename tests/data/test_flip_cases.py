"""Left stays left: an image that is not its own mirror image, through every kind of source, comes
into a training batch as it was decoded, unless mirroring is asked for."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import data.sources.cifar10
import data.sources.eurosat
from config.overrides import composed, options
from config.run_config import RunConfig
from data.batches import Batches
from data.dataset import Dataset, open_dataset
from tests.helpers import dicom_files

SIDE = 64
N = 8  # images of each kind


def image(k: int) -> np.ndarray:
    """[64, 64] uint8: bright on its left, a brighter spot at the top right, no two alike."""
    found = np.tile(np.linspace(200, 20, SIDE), (SIDE, 1)).astype(np.uint8)
    found[4:20, 44:60] = 255 - 5 * k
    return found


def png(k: int, kind: str = "png", size: tuple[int, int] = (SIDE, SIDE)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image(k)).convert("RGB").resize(size).save(file, kind)
    return file.getvalue()


def files(folder: Path, names: list[str], kind: str = "png", **settings) -> Path:
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(k, kind, **settings))
    return folder


def folder(root: Path) -> list[str]:
    return [f"data.path={files(root, [f'{k}.png' for k in range(N)])}"]


def dicom(root: Path) -> list[str]:
    for k in range(N):
        dicom_files.write(root / f"{k}.dcm", image(k).astype(np.uint16) * 8, PatientID=f"P{k}")
    return [f"data.path={root}"]


def nifti(root: Path) -> list[str]:
    volume = np.stack([image(k) for k in range(N)], axis=2).astype(np.int16)
    for k in range(3):
        nibabel.save(nibabel.Nifti1Image(volume + k, np.eye(4)), root / f"{k}.nii.gz")
    return [f"data.path={root}"]


def arrays(root: Path, name: str, *splits: str) -> Path:
    images, labels = np.stack([image(k) for k in range(N)]), np.arange(N)[:, None] % 2
    np.savez(
        root / name,
        **{f"{split}_images": images for split in splits},
        **{f"{split}_labels": labels.astype(np.uint8) for split in splits},
    )
    return root / name


def npz(root: Path) -> list[str]:
    return [f"data.path={arrays(root, 'x.npz', 'train', 'val', 'test')}"]


def medmnist(root: Path) -> list[str]:
    arrays(root, "pneumoniamnist_64.npz", "train", "val", "test")
    return [f"data.root={root}"]


def celeba(root: Path) -> list[str]:
    names = [f"img_align_celeba/{k:06d}.jpg" for k in [*range(1, N + 1), 170_000, 190_000]]
    return [f"data.path={files(root, names, 'jpeg', size=(178, 218))}"]


def cifar10(root: Path) -> list[str]:
    data.sources.cifar10.IMAGES = N  # put back by the fixture
    (root / "cifar-10-batches-bin").mkdir()
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        rows = [bytes([k]) + image(k)[::2, ::2].tobytes() * 3 for k in range(N)]
        (root / f"cifar-10-batches-bin/{name}.bin").write_bytes(b"".join(rows))
    return [f"data.path={root}"]


def eurosat(root: Path) -> list[str]:
    data.sources.eurosat.COUNTS = {"Forest": 10, "River": 10}
    names = [f"{c}/{c}_{k}.jpg" for c in ("Forest", "River") for k in range(1, 11)]
    return [f"data.root={files(root, names, 'jpeg')}"]


def eurosat_bands(root: Path) -> list[str]:
    data.sources.eurosat.COUNTS = {"Forest": 10, "River": 10}
    for k in range(20):
        folder = root / ("Forest", "River")[k % 2]
        folder.mkdir(exist_ok=True)
        bands = np.stack([image(k % 10).astype(np.uint16) * (b + 1) + k for b in range(13)], -1)
        tifffile.imwrite(
            folder / f"{k}.tif", bands, photometric="minisblack", planarconfig="contig"
        )
    return [f"data.root={root}"]


def bundled(root: Path) -> list[str]:
    return []


MAKE: dict[str, Callable[[Path], list[str]]] = {
    "folder": folder,
    "dicom": dicom,
    "nifti": nifti,
    "npz": npz,
    "medmnist": medmnist,
    "celeba": celeba,
    "cifar10": cifar10,
    "eurosat": eurosat,
    "eurosat_bands": eurosat_bands,
    "bundled_faces": bundled,
    "bundled_tissue": bundled,
}


@pytest.fixture(autouse=True)
def as_published(monkeypatch):
    """Numbers of images, which cifar10 and eurosat lower, come back."""
    monkeypatch.setattr(data.sources.cifar10, "IMAGES", data.sources.cifar10.IMAGES)
    monkeypatch.setattr(data.sources.eurosat, "COUNTS", data.sources.eurosat.COUNTS)


def batches_of(root: Path, kind: str, *settings: str) -> tuple[Dataset, Batches]:
    """As training.run opens them."""
    config = RunConfig(composed("train", [f"data={kind}", "data.size=24", *settings]))
    images = open_dataset(config.data, config.data.open_reader(root), 0, root / "cache")
    return images, Batches(images, 16, config.data.flip, 0, config.augmentation)


def mirrored(images: Dataset, batches: Batches, count: int = 4) -> float:
    """The share of mirrored images among the first batches; each other is as it was decoded."""
    found = []
    for k in range(count):
        x0, condition = batches.as_trained_on(batches.batch(k))
        assert condition == {}
        seen = np.rint((x0.permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype(np.uint8)
        for one, row in zip(seen, batches.indices(k), strict=True):
            plain = images.images[row]
            assert not np.array_equal(plain, plain[:, ::-1])
            found.append(np.array_equal(one, plain[:, ::-1]))
            assert found[-1] or np.array_equal(one, plain)
    return float(np.mean(found))


@pytest.mark.parametrize("kind", options("data"))
def test_no_image_is_mirrored_unless_that_is_asked_for(tmp_path, kind):
    """A new kind of source belongs into MAKE."""
    (tmp_path / "images").mkdir()
    own = MAKE[kind](tmp_path / "images")
    assert mirrored(*batches_of(tmp_path, kind, *own)) == 0
    assert 0.2 < mirrored(*batches_of(tmp_path, kind, *own, "data.flip=true")) < 0.8


def test_a_file_with_its_light_on_the_left_is_trained_on_so(tmp_path):
    """By the file's own pixels."""
    own = folder(tmp_path / "images")
    _, batches = batches_of(tmp_path, "folder", *own, "data.channels=1")
    x0 = torch.cat([batches.as_trained_on(batches.batch(k))[0] for k in range(4)])
    assert (x0[:, 0, 12:, :12].mean((1, 2)) > x0[:, 0, 12:, 12:].mean((1, 2)) + 0.5).all()


ASKS = {  # the experiments that mirror, as their papers do or as they always have, and their images
    "pretrain_celeba": "celeba",
    "pretrain_celebahq256": "folder",
    "pretrain_cifar10": "cifar10",
    "pretrain_folder24": "folder",
    "transfer_celeba_to_art": "folder",
    "transfer_celeba_to_satellite": "eurosat",
    "transfer_demo": "bundled_tissue",
}


@pytest.mark.parametrize("experiment", options("experiment"))
def test_an_experiment_mirrors_its_own_images_alone(experiment):
    """With radiographs in their place it does not, unless it is asked to."""

    def flips(*settings: str) -> bool:
        return composed("train", [f"+experiment={experiment}", "++data.path=x", *settings])["data"][
            "flip"
        ]

    assert flips() is (experiment in ASKS)
    if experiment in ASKS:
        assert not flips("data=dicom") and not flips("data=medmnist")
        assert flips(f"data={ASKS[experiment]}") and not flips("data.flip=false")
        assert flips("data=dicom", "data.flip=true")
