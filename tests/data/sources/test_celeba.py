"""CelebA: which file is in which split, which pixels are cut out, and what is said where files are
missing or others."""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data.sources.celeba
from data.dataset import open_dataset
from data.file_cache import FileCache
from data.settings import DataSettings
from data.sources.celeba import CelebA, official_split, split_by_number
from runtime.errors import UserError
from tests.helpers import SHARED
from tests.helpers.caches import new_cache

MEMORY = new_cache()
SPLITS = ("train", "validation", "test")
# images, as the authors' page and torchvision's tests count them
OFFICIAL = {
    "train": 162_770,
    "validation": 19_867,
    "test": 19_962,
}


def jpeg(number: int = 0, size: tuple[int, int] = (178, 218)) -> bytes:
    pixels = np.random.default_rng(number).integers(
        0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8
    )
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR).save(file, "jpeg")
    return file.getvalue()


def make(folder: Path, numbers, kind: str = "jpg") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number:06d}.{kind}").write_bytes(jpeg(number))
    return folder


def numbers_of(source: CelebA) -> dict[str, list[int]]:
    return {split: [source.numbers[item] for item in source.splits[split]] for split in SPLITS}


def assert_partition(source) -> None:
    assert sorted(item for split in SPLITS for item in source.splits[split]) == list(
        range(len(source))
    )


# Splits


def test_the_official_numbers():
    splits = split_by_number(range(1, 202_600))
    assert {split: len(items) for split, items in splits.items()} == OFFICIAL
    ends = {
        number: official_split(number)
        for number in (1, 162_770, 162_771, 182_637, 182_638, 202_599)
    }
    assert list(ends.values()) == ["train", "train", "validation", "validation", "test", "test"]


def test_the_number_decides_and_not_the_folder(tmp_path):
    make(tmp_path / "test/face", [1, 162_770, 182_637])
    make(tmp_path / "train/face", [162_771, 182_638, 202_599, 7])
    source = CelebA(MEMORY, str(tmp_path))
    assert numbers_of(source) == {
        "train": [1, 7, 162_770],
        "validation": [162_771, 182_637],
        "test": [182_638, 202_599],
    }
    assert_partition(source)
    assert source.item_name(0).endswith("test/face/000001.jpg")
    assert list(source.classes) == [] and source.labels == [0] * 7


def test_a_subset_holds_out_its_last_tenths_and_says_so(tmp_path, caplog):
    make(tmp_path, range(1, 41))
    with caplog.at_level(logging.INFO):
        source = CelebA(MEMORY, str(tmp_path))
    assert numbers_of(source) == {
        "train": list(range(1, 33)),
        "validation": list(range(33, 37)),
        "test": list(range(37, 41)),
    }
    assert "40 of CelebA's 202,599 files (numbers 1 to 40)" in caplog.text
    assert "files 000033 to 000036 (4) are held out as validation" in caplog.text
    assert "files 000037 to 000040 (4) are held out as test" in caplog.text


@pytest.mark.parametrize(
    "numbers, sizes",
    [
        # an unzip that was interrupted in the training files,
        (
            range(1, 150_001),
            (120_000, 15_000, 15_000),
        ),
        # in those of validation: these stay, and test is taken from train
        (
            range(1, 170_001),
            (146_493, 7_230, 16_277),
        ),
        (range(182_638, 202_600), (15_970, 1_996, 1_996)),
        (range(1, 4), (1, 1, 1)),
    ],
)
def test_a_split_that_is_missing_is_taken_from_the_end_of_train(numbers, sizes):
    splits = split_by_number(numbers)
    assert tuple(len(splits[split]) for split in SPLITS) == sizes
    assert sorted(item for split in SPLITS for item in splits[split]) == list(range(len(numbers)))
    if len(numbers) == 170_000:
        assert [numbers[item] for item in splits["validation"]] == list(range(162_771, 170_001))


