"""TIFFs of every kind that somebody's program writes: no plane is dropped in silence, the one image
is found among its pages, and what is declared as no value is black and counts for no range."""

from __future__ import annotations

import io
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.dataset import open_dataset
from data.file_cache import FileCache
from data.image_file import read_image_file
from data.resize import in_bands, to_array
from data.settings import DataSettings
from data.sources.folder import Folder
from runtime.content import sha256_of
from runtime.errors import UserError
from tests.helpers.caches import new_cache

MEMORY = new_cache()
SHAPE = H, W = 9, 14


def random(*shape: int, high: int = 256, kind: Any = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape).astype(kind)


def tiff(values: np.ndarray, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **{"photometric": "minisblack", "metadata": None, **settings})
    return buffer.getvalue()


def pages(*images: dict[str, Any]) -> bytes:
    """Pages of a TIFF, each as keywords of TiffWriter.write."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        for image in images:
            file.write(**{"photometric": "minisblack", "metadata": None, **image})
    return buffer.getvalue()


def linear(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255


def own(values: np.ndarray) -> np.ndarray:
    """[H, W], by its own range."""
    return linear(values, *np.nanquantile(values.astype(np.float64), [0.001, 0.999]))


def each(values: np.ndarray) -> np.ndarray:
    """[H, W, C], each band by its own range."""
    return np.stack([own(values[..., k]) for k in range(values.shape[-1])], -1)


def read(data: bytes) -> np.ndarray:
    """[H, W, C] levels."""
    return in_bands(read_image_file(data)).astype(np.float64)


def refused(data: bytes) -> str:
    with pytest.raises(UserError) as raised:
        read_image_file(data)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# Bands


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("bands", [2, 3, 4, 5, 13])
def test_bands_of_16_bits_each_by_its_own_range(planar, bands):
    values = random(*SHAPE, bands, high=4000, kind=np.uint16) * (1 + np.arange(bands)).astype("u2")
    stored = values if planar == "contig" else values.transpose(2, 0, 1)
    found = read(tiff(stored, planarconfig=planar))
    assert found.shape == (*SHAPE, bands) and np.abs(found - each(values)).max() < 1e-3


@pytest.mark.parametrize("photometric", ["minisblack", "rgb"])
@pytest.mark.parametrize("bands", [5, 6, 13])
def test_bands_of_8_bits_are_levels_already(photometric, bands):
    values = 40 + random(*SHAPE, bands, high=20)
    data = tiff(values, photometric=photometric, planarconfig="contig")
    assert np.array_equal(read(data), values)


@pytest.mark.parametrize("kind", [np.float32, np.int16, np.float64])
def test_bands_of_other_numbers(kind):
    values = (random(*SHAPE, 4, high=3000, kind=np.int64) - 1000).astype(kind)
    found = read(tiff(values, planarconfig="contig"))
    assert np.abs(found - each(values)).max() < 1e-3


@pytest.mark.parametrize("deep", [False, True])
def test_near_infrared_beside_red_green_and_blue_is_no_opacity(deep):
    """A fourth channel that is not declared as opacity is a band."""
    values = random(*SHAPE, 4, high=4000 if deep else 256, kind=np.uint16 if deep else np.uint8)
    data = tiff(values, photometric="rgb", extrasamples=["unspecified"], planarconfig="contig")
    found = read(data)
    assert np.abs(found - (each(values) if deep else values)).max() < 1e-3


@pytest.mark.parametrize("deep", [False, True])
def test_a_fourth_channel_that_the_header_forgets_is_a_band(deep):
    values = random(*SHAPE, 4, high=4000 if deep else 256, kind=np.uint16 if deep else np.uint8)
    data = bytearray(
        tiff(values, photometric="rgb", extrasamples=["unspecified"], planarconfig="contig")
    )
    at = data.index(struct.pack("<HHI", 338, 3, 1))
    data[at : at + 2] = struct.pack("<H", 339 + 4096)  # a tag that nobody knows
    assert read(bytes(data)).shape == (*SHAPE, 4)


@pytest.mark.parametrize("name", ["png", "webp", "tif"])
def test_opacity_is_laid_on_white_or_a_channel_that_is_asked_for(tmp_path, name):
    rgba = random(*SHAPE, 4)
    Image.fromarray(rgba).save(tmp_path / f"x.{name}", lossless=True, exact=True)
    image = read_image_file(tmp_path / f"x.{name}")
    alpha = rgba[..., 3:] / 255
    on_white = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(to_array(image, SHAPE, 3, False) - on_white).max() <= 1
    assert np.array_equal(to_array(image, SHAPE, 4, False), rgba)
    assert np.array_equal(to_array(image, SHAPE, 2, False, bands=[4, 1]), rgba[..., [3, 0]])
    assert np.array_equal(to_array(image, SHAPE, 3, False, bands=[3, 2, 1]), rgba[..., 2::-1])


def test_opacity_of_16_bits_is_a_channel_that_is_asked_for():
    """As programs write it that take near infrared for opacity."""
    values = random(*SHAPE, 4, high=65536, kind=np.uint16)
    data = tiff(values, photometric="rgb", extrasamples=["unassalpha"], planarconfig="contig")
    image = read_image_file(data, lambda parts: [(0, 65535)])
    assert np.abs(to_array(image, SHAPE, 4, False) - linear(values, 0, 65535)).max() <= 0.51
    alpha = values[..., 3:] / 65535
    on_white = linear(values[..., :3], 0, 65535) * alpha + 255 * (1 - alpha)
    assert np.abs(to_array(image, SHAPE, 3, False) - on_white).max() <= 1.5


# Stacks


def imagej(planes: np.ndarray, axis: str) -> bytes:
    """One page, with all planes behind it, as ImageJ writes large stacks."""
    n, height, width = planes.shape
    text = f"ImageJ=1.53t\nimages={n}\n{axis}={n}\n".encode() + b"\0"
    values = planes.astype(">u2").tobytes()
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 16 << 16),
        (262, 3, 1, 1 << 16),
        (270, 2, len(text), 0),
        (273, 4, 1, 1),
        (277, 3, 1, 1 << 16),
        (278, 4, 1, height),
        (279, 4, 1, 2 * height * width),
    ]
    at = 14 + 12 * len(tags)
    place = {270: at, 273: at + len(text)}
    entries = (
        struct.pack(">HHII", tag, kind, count, place.get(tag, value))
        for tag, kind, count, value in tags
    )
    return (
        struct.pack(">2sHIH", b"MM", 42, 8, len(tags))
        + b"".join(entries)
        + bytes(4)
        + text
        + values
    )


@pytest.mark.parametrize("axis, word", [("slices", "slices"), ("frames", "times")])
def test_planes_behind_the_one_page_of_imagej_are_told(axis, word):
    message = refused(imagej(random(7, *SHAPE, high=4000, kind=np.uint16), axis))
    assert f"7 {word} in one file" in message and "save each as a file of its own" in message


def test_channels_of_imagej_are_channels():
    planes = random(4, *SHAPE, high=4000, kind=np.uint16)
    expected = each(planes.transpose(1, 2, 0))
    assert np.abs(read(imagej(planes, "channels")) - expected).max() < 1e-3
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, planes, imagej=True, metadata={"axes": "CYX"})
    assert np.abs(read(buffer.getvalue()) - expected).max() < 1e-3


@pytest.mark.parametrize("axes, message", [("ZYX", "5 slices"), ("TYX", "5 times")])
def test_slices_of_ome_are_told(axes, message):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, random(5, *SHAPE), ome=True, metadata={"axes": axes})
    assert message in refused(buffer.getvalue())


def test_channels_of_ome_are_channels():
    planes = random(5, *SHAPE)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, planes, ome=True, metadata={"axes": "CYX"}, photometric="minisblack")
    assert np.array_equal(read(buffer.getvalue()), planes.transpose(1, 2, 0))


def test_planes_that_a_description_alone_tells_of_are_told():
    """Written by tifffile with truncate: one page, and a shape in its description."""
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, random(6, *SHAPE, kind=np.uint16), photometric="minisblack", truncate=True
    )
    assert b"[6, 9, 14]" in buffer.getvalue()
    assert "6 planes in one file" in refused(buffer.getvalue())


# Pages that are no further images


FULL = random(40, 60, seed=1)
DEEP = random(40, 60, high=4000, kind=np.uint16, seed=1)


@pytest.mark.parametrize("full", [FULL, DEEP], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("first", [True, False], ids=["pyramid", "thumbnail"])
def test_smaller_versions_are_no_further_images(full, first):
    """Before the image or behind it."""
    smaller = [{"data": full[::k, ::k], "subfiletype": 1} for k in (2, 4)]
    image = {"data": full}
    data = pages(image, *smaller) if first else pages(*reversed(smaller), image)
    expected = full if full.dtype == np.uint8 else own(full)
    assert np.abs(read(data)[..., 0] - expected).max() < 1e-3


def test_levels_below_the_image_are_no_further_images():
    data = pages({"data": DEEP, "subifds": 2}, {"data": DEEP[::2, ::2]}, {"data": DEEP[::4, ::4]})
    assert np.abs(read(data)[..., 0] - own(DEEP)).max() < 1e-3


@pytest.mark.parametrize("full", [FULL, DEEP], ids=["8 bits", "16 bits"])
def test_the_image_may_lie_below_its_thumbnail(full):
    """As cameras write it."""
    data = pages(
        {"data": FULL[::4, ::4], "subifds": 1, "subfiletype": 1}, {"data": full, "subfiletype": 0}
    )
    expected = full if full.dtype == np.uint8 else own(full)
    assert np.abs(read(data)[..., 0] - expected).max() < 1e-3


def test_pages_that_are_marked_as_smaller_and_are_not_are_told():
    data = pages({"data": FULL}, {"data": FULL, "subfiletype": 1}, {"data": FULL, "subfiletype": 1})
    assert "3 pages or frames" in refused(data)
    assert "2 pages or frames" in refused(pages({"data": FULL}, {"data": FULL[::4, ::4]}))


def test_a_single_page_that_is_marked_as_smaller_is_the_image():
    assert np.array_equal(read(pages({"data": FULL, "subfiletype": 1}))[..., 0], FULL)


# No value


NODATA = 42113  # the tag


def with_nodata(values: np.ndarray, said: str, **settings: Any) -> bytes:
    return tiff(values, extratags=[(NODATA, "s", 0, said, True)], **settings)


@pytest.mark.parametrize(
    "kind, nothing, said",
    [
        (np.int16, -9999, "-9999"),
        (np.int16, -9999, "-9999.0 "),
        (np.uint16, 0, "0"),
        (np.uint16, 65535, "65535"),
        (np.float32, -3.4028234663852886e38, "-3.4028234663852886e+38"),
        (np.float32, np.nan, "nan"),
        (np.float64, -1e308, "-1e+308"),
        (np.int32, -2147483648, "-2147483648"),
    ],
)
def test_what_gdal_declares_as_no_value_is_black_and_counts_for_no_range(kind, nothing, said):
    values = (500 + random(40, 60, high=500, kind=np.int64)).astype(kind)
    expected = own(values[3:])
    values[:3] = nothing
    found = read(with_nodata(values, said))[..., 0]
    assert not found[:3].any() and np.abs(found[3:] - expected).max() < 1e-2


@pytest.mark.parametrize("said", ["-9999", "none", "", "1e400", "0x12"])
def test_a_declaration_that_holds_of_no_pixel_changes_nothing(said):
    values = 500 + random(40, 60, high=500, kind=np.uint16)
    assert np.abs(read(with_nodata(values, said))[..., 0] - own(values)).max() < 1e-2


def test_no_value_in_8_bits_and_in_bands():
    values = random(40, 60, 3)
    values[:3] = 255
    found = read(with_nodata(values, "255", photometric="rgb"))
    expected = np.where(values == 255, 0, values)
    assert np.array_equal(found, expected)
    bands = 1 + random(40, 60, 5, high=3000, kind=np.uint16)
    bands[:3, :, 1] = 0
    expected = each(np.where(bands == 0, np.nan, bands.astype(float)))
    found = read(with_nodata(bands, "0", planarconfig="contig"))
    assert np.abs(found - np.nan_to_num(expected)).max() < 1e-2


def test_nan_in_bands_is_black_and_counts_for_no_range():
    values = np.random.default_rng(0).uniform(5, 6, (40, 60, 4)).astype(np.float32)
    values[0, :, 2] = np.nan
    assert (
        np.abs(read(tiff(values, planarconfig="contig")) - np.nan_to_num(each(values))).max() < 1e-2
    )


@pytest.mark.parametrize("full", [FULL, DEEP], ids=["8 bits", "16 bits"])
def test_a_mask_beside_the_image_says_where_it_has_a_value(full):
    """As GDAL writes it inside a file."""
    mask = np.ones(full.shape, bool)
    mask[:5] = False
    data = pages({"data": full}, {"data": mask, "subfiletype": 4})
    found = read(data)[..., 0]
    expected = full if full.dtype == np.uint8 else own(full[5:])
    assert not found[:5].any()
    assert np.abs(found[5:] - expected[-35:]).max() < 1e-2


def literal_lzw(values: np.ndarray) -> bytes:
    """Compressed by LZW without any string: tifffile has no encoder without imagecodecs."""
    data, clear, end = values.tobytes(), 256, 257
    codes = [c for at in range(0, len(data), 200) for c in (clear, *data[at : at + 200])] + [end]
    bits = "".join(f"{code:09b}" for code in codes)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def lzw(values: np.ndarray, *others: dict[str, Any], **settings: Any) -> bytes:
    """A TIFF whose first page is. Written as one by zlib, and its tag changed."""
    about = {"shape": values.shape, "dtype": values.dtype, "compression": "zlib"}
    data = pages({"data": iter([literal_lzw(values)]), **about, **settings}, *others)
    return data.replace(*(struct.pack("<HHIH", 259, 3, 1, code) for code in (8, 5)))


PILLOWS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32"]


@pytest.mark.parametrize(
    "kind, photometric",
    [
        *((kind, "minisblack") for kind in PILLOWS),
        ("uint8", "miniswhite"),
        ("uint16", "miniswhite"),
    ],
)
def test_no_value_is_none_whoever_decompresses(kind, photometric):
    """Pillow, where the package imagecodecs is not there, which is not required."""
    values = random(40, 60, high=100).astype(kind)
    limits = np.finfo(kind) if kind == "float32" else np.iinfo(kind)
    expected = values[7:] if kind == "uint8" else own(values[7:])
    expected = 255 - expected if photometric == "miniswhite" else expected
    values[:7] = nothing = limits.max if kind.startswith("u") else limits.min
    tags = {"photometric": photometric, "extratags": [(NODATA, "s", 0, str(nothing), True)]}
    found = read(lzw(values, **tags))[..., 0]
    assert not found[:7].any() and np.abs(found[7:] - expected).max() < 1e-2
    assert np.array_equal(found, read(tiff(values, **tags, compression="zlib"))[..., 0])


def test_no_value_in_colours_whoever_decompresses():
    values = random(40, 60, 3)
    values[:3] = 255
    tags = {"photometric": "rgb", "extratags": [(NODATA, "s", 0, "255", True)]}
    assert np.array_equal(read(lzw(values, **tags)), np.where(values == 255, 0, values))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_turned_with_its_image_whoever_decompresses(orientation):
    mask = np.ones(DEEP.shape, bool)
    mask[:5, :7] = False
    beside = {"data": mask, "subfiletype": 4}
    turn = {"extratags": [(274, "H", 1, orientation, True)]}
    expected = read(pages({"data": DEEP, **turn}, beside))
    assert np.array_equal(read(lzw(DEEP, beside, **turn)), expected)


def fingerprint(folder: Path, cache: Path, channels: int = 1, **settings: Any) -> str:
    reader = partial(Folder, path=str(folder), validation=0, test=0)
    data = DataSettings(reader, SHAPE, channels, False, **settings)
    return data.open_reader(cache).fingerprint


def name_then(folder: Path, cache: Path) -> str:
    """The fingerprint that runs on it got before pixels changed."""
    files = sorted(folder.iterdir())
    named = [[p.name, digest] for p, digest in zip(files, FileCache(cache).sha256(files))]
    return sha256_of(["folder", 2, 0, 0, None, True, None, named])


def test_a_run_is_another_where_no_value_was_a_value(tmp_path):
    """As Pillow decompressed it; not where no pixel has the value, nor where tifffile did."""
    (tmp_path / "x").mkdir()
    tags = {"extratags": [(NODATA, "s", 0, "0", True)]}
    values = 500 + random(*SHAPE, high=500, kind=np.uint16)
    holes = values.copy()
    holes[:3] = 0
    for data, other in [
        (lzw(holes, **tags), True),
        (lzw(values, **tags), False),
        (lzw(holes), False),
        (tiff(holes, **tags, compression="zlib"), False),
    ]:
        (tmp_path / "x/0.tif").write_bytes(data)
        found = fingerprint(tmp_path / "x", tmp_path / "cache")
        assert (found != name_then(tmp_path / "x", tmp_path / "cache")) == other


# Of whom reads what


def test_what_tifffile_cannot_open_pillow_reads(monkeypatch):
    rgb, gray = random(*SHAPE, 3), random(*SHAPE, high=4000, kind=np.uint16)
    files = [
        tiff(rgb, photometric="rgb"),
        tiff(gray),
        tiff(gray[..., None].repeat(3, 2), photometric="rgb"),
    ]
    monkeypatch.setattr(tifffile, "TiffFile", broken)
    assert np.array_equal(read(files[0]), rgb)
    assert np.abs(read(files[1])[..., 0] - own(gray)).max() < 1e-3
    assert "not of today" in refused(files[2])  # which Pillow would cut to 8 bits


def test_what_pillow_cannot_open_tifffile_reads(monkeypatch):
    rgb = random(*SHAPE, 3)
    data = tiff(rgb, photometric="rgb")
    monkeypatch.setattr(Image, "open", broken)
    assert np.array_equal(read(data), rgb)


def broken(*_, **__):
    raise ValueError("not of today")


@pytest.mark.parametrize("code, name", [(50000, "ZSTD"), (5, "LZW"), (34887, "LERC")])
def test_bands_that_need_another_package_name_it(code, name):
    data = bytearray(tiff(random(*SHAPE, 5), planarconfig="contig"))
    at = data.index(struct.pack("<HHIH", 259, 3, 1, 1))
    data[at + 8 : at + 10] = struct.pack("<H", code)
    message = refused(bytes(data))
    assert f"compressed by {name}" in message and "pip install imagecodecs" in message


def test_complex_numbers_are_told():
    values = (random(*SHAPE) + 1j).astype(np.complex64)
    assert "save their magnitude" in refused(tiff(values))


# In a folder


def opened(
    folder: Path,
    cache: Path,
    channels: int,
    size: Any = SHAPE,
    range_: Any = None,
    **settings: Any,
) -> np.ndarray:
    """Its images, as they go to training."""
    reader = partial(Folder, path=str(folder), validation=0, test=0, range_=range_)
    data = DataSettings(reader, size, channels, False, **settings)
    return open_dataset(data, data.open_reader(cache), 0, cache).images


@pytest.fixture
def thirteen(tmp_path) -> tuple[Path, np.ndarray]:
    """Six files of 13 bands, each band in a range of its own."""
    bands = 100 * np.arange(1, 14).astype(np.uint16)
    values = random(6, *SHAPE, 13, high=100, kind=np.uint16) + bands
    (tmp_path / "x").mkdir()
    for k in range(6):
        (tmp_path / f"x/{k}.tif").write_bytes(tiff(values[k], planarconfig="contig"))
    return tmp_path / "x", values


def test_each_band_has_a_range_that_is_measured_over_the_images(thirteen, tmp_path, caplog):
    folder, values = thirteen
    caplog.set_level("INFO")
    found = opened(folder, tmp_path / "cache", 13)
    limits = np.quantile(values.reshape(6, -1, 13), [0.001, 0.999], axis=1)  # [2, 6, 13]
    low, high = limits[0].min(0), limits[1].max(0)
    assert np.array_equal(found, np.round(linear(values, low, high)).astype(np.uint8))
    [line] = [r.getMessage() for r in caplog.records if "measured" in r.getMessage()]
    assert "each of the 13 bands" in line and "data.range=[LOW,HIGH]" in line
    assert f"{low[12]:g} .. {high[12]:g}" in line


def test_some_bands_are_taken_in_an_order_counted_from_1(thirteen, tmp_path):
    folder, _ = thirteen
    whole = opened(folder, tmp_path / "cache", 13)
    assert np.array_equal(
        opened(folder, tmp_path / "cache", 3, bands=[4, 3, 2]), whole[..., [3, 2, 1]]
    )
    one = opened(folder, tmp_path / "cache", 1, bands=[8])
    assert np.array_equal(one, whole[..., 7:8])
    assert np.array_equal(
        opened(folder, tmp_path / "cache", 3, bands=[8]), np.repeat(whole[..., 7:8], 3, -1)
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_bands_and_other_channels_are_refused_with_both_cures(thirteen, tmp_path, channels):
    with pytest.raises(UserError) as raised:
        opened(thirteen[0], tmp_path / "cache", channels)
    message = str(raised.value)
    assert f"0.tif: 13 channels, and data.channels={channels}" in message
    assert (
        message.count("data.channels=13")
        == message.count("data.bands=[1,2,3] data.channels=3")
        == 1
    )
    assert "counted from 1" in message


def test_a_file_that_lies_far_is_named_once_for_all_of_its_bands(thirteen, tmp_path, caplog):
    folder, values = thirteen
    (folder / "5.tif").write_bytes(tiff(values[5] * 40, planarconfig="contig"))
    found = opened(folder, tmp_path / "cache", 13)
    limits = np.quantile(values[:5].reshape(5, -1, 13), [0.001, 0.999], axis=1)
    low, high = limits[0].min(0), limits[1].max(0)
    assert np.array_equal(found[:5], np.round(linear(values[:5], low, high)).astype(np.uint8))
    [line] = [r.getMessage() for r in caplog.records if "lie far" in r.getMessage()]
    assert "1 of 6 files" in line and "5.tif" in line and "data.range=[LOW,HIGH]" in line


def test_files_with_and_without_a_declaration_of_no_value_are_of_one_type(tmp_path):
    """The declared value becomes NaN, which only floats have."""
    (tmp_path / "x").mkdir()
    values = 500 + random(6, 40, 60, high=500, kind=np.uint16)
    values[0, :3] = 0
    for k in range(6):
        data = with_nodata(values[k], "0") if k == 0 else tiff(values[k])
        (tmp_path / f"x/{k}.tif").write_bytes(data)
    found = opened(tmp_path / "x", tmp_path / "cache", 1, (40, 60))
    limits = [np.quantile(each[each > 0], [0.001, 0.999]) for each in values]
    low, high = min(a for a, _ in limits), max(b for _, b in limits)
    assert np.abs(found[..., 0] - np.where(values, linear(values, low, high), 0)).max() <= 0.51


def test_a_band_that_is_not_there_is_named(thirteen, tmp_path):
    with pytest.raises(UserError, match=r"13 channels, and data.bands=\[14, 1, 2\] has others"):
        opened(thirteen[0], tmp_path / "cache", 3, bands=[14, 1, 2])


# A band that is marked as opacity


def store_marked(folder: Path, values: np.ndarray, extrasample: str = "unassalpha") -> None:
    """[N, H, W, 2 or 4]; what tifffile marks so unless it is told otherwise."""
    folder.mkdir(exist_ok=True)
    colour = "rgb" if values.shape[-1] == 4 else "minisblack"
    for k, each in enumerate(values):
        data = tiff(each, photometric=colour, extrasamples=[extrasample], planarconfig="contig")
        (folder / f"{k:02d}.tif").write_bytes(data)


def told_of_opacity(caplog) -> list[str]:
    return [text for text in caplog.messages if "opacity" in text]


@pytest.mark.parametrize("extrasample", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_a_band_that_is_marked_as_opacity_is_told_and_taken_as_one(
    tmp_path, caplog, kind, extrasample
):
    high = 256 if kind == np.uint8 else 3000
    values = 200 * (kind != np.uint8) + random(6, 40, 60, 4, high=high, kind=kind)
    store_marked(tmp_path / "x", values, extrasample)
    settings = {"folder": tmp_path / "x", "cache": tmp_path / "cache", "size": (40, 60)}
    limits = np.quantile(values.reshape(6, -1, 4), [0.001, 0.999], axis=1)
    low, high = limits[0].min(0), limits[1].max(0)
    expected = values if kind == np.uint8 else np.round(linear(values, low, high))
    assert np.array_equal(opened(channels=4, **settings), expected)
    assert np.array_equal(opened(channels=3, bands=[4, 1, 2], **settings), expected[..., [3, 0, 1]])
    assert not told_of_opacity(caplog)
    opened(channels=3, **settings)
    [line] = told_of_opacity(caplog)
    assert "6 of 6 files" in line and "00.tif" in line
    assert "data.channels=4 takes it as a band" in line
    assert "data.bands=[1,2,3] data.channels=3" in line


@pytest.mark.parametrize(
    "kind, extrasample, other",
    [(np.uint8, "unassalpha", False), (np.uint8, "assocalpha", True)]
    + [(np.uint16, name, True) for name in ("unassalpha", "assocalpha")],
)
def test_a_run_is_another_where_its_band_was_taken_as_opacity(tmp_path, kind, extrasample, other):
    """And so changed: not on white, nor of 8 bits that nothing was multiplied with."""
    store_marked(tmp_path / "x", random(6, *SHAPE, 4, high=256, kind=kind), extrasample)
    folder, cache = tmp_path / "x", tmp_path / "cache"
    then = name_then(folder, cache)
    assert fingerprint(folder, cache, 3) == then
    assert (fingerprint(folder, cache, 4) != then) == other
    assert (fingerprint(folder, cache, 3, bands=[1, 2, 3]) != then) == other


def test_a_second_band_that_is_marked_as_opacity_is_told(tmp_path, caplog):
    store_marked(tmp_path / "x", random(6, 40, 60, 2, high=3000, kind=np.uint16))
    opened(tmp_path / "x", tmp_path / "cache", 1, (40, 60))
    [line] = told_of_opacity(caplog)
    assert "data.channels=2 takes it" in line and "data.bands=[1] data.channels=1" in line


def soft(k: int) -> np.ndarray:
    """Opacity of a shape whose edge is soft, 0..1."""
    y, x = np.mgrid[-1:1:40j, -1:1:60j]
    return np.clip((0.6 + 0.02 * k - np.hypot(x, y)) * 6, 0, 1)


def glow(k: int) -> np.ndarray:
    """Nowhere fully opaque or transparent."""
    y, x = np.mgrid[-1:1:40j, -1:1:60j]
    return 0.01 + 0.95 * np.exp(-(5 + 0.2 * k) * (x**2 + y**2))


OPACITIES = {
    "a glow": glow,
    "soft edges": soft,
    "a watermark": lambda k: np.where(soft(k) > 0, 0.5, 0.2),
    "opaque": lambda k: np.ones((40, 60)),
    "half of it": lambda k: np.tile(np.arange(60) < 20 + k, (40, 1)),
}


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", OPACITIES)
def test_what_is_opacity_is_not_told(tmp_path, caplog, kind, bits):
    white = 2**bits - 1
    values = random(6, 40, 60, 4, high=white + 1, kind=f"u{bits // 8}")
    alpha = np.stack([OPACITIES[kind](k) for k in range(6)])
    values[..., 3] = (alpha * white).round()
    store_marked(tmp_path / "x", values)
    found = opened(tmp_path / "x", tmp_path / "cache", 3, (40, 60), range_=[0, white])
    seen = values[..., 3:] / white
    expected = values[..., :3] / white * 255 * seen + 255 * (1 - seen)
    assert np.abs(found - expected).max() <= 1.5
    assert not told_of_opacity(caplog)


def test_a_few_that_vary_among_those_of_opacity_are_opacity(tmp_path, caplog):
    values = random(9, 40, 60, 4, high=65536, kind=np.uint16)
    for k in range(6):
        values[k, ..., 3] = (soft(k) * 65535).round()
    store_marked(tmp_path / "x", values)
    found = opened(tmp_path / "x", tmp_path / "cache", 4, (40, 60))
    assert np.abs(found[..., 3] - values[..., 3] / 257).max() <= 0.51
    assert not told_of_opacity(caplog)
