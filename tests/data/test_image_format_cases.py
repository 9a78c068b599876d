"""Images by their first bytes: every kind that Pillow writes, under any suffix; what else lies in a
folder; what needs another package; what is too large."""

from __future__ import annotations

import io
import os
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

import data.image_formats
from data.file_cache import FileCache
from data.image_folder import open_images
from data.image_formats import LARGEST, looks_like_image, open_image
from data.resize import to_array
from data.sources.folder import Folder
from runtime.errors import UserError
from tests.helpers.caches import new_cache

MEMORY = new_cache()
# that Pillow writes and reads back with all pixels; modes in which it does
LOSSLESS = {
    **dict.fromkeys(("PNG", "BMP", "DIB", "TIFF", "TGA", "PPM", "QOI", "SGI", "PCX"), "RGB"),
    **dict.fromkeys(("JPEG2000", "WEBP"), "RGB"),
    "GIF": "L",
    "MSP": "1",
    "XBM": "1",
}
LOSSY = ("JPEG", "MPO", "AVIF")
NO_SIGN = {"TGA": ".tga"}  # known by their suffix
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400)
JXL = b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(400)


def noise(seed: int = 0, shape: tuple[int, ...] = (24, 30, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(kind: str, mode: str, path: Path) -> np.ndarray:
    """An image in a file of this kind -> [H, W, 3]."""
    smooth = Image.fromarray(noise()).resize((60, 48), Image.Resampling.BICUBIC)
    image = smooth.convert(mode)
    image.save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
@pytest.mark.parametrize("suffix", ["", ".dat", ".png"])
def test_an_image_is_one_by_its_first_bytes(tmp_path, kind, suffix):
    path = tmp_path / f"x{suffix or NO_SIGN.get(kind, '')}"
    if kind in NO_SIGN and suffix == ".dat":
        pytest.skip("it has no sign of its own")
    expected = saved(kind, LOSSLESS.get(kind, "L"), path)
    source = Folder(MEMORY, str(tmp_path))
    assert [p.name for p in source.files] == [path.name]
    found = to_array(source.read_image(0), expected.shape[:2], 3, False).astype(int)
    assert np.abs(found - expected).mean() < (6 if kind in LOSSY else 0.01)
    assert np.array_equal(open_images(tmp_path, channels=3)[0], found)  # others' samples too


def test_what_is_no_image_is_left_out_and_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    Image.fromarray(noise()).save(tmp_path / "a.png")
    image = Image.fromarray(noise())
    others = {
        "Thumbs.db": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500),
        "notes": b"P5 is the name of a patient\n" * 9,
        "list.txt": b"BM 1\nGIF\n",
        "empty": b"",
        "array.npy": b"\x93NUMPY\x01\0" + bytes(200),
        "scan.dcm": bytes(128) + b"DICM" + bytes(300),
        "photo.CR2": b"II*\0\x10\0\0\0CR\x02\0" + bytes(300),
        "half": (tmp_path / "a.png").read_bytes()[:20],
    }
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    image.save(tmp_path / "drawing.eps")
    image.convert("L").save(tmp_path / "drawing.pdf")
    assert [p.name for p in Folder(MEMORY, str(tmp_path)).files] == ["a.png"]
    assert f"left out {len(others) + 2} files that are no images" in caplog.text
    assert len(open_images(tmp_path)) == 1


@pytest.mark.parametrize("suffix", [".ovr", ".msk", ".bak", ".part", ".tmp", "~", ".OVR"])
def test_files_beside_others_are_no_images_of_their_own(tmp_path, caplog, suffix):
    caplog.set_level("INFO")
    images = [tmp_path / f"x{k}.tif" for k in range(3)]
    for path in images:
        saved("TIFF", "RGB", path)
    saved("TIFF", "RGB", tmp_path / f"x0.tif{suffix}")
    saved("TIFF", "RGB", tmp_path / f"x1.tif{suffix}")
    saved("TIFF", "RGB", tmp_path / f"x1.tif{suffix}.bak")
    alone = tmp_path / f"y.tif{suffix}"  # beside nothing
    saved("TIFF", "RGB", alone)
    source = Folder(MEMORY, str(tmp_path), validation=0, test=0)
    assert source.files == [*images, alone]
    [line] = [text for text in caplog.messages if "left out" in text]
    assert "left out 3 files that are no images" in line and suffix.lower() in line
    assert len(open_images(tmp_path)) == 4


def test_first_bytes_are_looked_at_once(tmp_path, monkeypatch):
    """Of files without a known suffix alone, and not again by the next start."""
    monkeypatch.setattr("data.file_cache.FRESH", -1e9)
    looked = []
    monkeypatch.setattr(
        "data.sources.folder.looks_like_image",
        lambda path: looked.append(path.name) or looks_like_image(path),
    )
    Image.fromarray(noise()).save(tmp_path / "a.png")
    Image.fromarray(noise()).save(tmp_path / "b", "png")
    (tmp_path / "c.txt").write_text("no image")
    for _ in range(2):
        assert len(Folder(FileCache(tmp_path / ".memory"), str(tmp_path))) == 2
    assert sorted(looked) == ["b", "c.txt"]


@pytest.mark.parametrize(
    "content, says",
    [
        (HEIC, "a HEIF photograph: pip install pillow-heif reads it"),
        (JXL, "a JPEG XL image: pip install pillow-jxl-plugin reads it"),
        (b"<!DOCTYPE html><html>" + bytes(100), "a web page and no image"),
        (b"version https://git-lfs.github.com/spec/v1\n" + b"x" * 90, "git lfs pull fetches it"),
        (bytes(128) + b"DICM" + bytes(300), "a DICOM file: data=dicom reads it"),
        (bytes(344) + b"n+1\0" + bytes(300), "a NIfTI volume: data=nifti reads it"),
        (b"some text that is no image", "cannot be read as an image (of no kind that is known)"),
    ],
)
@pytest.mark.parametrize("suffix", [".jpg", ".heic"])
def test_what_is_called_an_image_and_is_none_says_what_it_is(tmp_path, content, says, suffix):
    (tmp_path / f"x{suffix}").write_bytes(content)
    source = Folder(MEMORY, str(tmp_path))
    with pytest.raises(UserError) as error:
        source.read_image(0)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "content, plugin", [(HEIC, "pillow_heif"), (JXL, "pillow_jxl")], ids=["heif", "jxl"]
)
def test_a_package_that_is_installed_is_asked(monkeypatch, content, plugin):
    """One that registers itself by a function, or by being imported, as a stand-in here does."""

    def opened(file, name):
        return Image.new("L", (5, 4), 77)

    def register():
        Image.register_open("STAND-IN", opened, lambda prefix: prefix[4:8] in (b"ftyp", b"JXL "))

    found = types.ModuleType(plugin)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    if plugin == "pillow_heif":
        found.register_heif_opener = register
    else:
        register()
    monkeypatch.setitem(sys.modules, plugin, found)
    assert open_image(content).getpixel((0, 0)) == 77


