"""Distances: right where a matrix product alone would cancel, and over every chunk."""

from __future__ import annotations

import pytest
import torch

from metrics import distances


def whole(x, y):
    rows, parts = zip(*distances.chunks(x, y))
    assert [row for part in rows for row in range(part.start, part.stop)] == list(range(len(x)))
    return torch.cat(parts)


def by_differences(x, y):
    return torch.stack([(row - y.double()).square().sum(1).sqrt() for row in x.double()])


@pytest.mark.parametrize("entries", [2**23, 40, 1])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_distances_equal_the_differences_in_every_chunk(monkeypatch, entries, offset):
    monkeypatch.setattr(distances, "ENTRIES", entries)
    x = torch.randn(23, 17, generator=torch.Generator().manual_seed(0)).double() + offset
    y = torch.randn(11, 17, generator=torch.Generator().manual_seed(1)).double() + offset
    torch.testing.assert_close(whole(x, y), by_differences(x, y), rtol=1e-8, atol=0)
    assert whole(x, y).dtype == torch.float64


@pytest.mark.parametrize("spread", [1.0, 1e5])
def test_equal_rows_are_at_zero_and_near_ones_are_not(spread):
    """Clusters far apart, with a copy and a near copy in each: centring does not help."""
    centres = spread * torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    x = centres.double()
    y = torch.cat([x, x + 1e-4])
    found = whole(x, y)
    assert (found[:, :40].diagonal() == 0).all()
    torch.testing.assert_close(found, by_differences(x, y), rtol=1e-8, atol=0)


def test_images_that_are_all_alike():
    x = torch.full((30, 12), 0.3)
    assert (whole(x, x) == 0).all()
    torch.testing.assert_close(
        whole(x, x + 1), torch.full((30, 30), 12**0.5).double(), rtol=1e-6, atol=0
    )
