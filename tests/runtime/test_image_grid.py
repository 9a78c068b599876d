"""Pictures that one can read alone: what stands below each image."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from runtime.image_grid import TEXT, captioned_grid, grid


def written(text: str, width: int) -> np.ndarray:
    strip = Image.new("L", (width, TEXT), 255)
    ImageDraw.Draw(strip).text((1, 0), text, 0, ImageFont.load_default(size=TEXT - 3))
    return np.asarray(strip)


def test_several_lines_and_long_names_are_written_below_each_image():
    images = np.zeros((2, 48, 48, 1), np.uint8)
    sheet = captioned_grid(images, ["name\nreason", "x"])[..., 0]
    assert sheet.shape == (96 + 2 * TEXT + 2, 2 * 97 + 1)
    assert np.array_equal(sheet[97 : 97 + TEXT, 1:97], written("name", 96))
    assert np.array_equal(sheet[97 + TEXT : 97 + 2 * TEXT, 1:97], written("reason", 96))
    assert np.array_equal(sheet[97 : 97 + TEXT, 98:194], written("x", 96))
    long = captioned_grid(images[:1], ["patient_" + "0" * 40 + "_7.png"])[..., 0]
    strip = written("patient_" + "0" * 40, 96)
    assert np.array_equal(long[97 : 97 + TEXT, 1:40], strip[:, :39])  # the beginning
    end = long[97 : 97 + TEXT, 60:97]
    assert (end == 0).any() and not np.array_equal(end, strip[:, 59:])  # its end, and no zeros


def test_small_images_are_wide_enough_for_words():
    assert captioned_grid(np.zeros((1, 64, 64, 3), np.uint8), ["a"]).shape[1] == 130
    assert grid(np.zeros((1, 64, 64, 3), np.uint8)).shape[1] == 66  # and alone as they were


def test_letters_beyond_ascii_are_drawn_and_not_boxes():
    images = np.zeros((1, 96, 96, 1), np.uint8)
    drawn = {captioned_grid(images, [letter]).tobytes() for letter in "üéжλ"}
    assert len(drawn) == 4  # boxes would be alike
