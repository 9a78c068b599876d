"""Precision, recall, density and coverage: equal to prdc, right on ties, and what they catch."""

from __future__ import annotations

import pytest
import torch
from prdc import compute_prdc

from evaluation import suite
from metrics import distances
from metrics.precision_recall import FEWEST, manifold
from runtime.errors import UserError


def normal(n, width, seed, shift=0.0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)).double() + shift


@pytest.mark.parametrize("entries", [2**23, 500])
@pytest.mark.parametrize("n, m, k, shift", [(120, 90, 5, 0.3), (50, 80, 3, 0.0), (60, 60, 1, 1.0)])
def test_it_equals_prdc(monkeypatch, n, m, k, shift, entries):
    monkeypatch.setattr(distances, "ENTRIES", entries)
    real, generated = normal(n, 8, 0), normal(m, 8, 1, shift)
    other = compute_prdc(real.numpy(), generated.numpy(), nearest_k=k)
    assert manifold(real, generated, k) == pytest.approx(other, rel=1e-9)
    assert 0 < other["precision"] < 1 or shift == 0


def test_ties_lie_outside():
    """Points of a grid, where each radius is met by others: by squared distances of whole numbers,
    which no rounding blurs."""
    grid = torch.cartesian_prod(torch.arange(6), torch.arange(6)).double()
    real, generated, k = grid, grid[::2] + torch.tensor([1.0, 0.0]), 3

    def squared(a, b):
        return (a[:, None] - b).square().sum(2)

    real_radii, generated_radii = (
        squared(a, a).sort(1).values[:, k, None] for a in (real, generated)
    )
    between = squared(real, generated)
    inside = between < real_radii
    found = manifold(0.1 * real + 7.3, 0.1 * generated + 7.3, k)
    assert found == pytest.approx(
        {
            "precision": inside.any(0).double().mean().item(),
            "recall": (between < generated_radii.T).any(1).double().mean().item(),
            "density": inside.sum(0).double().mean().item() / k,
            "coverage": inside.any(1).double().mean().item(),
        }
    )


def test_a_memoriser_looks_perfect_and_noise_does_not():
    real = normal(200, 6, 0)
    assert {k: v for k, v in manifold(real, real).items() if k != "density"} == {
        "precision": 1,
        "recall": 1,
        "coverage": 1,
    }
    assert manifold(real, normal(200, 6, 1, shift=50)) == {
        "precision": 0,
        "recall": 0,
        "density": 0,
        "coverage": 0,
    }


def test_dropped_modes_show_in_recall_and_coverage_alone():
    """Five clusters, of which one is drawn."""

    def drawn(n, modes, seed):
        return normal(n, 4, seed) + 30 * torch.arange(modes).repeat(n // modes)[:, None]

    real = drawn(500, 5, 0)
    whole, dropping = manifold(real, drawn(500, 5, 1)), manifold(real, drawn(500, 1, 2))
    assert min(whole.values()) > 0.8
    assert dropping["precision"] > 0.8 and dropping["density"] > 0.8
    assert dropping["recall"] <= 0.2 and dropping["coverage"] <= 0.2


def test_a_generator_that_repeats_one_image_has_no_recall():
    real = normal(50, 4, 0)
    found = manifold(real, real.mean(0).repeat(50, 1))
    assert found["precision"] == 1 and found["recall"] == 0 and found["coverage"] < 1


def test_of_few_images_nothing_is_said_as_mush_covers_them_all():
    """Gray images without detail, about the mean of 15 real ones: each real ball reaches to the
    fifth neighbour, and past the mean."""
    real = normal(15, 30, 0)
    mush = 0.15 * normal(100, 30, 1)
    assert (
        manifold(real, mush)["coverage"] == 1
        and manifold(normal(400, 30, 2), mush)["coverage"] > 0.5
    )
    notes = suite.Notes()
    record = suite._distances(mush, real, "the held-out images", "Fréchet distance", notes)
    assert "kid" in record and not {"precision", "recall", "density", "coverage"} & record.keys()
    assert any(
        (
            "precision, recall, density and coverage of the held-out images: left out, 15 images "
            "on one side"
        )
        in note
        for note in notes
    )
    enough = suite._distances(
        mush,
        normal(FEWEST, 30, 2),
        "the held-out images",
        "Fréchet distance",
        notes,
    )
    assert {"precision", "recall", "density", "coverage"} <= enough.keys()


def test_noise_recalls_everything_and_covers_nothing():
    """Its images are so far from one another that each ball holds the data: coverage, whose balls
    are the real ones, is what tells."""
    found = manifold(normal(200, 30, 0), 5 * normal(200, 30, 1))
    assert (
        found["recall"] > 0.95 and found["coverage"] == found["precision"] == found["density"] == 0
    )


def test_what_cannot_be_judged_is_said():
    real, generated = normal(20, 4, 0), normal(20, 4, 1)
    for a, b, message in [
        (real[:5], generated, "real images: 5, where this metric needs 6"),
        (real, generated[:5], "generated images: 5"),
        (torch.ones(20, 4), generated, "Each of the real images has 5 copies among the 20"),
        (real * float("nan"), generated, "20 of 20 rows"),
    ]:
        with pytest.raises(UserError, match=message):
            manifold(a, b)
