"""Every kind of image file, made by its own library: the pixels must be those that were written, by
formula."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import png
import pytest
import tifffile
from PIL import Image

from data.dataset import open_dataset
from data.file_cache import FileCache
from data.image_formats import SUFFIXES
from data.resize import height_width, to_array
from data.settings import DataSettings
from data.sources.folder import Folder
from runtime.errors import UserError
from tests.helpers.caches import new_cache

MEMORY = new_cache()
SHAPE = H, W = 9, 14


def colours(seed: int = 0, shape=(*SHAPE, 3), high: int = 256, kind=np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape).astype(kind)


def pixels(folder: Path, channels: int = 3, **settings) -> np.ndarray:
    """The only image of a folder, as it goes to training. [H, W, channels]"""
    source = Folder(MEMORY, str(folder), **settings)
    image = source.read_image(0)
    return to_array(image, height_width(image), channels, False)


def gray_of(folder: Path, **settings) -> np.ndarray:
    return pixels(folder, 1, **settings)[..., 0]


def levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255


def measured(values: np.ndarray) -> np.ndarray:
    low, high = np.quantile(values.astype(np.float64), [0.001, 0.999])
    return levels(values, low, high)


# Orientation

PLACED = {  # where the upright pixel (y, x) of an image [H, W] is stored: TIFF 6.0, Orientation
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],
}


@pytest.mark.parametrize("orientation", PLACED)
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_photographs_are_upright(tmp_path, orientation, suffix):
    upright = np.kron(colours(shape=(3, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.ascontiguousarray(PLACED[orientation](upright)))
    stored.save(
        tmp_path / f"x.{suffix}",
        exif=exif,
        **({"quality": 95, "subsampling": 0} if suffix == "jpg" else {"lossless": True}),
    )
    found = pixels(tmp_path)
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).mean() < 3


@pytest.mark.parametrize("orientation", PLACED)
def test_16_bit_tiff_is_upright(tmp_path, orientation):
    upright = colours(high=60_000, shape=SHAPE, kind=np.uint16)
    tifffile.imwrite(
        tmp_path / "x.tif",
        PLACED[orientation](upright),
        photometric="minisblack",
        extratags=[(274, 3, 1, orientation, True)],
    )
    assert np.array_equal(
        gray_of(tmp_path, range_=[0, 60_000]), np.round(levels(upright, 0, 60_000))
    )


def test_16_bit_png_is_upright(tmp_path):
    upright = colours(high=60_000, shape=SHAPE, kind=np.uint16)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.ascontiguousarray(PLACED[6](upright))).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(
        gray_of(tmp_path, range_=[0, 60_000]), np.round(levels(upright, 0, 60_000))
    )


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_unreadable_exif_harms_no_pixels(tmp_path):
    image = colours()
    Image.fromarray(image).save(tmp_path / "x.png", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f broken")
    assert np.array_equal(pixels(tmp_path), image)


# Modes of 8 bits


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return colour * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_rgba_lies_on_white(tmp_path, suffix):
    image = colours(shape=(*SHAPE, 4))
    image[0, :4, 3] = [0, 255, 0, 255]
    Image.fromarray(image).save(tmp_path / f"x.{suffix}", lossless=True, exact=True)
    assert (
        np.abs(pixels(tmp_path) - on_white(image[..., :3].astype(float), image[..., 3])).max() <= 1
    )


def test_gray_with_alpha_lies_on_white(tmp_path):
    image = colours(shape=(*SHAPE, 2))
    Image.fromarray(image, "LA").save(tmp_path / "x.png")
    expected = on_white(image[..., :1].astype(float), image[..., 1])
    assert np.abs(gray_of(tmp_path) - expected[..., 0]).max() <= 1
    assert np.abs(pixels(tmp_path) - expected).max() <= 1


def palette_image(transparent: bytes | int | None, path: Path) -> tuple[np.ndarray, np.ndarray]:
    index, palette = colours(shape=SHAPE, high=16), colours(1, (256, 3))
    image = Image.fromarray(index, "P")
    image.putpalette(palette.tobytes())
    image.save(path, **({} if transparent is None else {"transparency": transparent}))
    return index, palette[index]


@pytest.mark.parametrize("suffix", ["png", "gif", "bmp", "tif"])
def test_palettes(tmp_path, suffix):
    _, expected = palette_image(None, tmp_path / f"x.{suffix}")
    assert np.array_equal(pixels(tmp_path), expected)
    assert np.abs(gray_of(tmp_path) - expected @ [0.299, 0.587, 0.114]).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_transparent_colour_of_a_palette_is_white(tmp_path, suffix):
    index, expected = palette_image(3, tmp_path / f"x.{suffix}")
    expected[index == 3] = 255
    assert np.array_equal(pixels(tmp_path), expected)


def test_a_palette_with_degrees_of_transparency_lies_on_white(tmp_path):
    alpha = bytes(range(0, 256, 16))
    index, expected = palette_image(alpha, tmp_path / "x.png")
    assert (
        np.abs(
            pixels(tmp_path)
            - on_white(expected.astype(float), np.frombuffer(alpha, np.uint8)[index])
        ).max()
        <= 1
    )


def test_a_transparent_colour_of_rgb_is_white(tmp_path):
    image = colours()
    image[2, 3] = 10, 20, 30
    Image.fromarray(image).save(tmp_path / "x.png", transparency=(10, 20, 30))
    expected = image.copy()
    expected[2, 3] = 255
    assert np.array_equal(pixels(tmp_path), expected)


def test_cmyk(tmp_path):
    cmyk = np.kron(colours(shape=(2, 3, 4)), np.ones((16, 16, 1))).astype(np.uint8)
    ink = 1 - cmyk / 255
    expected = 255 * ink[..., :3] * ink[..., 3:]
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "x.tif")
    assert np.abs(pixels(tmp_path) - expected).max() <= 1
    (tmp_path / "x.tif").unlink()
    # stored inverted, as Adobe does
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "x.jpg", quality=100, subsampling=0)
    assert np.abs(pixels(tmp_path) - expected).mean() < 2


def test_ycbcr(tmp_path):
    image = np.kron(colours(shape=(2, 3, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    ycc = Image.fromarray(image).convert("YCbCr")
    ycc.save(tmp_path / "x.tif")
    y, cb, cr = (np.asarray(ycc)[..., k].astype(float) for k in range(3))
    expected = np.stack(
        [
            y + 1.402 * (cr - 128),
            y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128),
            y + 1.772 * (cb - 128),
        ],
        -1,
    )
    assert np.abs(pixels(tmp_path) - expected.clip(0, 255)).max() <= 2
    assert np.abs(gray_of(tmp_path) - y).max() <= 3


def test_lab(tmp_path):
    """TIFF keeps L* in 0..255 and a*, b* as signed bytes."""
    lab = np.zeros((2, 4, 3), np.uint8)
    lab[0, :, 0] = [0, 100, 200, 255]  # neutral
    lab[1] = [138, 81, 70]  # sRGB red under D50: L* 54.3, a* 80.8, b* 69.9
    tifffile.imwrite(tmp_path / "x.tif", lab, photometric="cielab")
    lightness = lab[0, :, 0] / 2.55
    y = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    neutral = 255 * np.where(y > 0.0031308, 1.055 * y ** (1 / 2.4) - 0.055, 12.92 * y)
    found = pixels(tmp_path).astype(int)
    assert (
        np.abs(found[0] - neutral[:, None]).max() <= 3 and np.abs(found[1] - [255, 0, 0]).max() <= 6
    )
    assert np.abs(gray_of(tmp_path)[0] - neutral).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "pbm"])
def test_1_bit(tmp_path, suffix):
    bits = colours(shape=SHAPE, high=2).astype(bool)
    Image.fromarray(bits).save(tmp_path / f"x.{suffix}")
    assert np.array_equal(gray_of(tmp_path), bits * 255)
    assert np.array_equal(pixels(tmp_path), np.repeat(bits[..., None] * 255, 3, 2))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_png_of_few_bits(tmp_path, depth):
    values = colours(shape=SHAPE, high=2**depth)
    with open(tmp_path / "x.png", "wb") as file:
        png.Writer(W, H, greyscale=True, bitdepth=depth).write(file, values.tolist())
    assert np.array_equal(gray_of(tmp_path), values * (255 // (2**depth - 1)))


@pytest.mark.parametrize("kind", ["gray", "rgb"])
def test_files_of_8_bits_are_never_stretched(tmp_path, kind):
    dark = 40 + colours(high=20, shape=SHAPE if kind == "gray" else (*SHAPE, 3))
    for name in ("x.png", "x.tif", "x.ppm"):
        Image.fromarray(dark).save(tmp_path / name)
        for range_ in (None, "image", [0, 60]):
            assert np.array_equal(
                np.squeeze(pixels(tmp_path, 1 if kind == "gray" else 3, range_=range_)), dark
            )
        (tmp_path / name).unlink()


# More than 8 bits


def write_png(path: Path, values: np.ndarray, **settings) -> None:
    planes = values.shape[2] if values.ndim == 3 else 1
    with open(path, "wb") as file:
        png.Writer(
            values.shape[1],
            values.shape[0],
            greyscale=planes < 3,
            alpha=planes in (2, 4),
            bitdepth=16,
            **settings,
        ).write(file, values.reshape(len(values), -1).tolist())


def write_pgm(path: Path, values: np.ndarray, white: int) -> None:
    magic = "P5" if values.ndim == 2 else "P6"
    path.write_bytes(
        f"{magic}\n# by a scanner\n{values.shape[1]} {values.shape[0]}\n{white}\n".encode()
        + values.astype(">u2").tobytes()
    )


def write_ascii_pgm(path: Path, values: np.ndarray, white: int) -> None:
    path.write_text(
        f"P2 {values.shape[1]} {values.shape[0]} {white}\n"
        + "\n".join(" ".join(map(str, row)) for row in values)
        + "\n"
    )


GRAY_16 = {
    "pillow.png": lambda path, v: Image.fromarray(v).save(path),
    "pypng.png": write_png,
    "interlaced.png": lambda path, v: write_png(path, v, interlace=True),
    "pillow.tif": lambda path, v: Image.fromarray(v).save(path),
    "lzw.tif": lambda path, v: Image.fromarray(v).save(path, compression="tiff_lzw"),
    "plain.tif": lambda path, v: tifffile.imwrite(path, v, photometric="minisblack"),
    "big.tif": lambda path, v: tifffile.imwrite(
        path, v, photometric="minisblack", bigtiff=True, byteorder=">"
    ),
    "deflate.tiff": lambda path, v: tifffile.imwrite(
        path, v, photometric="minisblack", compression="zlib"
    ),
    "tiles.tif": lambda path, v: tifffile.imwrite(path, v, photometric="minisblack", tile=(16, 16)),
    "signed.tif": lambda path, v: tifffile.imwrite(
        path, v.astype(np.int32) - 30_000, photometric="minisblack"
    ),
    "uint32.tif": lambda path, v: tifffile.imwrite(
        path, v.astype(np.uint32) * 50_000, photometric="minisblack"
    ),
    "float32.tif": lambda path, v: tifffile.imwrite(
        path, v.astype(np.float32) / 1e6, photometric="minisblack"
    ),
    "float64.tif": lambda path, v: tifffile.imwrite(
        path, v.astype(np.float64) / 1e6, photometric="minisblack"
    ),
    "x.pgm": lambda path, v: write_pgm(path, v, 65535),
    "ascii.pgm": lambda path, v: write_ascii_pgm(path, v, 65535),
}


@pytest.mark.parametrize("name", GRAY_16)
def test_gray_of_more_than_8_bits_by_the_range_that_was_measured(tmp_path, name):
    """12 bits in 16, or floats far below 1: all of it from black to white."""
    values = colours(shape=(40, 50), high=4096, kind=np.uint16)
    GRAY_16[name](tmp_path / name, values)
    found = gray_of(tmp_path)
    assert np.abs(found - measured(values)).max() <= 0.51
    assert found.min() == 0 and found.max() == 255 and len(np.unique(found)) == 256


@pytest.mark.parametrize("name", ["pillow.png", "pypng.png", "plain.tif", "lzw.tif", "x.pgm"])
def test_a_given_range(tmp_path, name):
    values = colours(shape=(40, 50), high=4096, kind=np.uint16)
    GRAY_16[name](tmp_path / name, values)
    assert np.array_equal(
        gray_of(tmp_path, range_=[1000, 3000]), np.round(levels(values, 1000, 3000))
    )


@pytest.mark.parametrize("white", [1023, 4095])
def test_a_pgm_keeps_its_numbers_whatever_its_white_is(tmp_path, white):
    values = colours(shape=(40, 50), high=white + 1, kind=np.uint16)
    write_pgm(tmp_path / "x.pgm", values, white)
    assert np.array_equal(gray_of(tmp_path, range_=[0, white]), np.round(levels(values, 0, white)))


@pytest.mark.parametrize(
    "name, writer",
    [
        ("x.png", write_png),
        ("x.tif", lambda path, v: tifffile.imwrite(path, v, photometric="rgb")),
        (
            "planes.tif",
            lambda path, v: tifffile.imwrite(
                path, v.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"
            ),
        ),
        ("x.ppm", lambda path, v: write_pgm(path, v, 65535)),
    ],
)
def test_colour_of_16_bits_is_not_cut_to_8(tmp_path, name, writer):
    values = colours(shape=(40, 50, 3), high=4096, kind=np.uint16)
    writer(tmp_path / name, values)
    assert np.array_equal(pixels(tmp_path, range_=[0, 4095]), np.round(levels(values, 0, 4095)))
    assert np.abs(pixels(tmp_path) - measured(values)).max() <= 0.51


@pytest.mark.parametrize(
    "name, writer",
    [
        ("x.png", write_png),
        (
            "x.tif",
            lambda path, v: tifffile.imwrite(
                path, v, photometric="rgb", extrasamples=["unassalpha"]
            ),
        ),
    ],
)
def test_colour_of_16_bits_with_alpha_lies_on_white(tmp_path, name, writer):
    values = colours(shape=(*SHAPE, 4), high=65536, kind=np.uint16)
    writer(tmp_path / name, values)
    alpha = values[..., 3:] / 65535
    expected = levels(values[..., :3], 0, 65535) * alpha + 255 * (1 - alpha)
    assert np.abs(pixels(tmp_path, range_=[0, 65535]) - expected).max() <= 1.01


def test_gray_of_16_bits_with_alpha_lies_on_white(tmp_path):
    values = colours(shape=(*SHAPE, 2), high=65536, kind=np.uint16)
    write_png(tmp_path / "x.png", values)
    alpha = values[..., 1] / 65535
    assert (
        np.abs(
            gray_of(tmp_path, range_=[0, 65535])
            - (levels(values[..., 0], 0, 65535) * alpha + 255 * (1 - alpha))
        ).max()
        <= 0.51
    )


def test_a_transparent_value_of_16_bits_is_white_and_does_not_count_for_the_range(tmp_path):
    values = colours(shape=(40, 50), high=4096, kind=np.uint16)
    values[:3] = 65535
    write_png(tmp_path / "x.png", values, transparent=65535)
    expected = measured(values[3:])
    assert (gray_of(tmp_path)[:3] == 255).all() and np.abs(
        gray_of(tmp_path)[3:] - expected
    ).max() <= 0.51


def test_a_tiff_whose_small_values_are_bright(tmp_path):
    values = colours(shape=(40, 50), high=4096, kind=np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="miniswhite")
    assert np.array_equal(
        gray_of(tmp_path, range_=[0, 4095]), np.round(255 - levels(values, 0, 4095))
    )


def test_values_that_are_no_numbers_are_black_and_do_not_count(tmp_path):
    values = np.random.default_rng(0).uniform(5, 6, (40, 50)).astype(np.float32)
    expected = measured(values[1:])
    values[0] = np.nan
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="minisblack")
    assert not gray_of(tmp_path)[0].any() and np.abs(gray_of(tmp_path)[1:] - expected).max() <= 0.51


def test_one_range_for_all_is_measured_over_the_images_to_train_on(tmp_path, caplog):
    """One image is brighter than the other; an outlier in a third and all of those of the test
    split do not count."""
    caplog.set_level("INFO")
    for split in ("train", "val", "test"):
        (tmp_path / split).mkdir()
    dim, bright = colours(1, (40, 50), 1000, np.uint16), 500 + colours(2, (40, 50), 2000, np.uint16)
    hot = dim.copy()
    hot[3, 4] = 65535
    for name, values in {
        "train/dim": dim,
        "train/bright": bright,
        "train/hot": hot,
        "val/x": bright + 9000,
        "test/x": bright,
    }.items():
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    source = Folder(MEMORY, str(tmp_path))
    low = min(np.quantile(v, 0.001) for v in (dim, bright, hot))
    high = max(np.quantile(v, 0.999) for v in (dim, bright, hot))
    assert high < 2600
    for item, values in zip(source.splits["train"], (bright, dim, hot), strict=True):
        np.testing.assert_allclose(
            np.asarray(source.read_image(item)), levels(values, low, high), atol=1e-3
        )
    [line] = [record.message for record in caplog.records if "black" in record.message]
    assert (
        f"{low:g}" in line
        and f"{high:g}" in line
        and "data.range=[LOW,HIGH]" in line
        and "3 of them" in line
    )
    own = Folder(MEMORY, str(tmp_path), range_="image")
    np.testing.assert_allclose(
        np.asarray(own.read_image(own.splits["train"][1])), measured(dim), atol=1e-3
    )
    assert (
        len(
            {
                Folder(MEMORY, str(tmp_path), range_=r).fingerprint
                for r in (None, "image", [0, 1], [0, 2])
            }
        )
        == 4
    )


def test_a_range_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr("data.file_cache.FRESH", -1e9)
    memory = FileCache(tmp_path / "memory")
    values = colours(shape=(40, 50), high=4096, kind=np.uint16)
    (tmp_path / "x").mkdir()
    Image.fromarray(values).save(tmp_path / "x/x.png")
    first = np.asarray(Folder(memory, str(tmp_path / "x")).read_image(0))
    monkeypatch.setattr("data.deep_image.value_range", None)  # not to be called again
    assert np.array_equal(np.asarray(Folder(memory, str(tmp_path / "x")).read_image(0)), first)


# What is refused


def several(path: Path, **settings) -> None:
    images = [Image.fromarray(colours(k)) for k in range(3)]
    images[0].save(path, save_all=True, append_images=images[1:], **settings)


@pytest.mark.parametrize("name", ["x.gif", "x.tif", "x.webp", "x.png"])
def test_animations_and_pages_are_refused(tmp_path, name):
    several(tmp_path / name)
    with pytest.raises(UserError, match="3 pages or frames"):
        Folder(MEMORY, str(tmp_path)).read_image(0)


def test_pages_of_16_bits_are_refused(tmp_path):
    tifffile.imwrite(
        tmp_path / "x.tif", colours(shape=(3, *SHAPE), kind=np.uint16), photometric="minisblack"
    )
    with pytest.raises(UserError, match="3 pages or frames"):
        Folder(MEMORY, str(tmp_path)).read_image(0)


def test_the_first_picture_of_a_camera_file_is_the_photograph(tmp_path):
    several(tmp_path / "x.mpo")
    (tmp_path / "x.mpo").rename(tmp_path / "x.jpg")
    assert np.abs(pixels(tmp_path).astype(int) - np.asarray(_jpeg(colours(0)))).max() <= 1


def _jpeg(image: np.ndarray) -> Image.Image:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG")
    return Image.open(buffer)


@pytest.mark.parametrize("code, name", [(5, "LZW"), (50000, "ZSTD")])
def test_a_tiff_that_needs_another_package_says_which(tmp_path, code, name):
    tifffile.imwrite(tmp_path / "x.tif", colours(high=65536, kind=np.uint16), photometric="rgb")
    raw = bytearray((tmp_path / "x.tif").read_bytes())
    at = raw.index(struct.pack("<HHIH", 259, 3, 1, 1))  # Compression: none becomes another
    raw[at + 8 : at + 10] = struct.pack("<H", code)
    (tmp_path / "x.tif").write_bytes(raw)
    with pytest.raises(UserError, match=f"compressed by {name}.*pip install imagecodecs"):
        Folder(MEMORY, str(tmp_path)).read_image(0)


@pytest.mark.parametrize("photometric, planes", [("cielab", 3), ("separated", 4)])
def test_deep_tiffs_of_other_colours_are_refused(tmp_path, photometric, planes):
    tifffile.imwrite(
        tmp_path / "x.tif", colours(shape=(*SHAPE, planes), kind=np.uint16), photometric=photometric
    )
    with pytest.raises(UserError, match=f"16 bits.*{photometric.upper()}"):
        Folder(MEMORY, str(tmp_path)).read_image(0)


BROKEN = {
    "empty.tif": b"",
    "head.tif": b"II*\0",
    "text.pgm": b"P5 not an image",
    "short.pgm": b"P5 4 4 65535\n\0\0",
    "no.png": b"\x89PNG\r\n\x1a\n",
    "short16.png": None,
}


def test_broken_deep_files_are_broken_and_not_errors(tmp_path):
    for name, data in BROKEN.items():
        if data is None:
            write_png(tmp_path / name, colours(high=65536, kind=np.uint16))
            data = (tmp_path / name).read_bytes()[:-200]
        (tmp_path / name).write_bytes(data)
    source = Folder(MEMORY, str(tmp_path))
    for item in range(len(source)):
        with pytest.raises(UserError, match="cannot be read|empty"):
            source.read_image(item)
    assert {p.suffix for p in source.files} <= SUFFIXES


def test_images_without_pixels_and_beyond_all_size_are_broken(tmp_path):
    (tmp_path / "none.pgm").write_bytes(b"P5 0 4 65535\n")
    with pytest.raises(UserError, match="no pixels: 4 high and 0 wide"):
        pixels(tmp_path)
    (tmp_path / "none.pgm").unlink()
    tifffile.imwrite(
        tmp_path / "x.tif", colours(shape=SHAPE, kind=np.uint16), photometric="minisblack"
    )
    raw = bytearray((tmp_path / "x.tif").read_bytes())
    for code in (256, 257):  # width, height
        at = max(raw.find(struct.pack("<HHI", code, kind, 1)) for kind in (3, 4))
        raw[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 50_000)
    (tmp_path / "x.tif").write_bytes(raw)
    with pytest.raises(UserError, match="50000 high and 50000 wide"):
        pixels(tmp_path)


def test_a_broken_file_does_not_hinder_the_measuring(tmp_path):
    values = colours(shape=(40, 50), high=4096, kind=np.uint16)
    for k in range(8):
        Image.fromarray(values).save(tmp_path / f"{k}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:300])
    settings = DataSettings(Folder, (40, 50), 1, False, skip_broken=True)
    data = open_dataset(settings, Folder(MEMORY, str(tmp_path)), 0, tmp_path / "cache")
    rows = np.concatenate(list(data.splits.values()))
    assert len(rows) == 8 and np.abs(data.images[rows][..., 0] - measured(values)).max() <= 0.51