def test_a_whole_celeba_is_not_remarked_on(tmp_path, caplog, monkeypatch):
    """Of three files, so that the test is fast."""
    monkeypatch.setattr(data.sources.celeba, "COUNT", 3)
    monkeypatch.setattr(data.sources.celeba, "LAST", {"train": 1, "validation": 2, "test": 3})
    source = CelebA(MEMORY, str(make(tmp_path, [1, 2, 3])))
    assert numbers_of(source) == {"train": [1], "validation": [2], "test": [3]} and not caplog.text


@pytest.mark.parametrize(
    "place",
    [
        "celeba/img_align_celeba",
        "img_align_celeba",
        "img_align_celeba/img_align_celeba",
        ".",
        "a/b/c",
    ],
)
@pytest.mark.parametrize("kind", ["jpg", "png", "JPG"])
def test_where_the_files_may_lie(tmp_path, place, kind):
    make(tmp_path / place, [1, 2, 3, 170_000, 190_000], kind)
    (tmp_path / place / "notes.txt").write_text("beside them")
    assert numbers_of(CelebA(MEMORY, str(tmp_path))) == {
        "train": [1, 2, 3],
        "validation": [170_000],
        "test": [190_000],
    }


def test_the_fingerprint_is_of_files_and_crop_and_not_of_the_place(tmp_path):
    first, moved = (
        CelebA(MEMORY, str(make(tmp_path / name, range(1, 6))))
        for name in ("a", "b/img_align_celeba")
    )
    assert first.fingerprint == moved.fingerprint
    assert CelebA(MEMORY, str(tmp_path / "a"), None).fingerprint != first.fingerprint
    (tmp_path / "a/000003.jpg").write_bytes(jpeg(77))
    again = FileCache(MEMORY.folder)  # of another start
    assert CelebA(again, str(tmp_path / "a")).fingerprint != first.fingerprint
    (tmp_path / "b/img_align_celeba/000005.jpg").rename(tmp_path / "b/img_align_celeba/000006.jpg")
    assert CelebA(MEMORY, str(tmp_path / "b")).fingerprint != first.fingerprint


# Pixels


def test_the_crop_is_rows_57_to_184_and_columns_25_to_152(tmp_path):
    source = CelebA(MEMORY, str(make(tmp_path, [1, 2, 3], "png")))
    for item, file in enumerate(source.files):
        assert np.array_equal(
            np.asarray(source.read_image(item)), np.asarray(Image.open(file))[57:185, 25:153]
        )
    whole, other = (
        CelebA(MEMORY, str(tmp_path), None),
        CelebA(MEMORY, str(tmp_path), [0, 20, 178, 198]),
    )
    assert whole.read_image(0).size == (178, 218)
    assert np.array_equal(
        np.asarray(other.read_image(0)), np.asarray(Image.open(other.files[0]))[20:198]
    )


def test_a_batch_has_the_pixels_of_ddims_transforms(tmp_path):
    """Their Crop(121 - 64, 121 + 64, 89 - 64, 89 + 64) and Resize(64): torchvision's bilinear,
    antialiased on Pillow images."""
    from runtime.torchvision import torchvision  # noqa: F401, I001  first: it mends the import of the next
    from torchvision.transforms import functional as F

    source = CelebA(MEMORY, str(make(tmp_path, range(1, 11))))
    images = open_dataset(
        DataSettings(CelebA, 64, 3, True, resample="bilinear"), source, 0, tmp_path / "cache"
    ).images
    for item, file in enumerate(source.files):
        expected = F.resize(F.crop(Image.open(file), 121 - 64, 89 - 64, 128, 128), 64)
        assert np.array_equal(images[item], np.asarray(expected))


@pytest.mark.parametrize(
    "crop", [[25, 57, 153], [25, 57, 25, 185], [0, 0, 179, 218], [-1, 0, 50, 50], [0, 0, 178, 219]]
)
def test_a_crop_outside_of_the_file_is_refused(tmp_path, crop):
    with pytest.raises(UserError, match="data.crop=.*25,57,153,185"):
        CelebA(MEMORY, str(tmp_path), crop)


# What is refused


