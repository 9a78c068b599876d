"""Which images of a set are masks by their pixels."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from data.intensity import to_levels
from data.mask_pixels import FEW, MANY, are_masks, likeness_to_mask


def water(seed: int) -> Image.Image:
    """Little contrast: about eight neighbouring levels, smoothed noise."""
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64), np.uint8))
    return noise.filter(ImageFilter.GaussianBlur(2)).point(lambda v: 60 + (v - 128) // 8)


def organs(levels: list[int]) -> Image.Image:
    """A label map: a disc in a disc, and so on."""
    rows, columns = np.mgrid[:64, :64]
    ring = np.hypot(rows - 32, columns - 32) // (32 / len(levels))
    return Image.fromarray(np.array(levels, np.uint8)[ring.clip(0, len(levels) - 1).astype(int)])


@pytest.mark.parametrize("levels", [[0, 1], [0, 255], [0, 1, 2, 3, 4, 5], [0, 40, 80, 120, 255]])
def test_a_label_map_is_one_whatever_its_levels(levels):
    assert likeness_to_mask(organs(levels)) == 1


def test_what_has_few_levels_for_want_of_contrast_is_none():
    image = water(0)
    assert 4 < len(np.unique(np.asarray(image))) <= 16
    assert np.isnan(likeness_to_mask(image))


def counts(k: int) -> np.ndarray:
    """Of few photons: noise, of about 16 values."""
    return np.random.default_rng(k).poisson(np.linspace(1, 8, 64), (64, 64))


def stars(k: int) -> np.ndarray:
    """Hundreds of values, which the range of the brightest pixels leaves few levels."""
    sky = np.random.default_rng(k).poisson(500, (64, 64))
    sky[10:20, 10:20] = 65535
    return sky


def near_and_nothing(k: int) -> np.ndarray:
    """Depths far from the 0 of pixels that have none."""
    depth = 4000 + np.hypot(*np.mgrid[:64, :64]) * 8
    depth[:, 7 * k : 7 * k + 5] = 0
    return depth


@pytest.mark.parametrize("kind", [counts, stars, near_and_nothing])
def test_an_image_of_many_values_is_none_however_few_levels_it_is_left(kind):
    for k in range(6):
        values = kind(k)
        assert not likeness_to_mask(to_levels(values, 0, values.max())) >= MANY


@pytest.mark.parametrize("labels", [[0, 1], [0, 65535], [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("white", [5, 4095, 65535])
def test_labels_of_16_bits_are_told_in_any_range(labels, white):
    values = np.array(labels)[np.asarray(organs([*range(len(labels))]))]
    assert likeness_to_mask(to_levels(values, 0, white)) == 1


def test_a_mask_of_16_bits_with_soft_edges_is_told():
    large = organs([255, 0]).resize((960, 960), Image.Resampling.NEAREST)
    soft = large.filter(ImageFilter.GaussianBlur(3))
    assert likeness_to_mask(to_levels(np.asarray(soft) * 257.0 + 3, 0, 65535)) >= FEW


def test_masks_are_told_beside_images_alone():
    assert are_masks(np.array([1.0, 1.0, 0.1, np.nan])).tolist() == [True, True, False, False]
    assert not are_masks(np.array([1.0, 0.95, np.nan])).any()


def test_what_may_be_a_blurred_mask_is_none_where_much_lies_between():
    images = [0.1] * 50
    assert are_masks(np.array([*images, 0.92, 1.0])).tolist() == [False] * 50 + [True, True]
    between = [0.8] * 10
    assert are_masks(np.array([*images, *between, 0.92, 1.0])).nonzero()[0].tolist() == [61]
