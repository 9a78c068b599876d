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
