"""Images of any number of channels from arrays and volumes, which of them are taken and shown, and
images that keep their edges."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from config.identity import digest, identity
from config.overrides import composed
from config.run_config import RunConfig
from data.dataset import open_dataset
from data.image_reader import ImageReader
from data.memory_map import open_memory_map
from data.pixels import to_picture
from data.resize import OtherChannels, TooSmall, to_array
from data.settings import DataSettings
from data.sources.folder import Folder
from data.sources.nifti import Nifti
from data.sources.npz import Npz
from runtime.errors import UserError
from tests.helpers.caches import new_cache

MEMORY = new_cache()
ALL = {"validation": 0, "test": 0}


def random(*shape: int, high: int = 256, kind: Any = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape).astype(kind)


def linear(values: np.ndarray, low: Any, high: Any) -> np.ndarray:
    return np.round(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255)


def opened(reader: Any, size: Any, channels: int, **settings: Any) -> np.ndarray:
    """Images of a reader, as they go to training."""
    cache = new_cache().folder
    data = DataSettings(reader, size, channels, False, **settings)
    return open_dataset(data, data.open_reader(cache), 0, cache).images


# Arrays


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("shape", [(8, 8), (20, 30), (64, 48)])
@pytest.mark.parametrize("channels", [2, 4, 5, 13])
def test_arrays_of_any_channels_first_or_last(tmp_path, shape, channels, first):
    images = random(6, *shape, channels)
    np.savez(tmp_path / "x.npz", images=images.transpose(0, 3, 1, 2) if first else images)
    found = opened(partial(Npz, path=str(tmp_path / "x.npz"), **ALL), shape, channels)
    assert np.array_equal(found, images)


def test_arrays_of_numbers_have_a_range_for_each_channel(tmp_path):
    images = random(20, 9, 7, 5, high=1000, kind=np.int32) * np.array([1, 2, 3, 40, 5])
    np.savez(tmp_path / "x.npz", images=images)
    reader = partial(Npz, path=str(tmp_path / "x.npz"), **ALL)
    low, high = (f(images.reshape(-1, 5), axis=0) for f in (np.min, np.max))
    assert np.array_equal(opened(reader, (9, 7), 5), linear(images, low, high))
    given = partial(reader, range_=[100, 900])
    assert np.array_equal(opened(given, (9, 7), 5), linear(images, 100, 900))


@pytest.mark.parametrize("shape, channels", [((6, 16, 28, 28), 16), ((6, 28, 28, 4), 4)])
def test_arrays_of_other_channels_are_refused_with_both_cures(tmp_path, shape, channels):
    np.savez(tmp_path / "x.npz", images=random(*shape))
    with pytest.raises(UserError) as raised:
        opened(partial(Npz, path=str(tmp_path / "x.npz"), **ALL), 28, 3)
    for part in (
        f"images[0]: {channels} channels, and data.channels=3",
        f"data.channels={channels} takes",
        "data.bands=[1,2,3] data.channels=3",
    ):
        assert part in str(raised.value)


# Volumes


SHAPE = (6, 7, 4)  # to the right, to the front, up


def volume(k: int) -> np.ndarray:
    return np.random.default_rng(k).uniform(0, 100 * (k % 7 + 1), SHAPE).astype(np.float32)


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


def axial(values: np.ndarray, k: int) -> np.ndarray:
    """Slice k as a radiologist sees it, by its own range of the volume. [H, W]"""
    low, high = np.quantile(values, [0.001, 0.999])
    H, W = SHAPE[1], SHAPE[0]
    slice_ = [[values[W - 1 - x, H - 1 - y, k] for x in range(W)] for y in range(H)]
    return linear(np.array(slice_), low, high)


BRATS = ["flair", "t1", "t1ce", "t2"]
NAMES = {
    "brats": (BRATS, "{p}/BraTS20_{p}_{c}.nii.gz"),
    "nnunet": (["_0000", "_0001", "_0002", "_0003"], "imagesTr/BRATS_{p}{c}.nii.gz"),
    "folders": (["T1w", "T2w", "PD", "FLAIR"], "{c}/{p}.nii"),
}


@pytest.mark.parametrize("layout", NAMES)
def test_files_of_one_head_are_channels_in_the_order_given(tmp_path, layout):
    contrasts, name = NAMES[layout]
    for p in range(3):
        for c, contrast in enumerate(contrasts):
            save(tmp_path / name.format(p=f"00{p}", c=contrast), volume(10 * p + c))
        save(tmp_path / name.format(p=f"00{p}", c="_seg"), np.ones(SHAPE, np.uint8))
    order = [contrasts[k] for k in (2, 0, 3, 1)]
    reader = partial(Nifti, path=str(tmp_path), contrasts=order, **ALL)
    found = opened(reader, (SHAPE[1], SHAPE[0]), 4)
    assert found.shape == (3 * SHAPE[2], 7, 6, 4)
    for p in range(3):
        for channel, c in enumerate((2, 0, 3, 1)):
            expected = axial(volume(10 * p + c), 1)
            assert np.abs(found[SHAPE[2] * p + 1, ..., channel] - expected).max() <= 1
    others = [partial(reader, contrasts=contrasts), partial(Nifti, path=str(tmp_path))]
    readers = [each(file_cache=MEMORY) for each in (reader, *others)]
    assert len({each.fingerprint for each in readers}) == 3


def test_the_files_of_a_patient_whose_contrast_is_missing_are_named(tmp_path):
    for p in range(3):
        for c, contrast in enumerate(BRATS):
            if (p, contrast) != (1, "t1ce"):
                save(tmp_path / f"p{p}_{contrast}.nii", volume(10 * p + c))
    reader = partial(Nifti, path=str(tmp_path), contrasts=BRATS, **ALL)
    message = r"p1_flair.nii, slice 0: no file of contrast t1ce is beside it"
    with pytest.raises(UserError, match=message):
        opened(reader, (7, 6), 4)
    assert len(reader(file_cache=MEMORY)) == 9
    with pytest.raises(UserError, match=r"data.contrasts=\[a,b\]: none is a word"):
        Nifti(MEMORY, str(tmp_path), contrasts=["a", "b"])


def test_contrasts_that_do_not_lie_voxel_on_voxel_are_refused(tmp_path):
    save(tmp_path / "p_t1.nii", volume(0))
    save(tmp_path / "p_t2.nii", volume(1), np.diag([1, 1, 3, 1.0]))
    reader = partial(Nifti, path=str(tmp_path), contrasts=["t1", "t2"], **ALL)
    with pytest.raises(UserError, match=r"p_t2.nii does not lie on the voxels of p_t1.nii"):
        opened(reader, (7, 6), 2)


def test_contrasts_in_the_fourth_dimension_are_channels(tmp_path):
    """As in the Medical Decathlon."""
    for p in range(2):
        save(tmp_path / f"{p}.nii.gz", np.stack([volume(10 * p + c) for c in range(4)], -1))
    reader = partial(Nifti, path=str(tmp_path), **ALL)
    found = opened(reader, (7, 6), 4)
    for c in range(4):
        assert np.abs(found[SHAPE[2] + 2, ..., c] - axial(volume(10 + c), 2)).max() <= 1
    one = opened(reader, (7, 6), 1, bands=[2])
    assert np.array_equal(one, found[..., 1:2])
    with pytest.raises(UserError, match=r"slice 0: 4 channels, and data.channels=1"):
        opened(reader, (7, 6), 1)


def test_a_series_of_times_is_no_image(tmp_path):
    save(tmp_path / "x.nii", np.stack([volume(k) for k in range(65)], -1))
    with pytest.raises(UserError, match=r"4 dimensions \[6, 7, 4, 65\]: a series"):
        opened(partial(Nifti, path=str(tmp_path), **ALL), (7, 6), 1)


# What is taken and shown


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"channels": 0}, "at least 1"),
        ({"channels": 3, "bands": [0, 1, 2]}, "the first band is 1"),
        ({"channels": 3, "bands": []}, "the first band is 1"),
        ({"channels": 3, "bands": [1, 2]}, "set data.channels=2"),
        ({"channels": 1, "bands": [1, 2, 3]}, "set data.channels=3"),
        ({"channels": 13, "shown": [1, 2]}, "three channels, or one"),
        ({"channels": 3, "shown": [4, 3, 2]}, "of the 3, counted from 1"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        DataSettings(Folder, 8, flip=False, **settings)


@pytest.mark.parametrize(
    "channels, shown, expected",
    [
        (1, None, [0]),
        (2, None, [0]),
        (3, None, [0, 1, 2]),
        (4, None, [0, 1, 2]),
        (3, [3, 2, 1], [2, 1, 0]),
        (13, [4, 3, 2], [3, 2, 1]),
        (13, [8], [7]),
    ],
)
def test_a_picture_shows_three_channels_or_one(channels, shown, expected):
    images = random(2, 5, 4, channels)
    assert np.array_equal(to_picture(images, shown), images[..., expected])


@pytest.mark.parametrize("found, asked", [(2, 3), (13, 3), (3, 1), (5, 4), (4, 13)])
def test_bands_become_no_other_channels(found, asked):
    with pytest.raises(OtherChannels, match=f"{found} channels, and data.channels={asked}"):
        to_array(random(8, 8, found), (8, 8), asked, False)


def test_each_band_is_scaled_by_itself():
    bands = random(30, 20, 5).astype(np.float32)
    found = to_array(bands, (10, 10), 5, False)
    for k in range(5):
        alone = to_array(Image.fromarray(bands[..., k]), (10, 10), 1, False)
        assert np.array_equal(found[..., k : k + 1], alone)


# Edges


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_pad_keeps_the_whole_image_between_black_borders(channels, wide):
    pixels = 50 + random(20, 40, channels, high=200)
    image: Any = pixels if channels == 5 else Image.fromarray(pixels.squeeze())
    if not wide:
        pixels = pixels.swapaxes(0, 1)
        image = pixels if channels == 5 else Image.fromarray(np.ascontiguousarray(pixels.squeeze()))
    found = to_array(image, (40, 40), channels, False, fit="pad")
    inside = found[10:30] if wide else found[:, 10:30]
    assert np.array_equal(inside, pixels) and int(found.sum()) == int(pixels.sum())
    half = to_array(image, (20, 20), channels, False, fit="pad")
    assert (half[:5] == 0).all() if wide else (half[:, :5] == 0).all()
    assert (half[5:15] if wide else half[:, 5:15]).min() > 40


def test_pad_enlarges_only_where_that_is_asked_for():
    image = Image.fromarray(random(20, 40))
    with pytest.raises(TooSmall, match=r"20 high and 40 wide, smaller than data.size=\[50, 50\]"):
        to_array(image, (50, 50), 1, False, fit="pad")
    found = to_array(image, (80, 80), 1, True, fit="pad")
    assert not found[:20].any() and not found[60:].any() and found[20:60].any()
    # where one side fits, nothing is enlarged
    assert to_array(image, (60, 40), 1, False, fit="pad").shape == (60, 40, 1)


class Noise(ImageReader):
    name, fingerprint, labels = "noise", "noise", [0]
    splits = {"train": range(1), "validation": range(0), "test": range(0)}

    def read_image(self, item: int) -> Image.Image:
        return Image.fromarray(random(20, 40))


def test_what_was_decoded_with_other_edges_is_not_taken(tmp_path):
    maps = [
        open_memory_map(Noise(), DataSettings(Noise, 16, 1, False, **more), tmp_path)[0]
        for more in ({}, {"fit": "crop"}, {"fit": "pad"}, {"bands": [1]})
    ]
    assert len(list(tmp_path.glob("*.npy"))) == 3
    assert np.array_equal(maps[0], maps[1]) and not np.array_equal(maps[0], maps[2])


def test_what_changes_pixels_changes_a_runs_name_and_what_is_shown_does_not():
    content = composed("train", ["data.channels=3"])

    def named(**settings: Any) -> str:
        other = copy.deepcopy(content)
        other["data"] |= settings
        return digest(identity(RunConfig(other), "images"))

    for key in ("fit", "bands", "shown"):  # as a run of before has it
        content["data"].pop(key)
    before = named()
    assert before == named(fit="crop", bands=None, shown=None) == named(shown=[3, 2, 1])
    assert len({before, named(fit="pad"), named(bands=[3, 2, 1])}) == 3
