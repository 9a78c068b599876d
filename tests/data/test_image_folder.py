"""Images of a folder for evaluation: order, sheets, sizes, channels, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from data.image_folder import open_images
from runtime.errors import UserError


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_images_come_in_the_order_of_numbers_with_all_their_bits(tmp_path):
    pixels = {k: drawn(9, 7, 3, seed=k) for k in (2, 10, 1, 9)}
    for k, image in pixels.items():
        write(tmp_path / f"img{k}.png", image)
    assert np.array_equal(open_images(tmp_path), np.stack([pixels[k] for k in (1, 2, 9, 10)]))


def test_folders_inside_are_read_and_hidden_files_are_not(tmp_path):
    for k, name in enumerate(["b/0.png", "a/1.png", "c.jpg", ".hidden.png", ".cache/0.png"]):
        write(tmp_path / name, np.full((8, 8), 10 * k, np.uint8))
    (tmp_path / "sampling.json").write_text("{}")
    assert open_images(tmp_path)[:, 0, 0, 0].tolist() == [10, 0, 20]


def test_sheets_beside_numbered_images_are_left_out_and_elsewhere_they_are_images(tmp_path):
    for name in (
        "run/000000.png",
        "run/000001.png",
        "run/grid.png",
        "run/strip.png",
        "other/grid.png",
    ):
        write(tmp_path / name, np.zeros((8, 8), np.uint8))
    assert len(open_images(tmp_path / "run")) == 2
    assert len(open_images(tmp_path / "other")) == 1


def test_channels_are_those_of_the_files_or_those_asked_for(tmp_path):
    gray, colour = drawn(6, 6), drawn(6, 6, 3)
    write(tmp_path / "gray" / "0.png", gray)
    assert np.array_equal(open_images(tmp_path / "gray"), gray[None, ..., None])
    assert np.array_equal(
        open_images(tmp_path / "gray", channels=3), np.repeat(gray[None, ..., None], 3, -1)
    )
    write(tmp_path / "both" / "0.png", gray)
    write(tmp_path / "both" / "1.png", colour)
    both = open_images(tmp_path / "both")
    assert np.array_equal(both, np.stack([np.repeat(gray[..., None], 3, -1), colour]))
    luma = open_images(tmp_path / "both", channels=1)[1, ..., 0]
    assert np.abs(luma - colour @ [0.299, 0.587, 0.114]).max() < 1


def test_sixteen_bits_are_shown_over_their_own_range(tmp_path):
    ramp = np.linspace(1000, 3000, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "0.png")
    found = open_images(tmp_path)[0, ..., 0].astype(int)
    assert np.abs(found - (ramp - 1000.0) / 2000 * 255).max() < 2


def test_images_of_several_sizes_need_one(tmp_path):
    write(tmp_path / "0.png", drawn(8, 8))
    write(tmp_path / "1.png", drawn(12, 8))
    with pytest.raises(
        UserError, match=r"1\.png: 12 high and 8 wide, and .*0\.png is 8 high and 8 wide.*size="
    ):
        open_images(tmp_path)
    assert open_images(tmp_path, size=(6, 6)).shape == (2, 6, 6, 1)
    assert open_images(tmp_path, size=(10, 16)).shape == (2, 10, 16, 1)


@pytest.mark.parametrize(
    "where, message",
    [
        ("absent", "no such folder"),
        ("empty", "no images.*no files"),
        ("texts", r"no images.*1 other files: \.txt 1"),
        ("texts/a.txt", "is needed"),
    ],
)
def test_a_folder_without_images_is_refused(tmp_path, where, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("")
    with pytest.raises(UserError, match=message):
        open_images(tmp_path / where)


@pytest.mark.parametrize("broken", ["0.png", "1.png"])
def test_a_broken_image_is_named(tmp_path, broken):
    for k in range(3):
        write(tmp_path / f"{k}.png", drawn(8, 8))
    (tmp_path / broken).write_bytes((tmp_path / broken).read_bytes()[:60])
    with pytest.raises(UserError, match=rf"{broken}: cannot be read"):
        open_images(tmp_path)


def test_many_broken_images_are_counted_and_some_named(tmp_path):
    write(tmp_path / "0.png", drawn(8, 8))
    for k in range(1, 31):
        (tmp_path / f"{k}.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"30 of 31 images[\s\S]*20\.png[\s\S]*and 10 more"
    ) as error:
        open_images(tmp_path)
    assert "21.png" not in str(error.value)
