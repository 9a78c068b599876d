"""From numbers to 256 levels: what becomes black, what white, and by what it is decided."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from data.intensity import check_range, fences, hull, to_levels, value_range
from data.recent import Recent
from runtime.errors import UserError

KINDS = [np.uint8, np.uint16, ">u2", np.int16, np.int32, np.float16, np.float32, np.float64, ">f4"]


@pytest.mark.parametrize("kind", KINDS)
def test_gray_is_linear_clipped_and_not_rounded(kind):
    values = np.arange(120).reshape(10, 12).astype(kind)
    image = to_levels(values, 20, 80)
    assert image.mode == "F" and image.size == (12, 10)
    expected = [
        [min(max((10 * 0 + 12 * y + x - 20) / 60, 0), 1) * 255 for x in range(12)]
        for y in range(10)
    ]
    np.testing.assert_allclose(np.asarray(image), expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_colour_is_rgb_of_8_bits(kind):
    values = np.random.default_rng(0).integers(0, 250, (5, 7, 3)).astype(kind)
    image = to_levels(values, 0, 500)
    assert image.mode == "RGB" and image.size == (7, 5)
    assert np.array_equal(np.asarray(image), np.round(values.astype(float) * 0.51))


def test_levels_of_a_range_without_extent_and_of_no_numbers():
    assert np.asarray(to_levels(np.array([[1, 2, 3]]), 2, 2)).tolist() == [[0, 0, 255]]
    assert np.asarray(to_levels(np.array([[np.nan, np.inf, -np.inf, 1.0]]), 0, 2)).tolist() == [
        [0, 255, 0, 127.5]
    ]
    # black and white turned around
    assert np.asarray(to_levels(np.array([[0, 4, 10]]), 10, 0)).tolist() == [[255, 153, 0]]


@pytest.mark.parametrize("shape", [(4,), (4, 4, 2), (4, 4, 4), (2, 4, 4, 3)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match="an image is"):
        to_levels(np.zeros(shape), 0, 1)


def test_a_range_leaves_out_what_is_rare():
    values = np.arange(100_000)
    low, high = value_range(values)
    assert low == pytest.approx(99.999) and high == pytest.approx(99_899.001)
    values[:50] = 10**9
    values[50:60] = -(10**9)
    assert value_range(values)[0] >= 0 and value_range(values)[1] <= 100_000


def test_a_range_of_few_values_that_differ_is_all_of_them():
    values = np.zeros((100, 100))
    values[3, 4] = 7
    assert value_range(values) == (0, 7)
    assert value_range(np.full((4, 4), 5)) == (5, 5)
    assert value_range(np.array([np.nan, 3, np.inf, 4, -np.inf]))[1] == pytest.approx(4, abs=0.01)
    assert value_range(np.array([np.nan])) == (0, 0) and value_range(np.array([])) == (0, 0)


def test_a_range_of_many_values_is_near_that_of_all_and_always_the_same():
    values = np.random.default_rng(1).normal(size=(2000, 1500)).astype(np.float32)
    assert value_range(values) == value_range(values.copy())
    np.testing.assert_allclose(value_range(values), np.quantile(values, [0.001, 0.999]), atol=0.05)


def test_the_hull_of_ranges():
    assert hull([(3, 5), (-1, 4), (0, 9.5)]) == (-1, 9.5)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 40])
def test_one_range_is_beyond_the_fences_and_half_of_them_are_not(n):
    """12 bits, and one or half of 16."""
    assert fences([(0, 4095)] * n + [(0, 65535)])[1] == pytest.approx(3.5 * 4095)
    assert fences([(0, 4095)] * n + [(0, 65535)] * n)[1] > 65535
    lowest, highest = fences([(k, 1000 + 100 * k) for k in range(n)])  # which differ as scans do
    assert lowest < 0 and highest > 1000 + 100 * n


def test_a_range_is_measured_once_and_only_when_it_is_needed():
    calls, found, barrier = [], [], threading.Barrier(8)
    measured = Recent(lambda key: calls.append(1) or (2.0, 3.0))
    assert not calls

    def ask():
        barrier.wait(10)
        found.append(measured(None))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(2.0, 3.0)] * 8 and calls == [1]


@pytest.mark.parametrize(
    "setting", [[1], [1, 2, 3], [2, 2], [3, 1], [0, float("inf")], [float("nan"), 1]]
)
def test_a_given_range_needs_two_numbers_that_rise(setting):
    with pytest.raises(UserError, match=r"data.range=.*LOW, HIGH"):
        check_range(setting)