def test_colour_that_pillow_would_cut_is_refused(tmp_path):
    """SGI and JPEG 2000 of 16 bits."""
    planes = noise(shape=(3, 4, 5, 2))
    head = struct.pack(">HBBHHHHii", 474, 0, 2, 3, 5, 4, 3, 0, 65535) + bytes(488)
    with pytest.raises(UserError, match="SGI of 16 bits in colour, which Pillow cuts to 8"):
        open_image(head + planes.tobytes())
    file = io.BytesIO()
    Image.fromarray(noise()).save(file, "JPEG2000")
    data = bytearray(file.getvalue())
    at = (
        data.find(b"\xff\x4f\xff\x51") + 42
    )  # Ssiz of the first channel; of three it is every third
    for k in range(3):
        assert data[at + 3 * k] == 7
        data[at + 3 * k] = 15
    with pytest.raises(UserError, match="JPEG2000 of 16 bits"):
        open_image(bytes(data))
    gray = noise(shape=(24, 30)).astype(np.uint16) * 200
    Image.fromarray(gray).save(tmp_path / "gray.jp2", irreversible=False)
    source = Folder(MEMORY, str(tmp_path), range_=[0, 51000])
    assert np.abs(np.asarray(source.read_image(0)) - gray / 200).max() < 0.01


# Too large


def test_a_jpeg_beyond_the_limit_is_decoded_smaller(monkeypatch):
    """The limit of Pillow, made small: half, quarter or eighth, whichever is within it."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((160, 120), Image.Resampling.BICUBIC))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    for limit, n in ((160 * 120 - 1, 2), (60 * 80 - 1, 4), (30 * 40 - 1, 8)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit // 2)
        monkeypatch.setattr(data.image_formats, "LARGEST", limit)
        image = open_image(file.getvalue())
        assert image.size == (160 // n, 120 // n)
        expected = pixels.reshape(120 // n, n, 160 // n, n).mean((1, 3))
        assert np.abs(np.asarray(image) - expected).mean() < 3


def test_another_image_beyond_the_limit_names_the_cure(tmp_path):
    side = int(LARGEST**0.5) + 50
    row = b"P4 %d %d\n" % (side, side)
    (tmp_path / "large.pbm").write_bytes(row + bytes(100))
    source = Folder(MEMORY, str(tmp_path))
    with pytest.raises(
        UserError, match=r"more than 178,956,970 pixels.*tiles.*data\.skip_broken=true"
    ):
        source.read_image(0)
    os.rename(tmp_path / "large.pbm", tmp_path / "large")
    assert looks_like_image(tmp_path / "large")


# What comes with scikit-image

SEVERAL = ("multipage.tif", "multipage_rgb.tif", "no_time_for_that_tiny.gif")


def test_scikit_images_own_files_are_read_or_refused_in_one_line():
    """docs/data.md has the counts."""
    folder = Path(skimage.__file__).parent / "data"
    source = Folder(MEMORY, str(folder), validation=0, test=0, classes=False)
    read, refused = 0, {}
    for item, path in enumerate(source.files):
        try:
            found = source.read_image(item)
        except UserError as error:
            refused[path.name] = str(error)
            continue
        with Image.open(path) as image:
            white = Image.new("RGBA", image.size, "white")
            expected = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        pixels = to_array(found, (image.height, image.width), 3, False).astype(int)
        assert np.abs(pixels - np.asarray(expected)).max() <= 1, path
        read += 1
    assert read >= 20 and set(refused) <= set(SEVERAL)
    assert all("\n" not in why and "pages or frames" in why for why in refused.values())
