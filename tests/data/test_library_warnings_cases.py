"""What libraries warn of while images are read is said once, with a file, and not printed."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest
from PIL import Image

from data.decoding import decode_all
from data.file_cache import FileCache
from data.image_folder import open_images
from data.memory_map import open_memory_map
from data.settings import DataSettings
from data.sources.folder import Folder
from runtime.errors import UserError


@pytest.fixture(autouse=True)
def none_is_printed(capfd):
    with warnings.catch_warnings(record=True) as printed:
        yield
    assert not printed and not capfd.readouterr().err


def warn_of(item: int) -> None:
    warnings.warn(f"{item} bytes too many", stacklevel=1)
    warnings.warn("of code", DeprecationWarning, stacklevel=1)
    if item == 3:
        logging.getLogger("nibabel.global").warning("qfac of %d", item)
        logging.getLogger("tifffile").error("<tifffile.TiffPage 0 @8> invalid tag")


def test_each_is_said_once_with_the_first_image_and_how_many_others(caplog):
    assert decode_all(warn_of, 600, "decoding", lambda item: f"image {item}") == {}
    assert sorted(record.message for record in caplog.records) == [
        "image 0 (and 599 other images): 0 bytes too many",
        "image 3: <tifffile.TiffPage 0 @8> invalid tag",
        "image 3: qfac of 3",
    ]


def test_what_is_ignored_on_purpose_is_not_said(caplog):
    warnings.filterwarnings("ignore", message="3 bytes too many")
    decode_all(warn_of, 5, "decoding", lambda item: f"image {item}")
    assert "image 0 (and 3 other images): 0 bytes too many" in caplog.text


def test_an_image_that_fails_says_so_itself(caplog):
    def fail(item: int) -> None:
        warn_of(item)
        raise UserError("broken")

    assert len(decode_all(fail, 5, "decoding", str)) == 5
    assert not caplog.records


def test_those_of_a_first_look_at_files_are_not_said_there(tmp_path, caplog):
    (tmp_path / "1").write_bytes(b"")
    FileCache(tmp_path / "m").look_up([tmp_path / "1"], "what", lambda path: warn_of(3))
    assert not caplog.records


def odd_image(path) -> None:
    """Pillow warns of EXIF that it cannot read, and of a palette's transparency in bytes."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12)).astype(np.uint8))
    image.save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01")


def test_a_folder_of_images_with_odd_exif(tmp_path, caplog):
    for k in range(4):
        odd_image(tmp_path / f"{k}.jpg")
    source = Folder(FileCache(tmp_path / ".m"), str(tmp_path), validation=0, test=0)
    settings = DataSettings(Folder, 8, 1, False)
    open_memory_map(source, settings, tmp_path / "cache")
    [line] = [record.message for record in caplog.records]
    assert line.startswith(f"{tmp_path / '0.jpg'} (and 3 other images): Corrupt EXIF data")
    caplog.clear()
    caplog.set_level(logging.INFO)
    open_memory_map(source, settings, tmp_path / "cache")  # the second start says it too
    assert "Corrupt EXIF data" in caplog.text
    caplog.clear()
    open_images(tmp_path)
    assert f"{tmp_path / '0.jpg'} (and 3 other images): Corrupt EXIF" in caplog.text
