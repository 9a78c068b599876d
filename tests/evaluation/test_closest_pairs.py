"""The pairs that are most like copies."""

import json

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from evaluation.closest_pairs import GAP, SIDE, TEXT, sheet, write_closest
from evaluation.protocol import reference_images


def test_each_pair_names_the_training_file(tmp_path):
    """Its nearest by hand: the generated images are two of the training images, a little
    brighter. Rows are not numbers of the split."""
    images = np.random.default_rng(0).integers(0, 200, (6, 8, 8, 3), dtype=np.uint8)
    splits = {"train": np.array([5, 1, 3]), "test": np.array([0, 2, 4])}
    files = [f"scans/patient {k}/image_{k}.png" for k in range(6)]
    reference = reference_images(images, splits, [], files.__getitem__)
    generated = images[[3, 5]] + 2
    pixels, train = (
        torch.from_numpy(part.reshape(len(part), -1) / 255.0).float()
        for part in (generated, images[splits["train"]])
    )
    write_closest(tmp_path, generated, pixels, reference, train)
    pairs = json.loads((tmp_path / "closest.json").read_text())
    assert {pair["generated"]: pair["train_name"] for pair in pairs} == {0: files[3], 1: files[5]}
    width, height = Image.open(tmp_path / "closest.png").size
    assert width > 2 * 2 * 96 and height > 96 + 2 * 12  # a second line below each pair


def test_each_side_says_what_it_is():
    dark = np.zeros((8, 8, 1), np.uint8)
    picture = Image.fromarray(sheet([(dark, dark, "")])).convert("L")
    expected = Image.new("L", picture.size, 255)
    draw, font = ImageDraw.Draw(expected), ImageFont.load_default(size=TEXT - 4)
    for x, side in ((GAP, "generated"), (GAP + SIDE + 2, "training")):
        draw.text((x, GAP + SIDE + 1), side, 0, font)
    below = (0, GAP + SIDE, *picture.size)
    assert np.array_equal(picture.crop(below), expected.crop(below))