def refused(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        CelebA(MEMORY, str(path))
    return str(raised.value)


def test_a_missing_folder_says_what_to_get_where_and_what_to_run_meanwhile(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, state in (("absent", "no such folder"), ("empty", "CelebA is not there")):
        message = refused(tmp_path / name)
        for part in (
            state,
            f"data.path={tmp_path / name}",
            "img_align_celeba.zip",
            "mmlab.ie.cuhk.edu.hk",
            "torchvision",
            "quota",
            f"-d {tmp_path / name}",
            "python train.py +experiment=transfer_demo",
        ):
            assert part in message, part
        assert "\n" not in message


@pytest.mark.parametrize("place", ["img_align_celeba.zip", "celeba/img_align_celeba.zip"])
def test_a_zip_that_is_not_unpacked_is_seen(tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(tmp_path / place, "w") as archive:
        archive.writestr("img_align_celeba/000001.jpg", jpeg())
    for path in (tmp_path, tmp_path / place):
        message = refused(path)
        assert (
            f"unzip -q {tmp_path / place} -d {(tmp_path / place).parent}" in message
            and "transfer_demo" in message
        )


def test_other_images_are_sent_to_data_folder(tmp_path):
    (tmp_path / "hq").mkdir()
    for number in range(4):
        (tmp_path / "hq" / f"{number:05d}.jpg").write_bytes(jpeg())  # CelebA-HQ's names
    message = refused(tmp_path / "hq")
    assert "4 images" in message and "data=folder" in message and "000001.jpg" in message
    for number in (0, 202_600):
        make(tmp_path / str(number), [number])
        assert f"{number:06d}.jpg" in refused(tmp_path / str(number)) and "data=folder" in refused(
            tmp_path / str(number)
        )


def test_files_that_are_there_twice_are_refused(tmp_path):
    make(tmp_path / "one", range(1, 5))
    make(tmp_path / "two", [4])
    assert "one/000004.jpg" in refused(tmp_path) and "two/000004.jpg" in refused(tmp_path)


def test_another_size_is_refused_at_the_first_file_or_by_name(tmp_path):
    make(tmp_path, range(1, 6))
    (tmp_path / "000003.jpg").write_bytes(jpeg(size=(409, 687)))  # as img_celeba has them
    (tmp_path / "000004.jpg").write_bytes(jpeg()[:900])
    source = CelebA(MEMORY, str(tmp_path))
    with pytest.raises(UserError) as raised:
        open_dataset(DataSettings(CelebA, 16, 3, True), source, 0, tmp_path / "cache")
    for part in (
        "2 of 5 images of CelebA",
        "000003.jpg: 409x687 pixels",
        "178x218",
        "img_align_celeba",
        "data=folder",
        "000004.jpg: cannot be read",
    ):
        assert part in str(raised.value)
    (tmp_path / "000001.jpg").write_bytes(jpeg(size=(128, 128)))
    assert "000001.jpg: 128x128 pixels" in refused(tmp_path)


# The real files


def test_the_real_files(tmp_path):
    archive = SHARED / "faces_celeba558_native.zip"
    if not archive.exists():
        pytest.skip(f"{archive} is not there (SHARED_DATA names its folder)")
    zipfile.ZipFile(archive).extractall(tmp_path)
    source = CelebA(MEMORY, str(tmp_path))
    assert numbers_of(source) == {
        "train": list(range(1, 449)),
        "validation": list(range(449, 504)),
        "test": list(range(504, 559)),
    }
    settings = DataSettings(CelebA, 64, 3, True, resample="bilinear")
    images = open_dataset(settings, source, 0, tmp_path / "cache").images
    assert images.shape == (558, 64, 64, 3)
    for item in (0, 300, 557):
        with Image.open(source.files[item]) as image:
            expected = image.crop((25, 57, 153, 185)).resize((64, 64), Image.Resampling.BILINEAR)
        assert np.array_equal(images[item], np.asarray(expected))
    eyes, chin = images[:, 26:32, 12:52].mean(), images[:, 44:48, 24:40].mean()
    # the crop is centred on faces: the row of the eyes is darker than the skin below
    assert eyes < chin
