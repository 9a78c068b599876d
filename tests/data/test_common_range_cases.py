"""One range for all images of a folder: what decides it, what is named, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.file_cache import FileCache
from data.sources.folder import Folder
from runtime.content import sha256_of
from runtime.errors import UserError

SHAPE = (40, 50)


def noise(seed: int, low: int, high: int, kind=np.uint16) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, SHAPE).astype(kind)


@pytest.fixture
def opened(tmp_path):
    def opened(images: dict[str, np.ndarray], **settings) -> Folder:
        for name, values in images.items():
            path = tmp_path / "x" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".tif":
                tifffile.imwrite(path, values, photometric="minisblack")
            else:
                Image.fromarray(values).save(path)
        shares = {"validation": 0, "test": 0}
        return Folder(FileCache(tmp_path / "memory"), str(tmp_path / "x"), **(shares | settings))

    return opened


def shown(source: Folder, name: str) -> np.ndarray:
    item = [path.name for path in source.files].index(name)
    return np.asarray(source.read_image(item), dtype=float)


def stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255


def hull(images: list[np.ndarray]) -> tuple[float, float]:
    return (
        min(np.quantile(v, 0.001) for v in images),
        max(np.quantile(v, 0.999) for v in images),
    )


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_one_file_of_16_bits_among_those_of_12(opened, caplog, n, suffix):
    images = {f"{k}.{suffix}": noise(k, 0, 4096) for k in range(n)}
    source = opened({**images, f"odd.{suffix}": noise(9, 0, 65536)})
    low_high = hull(list(images.values()))
    for name, values in images.items():
        np.testing.assert_allclose(shown(source, name), stretched(values, *low_high), atol=1e-3)
    [line] = [record.message for record in caplog.records]
    assert f"1 of {n + 1} files lie far" in line and f"odd.{suffix} (" in line
    assert "data.range=[LOW,HIGH]" in line and "data.range=image" in line


def test_one_dim_file_is_named_and_does_not_widen_the_range(opened, caplog):
    images = {f"{k}.png": noise(k, 30000, 31000) for k in range(6)}
    source = opened({**images, "odd.png": noise(9, 0, 255)})
    found = shown(source, "3.png")
    np.testing.assert_allclose(
        found, stretched(images["3.png"], *hull(list(images.values()))), atol=1e-3
    )
    assert "odd.png (0 .. 254)" in caplog.text


def test_files_that_differ_as_scans_do_are_all_within(opened, caplog):
    images = {f"{k}.png": noise(k, 10 * k, 1000 + 150 * k) for k in range(8)}
    source = opened(images)
    low_high = hull(list(images.values()))
    np.testing.assert_allclose(
        shown(source, "0.png"), stretched(images["0.png"], *low_high), atol=1e-3
    )
    assert not caplog.records


def test_images_of_one_value_or_of_no_number_widen_no_range(opened):
    images = {f"{k}.tif": np.float32(noise(k, 100, 200)) for k in range(4)}
    source = opened(
        {
            **images,
            "flat.tif": np.full(SHAPE, 300, np.float32),
            "nan.tif": np.full(SHAPE, np.nan, np.float32),
        }
    )
    np.testing.assert_allclose(
        shown(source, "1.tif"),
        stretched(images["1.tif"], *hull(list(images.values()))),
        atol=1e-3,
    )


def test_a_file_that_is_far_is_named_in_whatever_split_it_is(opened, caplog):
    images = {f"train/{k}.png": noise(k, 0, 4096) for k in range(6)}
    opened({**images, "val/odd.png": noise(9, 0, 65536)}, validation=0.1)
    assert "val/odd.png" in caplog.text


def test_two_depths_of_about_as_many_files_are_told(opened, caplog):
    images = {f"{k}.png": noise(k, 0, 4096) for k in range(3)}
    opened({**images, **{f"b{k}.png": noise(k, 0, 65536) for k in range(3)}})
    [line] = [record.message for record in caplog.records]
    assert "3 of 6 files fill less than an eighth of the range" in line and "0.png" in line


def test_few_files_in_another_unit_are_told(opened, caplog):
    images = {f"{k}.tif": noise(k, 0, 256, np.float32) for k in range(9)}
    opened({**images, "odd.tif": noise(9, 0, 256) / np.float32(255)})
    [line] = [record.message for record in caplog.records]
    assert "1 of 10 files fill less than an eighth of the range" in line and "odd.tif (0" in line


@pytest.mark.parametrize("n", [1, 3])
def test_integers_and_floats_have_no_range_in_common(opened, n):
    images = {f"{k}.tif": noise(k, 0, 65536) for k in range(3)}
    floats = {f"f{k}.tif": np.float32(noise(k, 0, 65536) / 65535) for k in range(n)}
    with pytest.raises(
        UserError,
        match=rf"3 files hold integers, such as .*0.tif \(uint16\), and {n} floats, such as "
        r".*f0.tif \(float32\).*data.range=image",
    ):
        opened(images | floats)
    source = opened({}, range_="image")
    assert shown(source, "f0.tif").std() > 60 and shown(source, "0.tif").std() > 60


def test_few_deep_images_among_those_of_8_bits_are_named(opened, caplog):
    images = {f"{k}.png": noise(k, 0, 256, np.uint8) for k in range(9)}
    deep = {"deep.png": noise(9, 1000, 3000)}
    source = opened(images | deep)
    np.testing.assert_allclose(
        shown(source, "deep.png"),
        stretched(deep["deep.png"], *hull(list(deep.values()))),
        atol=1e-3,
    )
    assert np.array_equal(shown(source, "2.png"), images["2.png"])
    [line] = [record.message for record in caplog.records]
    assert "1 images of more than 8 bits, such as" in line and "deep.png" in line
    assert "the 9 of 8 bits" in line


def test_images_of_8_bits_alone_are_not_decoded_to_be_measured(opened, monkeypatch, caplog):
    monkeypatch.setattr("data.image_file._read", None)
    images = {f"{k}.png": noise(k, 0, 256, np.uint8) for k in range(3)}
    opened(images | {"x.jpg": noise(9, 0, 256, np.uint8), "x.bmp": noise(8, 0, 256, np.uint8)})
    assert not caplog.records


def test_the_fingerprint_is_as_it_was_where_no_file_is_far(opened, tmp_path):
    def then(source: Folder) -> str:
        digests = FileCache(tmp_path / "other").sha256(source.files)
        root: Path = source.root
        names = [path.relative_to(root).as_posix() for path in source.files]
        return sha256_of(
            ["folder", 2, 0, 0, None, True, None, [list(z) for z in zip(names, digests)]]
        )

    images = {f"{k}.png": noise(k, 0, 4096) for k in range(4)}
    source = opened(images)
    assert source.fingerprint == then(source)
    source = opened({**images, "odd.png": noise(9, 0, 65536)})
    assert source.fingerprint != then(source)
    again = opened({**images, "odd.png": noise(9, 0, 65536)})
    assert again.fingerprint == source.fingerprint


VOID = [
    (np.float32, -9999),
    (np.float32, float(np.finfo(np.float32).min)),
    (np.float32, 1e20),
    (np.int16, -32768),
    (np.int16, -9999),
    (np.int32, -(2**31)),
    (np.uint16, 65535),
]


@pytest.mark.parametrize("files", [20, 7], ids=["all", "some"])
@pytest.mark.parametrize("kind, void", VOID)
def test_a_value_that_seems_to_be_none_is_named_with_the_range_of_the_others(
    opened, caplog, kind, void, files
):
    images = {f"{k:02d}.tif": noise(k, 300, 1000, kind) for k in range(20)}
    for values in [*images.values()][:files]:
        values[:10] = void
    kept = [values[10:] if k < files else values for k, values in enumerate(images.values())]
    low, high = hull(kept)
    opened(images)
    [line] = [text for text in caplog.messages if "the value" in text]
    assert f"25.0% of the pixels in {files} of 20 files" in line and "00.tif" in line
    assert f"the value {void:g}, far from all others, {low:g} .. {high:g}" in line
    assert f"choose: data.range=[{low:g},{high:g}]." in line


def test_a_value_that_seems_to_be_none_in_bands(opened, tmp_path, caplog):
    (tmp_path / "x").mkdir()
    for k in range(6):
        values = np.stack(
            [noise(9 * k + band, 100 * band, 900, np.float32) for band in range(5)], -1
        )
        values[:10, :, 1:] = -9999
        tifffile.imwrite(
            tmp_path / f"x/{k}.tif", values, photometric="minisblack", planarconfig="contig"
        )
    opened({})
    [line] = caplog.messages
    assert "25.0% of the pixels in 6 of 6 files" in line and "the value -9999" in line
    assert "data.range=[0,899]" in line  # of all bands


def ct(k: int, circle: int | None = None) -> np.ndarray:
    """Air, a body and bone, in a circle that is scanned."""
    y, x = np.mgrid[-1 : 1 : SHAPE[0] * 1j, -1 : 1 : SHAPE[1] * 1j]
    values = np.where(x**2 + y**2 < 0.5, noise(k, -100, 200, np.int16), -1000)
    values[18:22, 20:24] = noise(k, 300, 1500, np.int16)[18:22, 20:24]
    return (values if circle is None else np.where(x**2 + y**2 < 1, values, circle)).astype(
        np.int16
    )


def radiograph(k: int) -> np.ndarray:
    """Of 12 bits, with black borders and burnt-in white."""
    values = np.sort(noise(k, 0, 3000), axis=1)
    values[:, :8], values[:, -3:], values[:2, :3] = 0, 0, 4095
    return values


def hot(k: int) -> np.ndarray:
    values = noise(k, 0, 900)
    values[k, k] = 65535
    return values


NO_VOID = {
    "air": ct,
    "air and a circle of -1024": lambda k: ct(k, -1024),
    "air and a circle of -2000": lambda k: ct(k, -2000),
    "black borders": radiograph,
    "white borders": lambda k: 4095 - radiograph(k),
    "masks": lambda k: np.where(noise(k, 0, 9) > 5, 65535, 0).astype(np.uint16),
    "labels": lambda k: np.where(noise(k, 0, 9) > 5, 26000 + noise(k, 0, 5), 0).astype(np.uint16),
    "shares of 1": lambda k: np.where(noise(k, 0, 9) > 7, 0, noise(k, 0, 999) / 999).astype("f4"),
    "saturated": lambda k: noise(k, 0, 90000, np.int64).clip(0, 65535).astype(np.uint16),
    "constant": lambda k: np.full(SHAPE, 400 + k, np.uint16),
    "a hot pixel": hot,
}


@pytest.mark.parametrize("kind", NO_VOID)
def test_values_that_are_values_raise_no_alarm(opened, caplog, kind):
    opened({f"{k:02d}.tif": NO_VOID[kind](k) for k in range(20)})
    assert not [text for text in caplog.messages if "the value" in text]


def test_one_file_of_many_that_has_such_a_value_is_named_as_far(opened, caplog):
    images = {f"{k:02d}.tif": noise(k, 300, 1000, np.float32) for k in range(20)}
    images["00.tif"][:10] = -9999
    opened(images)
    [line] = caplog.messages
    assert "1 of 20 files lie far" in line and "00.tif" in line
