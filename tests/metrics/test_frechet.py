"""The Fréchet distance against three libraries and its closed form; the extrapolated one against
the truth."""

from __future__ import annotations

import runtime.torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.image.fid import _compute_fid

from metrics.frechet import frechet_distance, frechet_infinity
from runtime.errors import UserError


def normal(n, width, seed, scale=1.0, shift=0.0):
    return (
        torch.randn(n, width, generator=torch.Generator().manual_seed(seed)).double() * scale
        + shift
    )


def mixed(n, width, seed):
    """Correlated features, of unequal variances."""
    return normal(n, width, seed) @ normal(width, width, 100 + seed // 2) + normal(
        1, width, seed + 50
    )


def by_torchmetrics(x, y):
    return float(_compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov()))


def by_torch_fidelity(x, y):
    found = fid_statistics_to_metric(
        fid_features_to_statistics(x), fid_features_to_statistics(y), False
    )
    return found["frechet_inception_distance"]


def by_square_root(x, y):
    x, y = x.numpy(), y.numpy()
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(
        a + b - 2 * scipy.linalg.sqrtm(a @ b).real
    )


@pytest.mark.parametrize("other", [by_torchmetrics, by_torch_fidelity, by_square_root])
@pytest.mark.parametrize("n, m, width", [(200, 150, 16), (90, 400, 48)])
def test_it_equals_other_implementations(other, n, m, width):
    x, y = mixed(n, width, 0), mixed(m, width, 3)
    assert frechet_distance(x, y) == pytest.approx(other(x, y), rel=1e-6)
    assert frechet_distance(x.float(), y.float()) == pytest.approx(other(x, y), rel=1e-5)


@pytest.mark.parametrize("n, m", [(7, 9), (5, 200), (200, 5), (30, 30)])
def test_singular_covariances(n, m):
    """More features than rows, a constant one and a repeated one; torch-fidelity takes no root of a
    matrix either."""
    x, y = mixed(n, 32, 0), mixed(m, 32, 3)
    x[:, 3], y[:, 3], x[:, 5], y[:, 5] = 1.0, 1.0, x[:, 6], y[:, 6]
    assert frechet_distance(x, y) == pytest.approx(by_torch_fidelity(x, y), rel=1e-5)


def test_constant_features_are_as_far_apart_as_their_means():
    assert frechet_distance(torch.full((5, 3), 1.0), torch.full((4, 3), 3.0)) == pytest.approx(12)
    x = mixed(50, 3, 0)
    assert frechet_distance(x, torch.zeros(4, 3)) == pytest.approx(
        float(x.mean(0).square().sum() + x.var(0).sum())
    )


def test_moments_given_exactly():
    """Rows whose sample moments are those of the Gaussians: mean and standard deviation 1, 2
    against 4, 3 in each of 4 features."""
    rows = mixed(40, 4, 0)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(rows.T.cov()), (rows - rows.mean(0)).T, upper=False
    ).T
    turn = torch.linalg.qr(normal(4, 4, 9)).Q  # isotropic: no rotation shows
    assert frechet_distance(1 + 2 * white, 4 + 3 * white @ turn) == pytest.approx(4 * (9 + 1))


def test_equal_features_are_at_zero_and_large_samples_near_the_truth():
    x = mixed(500, 8, 0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6 * float(x.var(0).sum()))
    assert frechet_distance(x, x) >= 0
    near = frechet_distance(normal(100_000, 4, 1, scale=2), normal(100_000, 4, 2, scale=3, shift=1))
    assert near == pytest.approx(8, rel=0.02)


def test_the_extrapolation_takes_the_bias_away():
    """Both of one Gaussian, the reference large: the truth is 0. Plain: about D (D + 5) / 4 N above
    it."""
    y = normal(40_000, 16, 0)
    plain = torch.tensor([frechet_distance(normal(300, 16, seed), y) for seed in range(1, 13)])
    extrapolated = torch.tensor(
        [frechet_infinity(normal(300, 16, seed), y) for seed in range(1, 13)]
    )
    assert plain.mean() > 0.2
    # 0.01: the line's curvature and the bias of y
    assert abs(extrapolated.mean()) < 3 * extrapolated.std() / 12**0.5 + 0.01
    assert abs(extrapolated.mean()) < plain.mean() / 10
    far = frechet_infinity(normal(300, 16, 1, scale=2, shift=0.5), y)  # 16 (0.25 + 1)
    assert far == pytest.approx(20, rel=0.05)


def test_the_extrapolation_keeps_to_sizes_where_the_line_is_straight():
    """5 rows for each feature, the truth is 0: from N / 10 on, the line would end half as far below
    it as the plain distance lies above."""
    y = normal(20_000, 32, 0)
    plain, extrapolated = zip(
        *(
            (frechet_distance(x, y), frechet_infinity(x, y))
            for x in (normal(160, 32, seed) for seed in range(1, 9))
        )
    )
    assert abs(np.mean(extrapolated)) < np.mean(plain) / 6


def test_the_extrapolation_is_a_function_of_its_images():
    x, y = mixed(60, 8, 0), mixed(60, 8, 3)
    assert frechet_infinity(x, y) == frechet_infinity(x, y)


@pytest.mark.parametrize("metric", [frechet_distance, frechet_infinity])
def test_what_cannot_be_judged_is_said(metric):
    x, y = mixed(40, 4, 0), mixed(40, 4, 3)
    broken = x.clone()
    broken[[2, 5], 1] = torch.tensor([float("nan"), float("inf")]).double()
    for a, b, message in [
        (x[:1], y, "images judged: 1"),
        (x, y[:1], "reference images: 1"),
        (broken, y, "2 of 40 rows"),
    ]:
        with pytest.raises(UserError, match=message):
            metric(a, b)


def test_the_extrapolation_needs_fifteen_sizes():
    with pytest.raises(UserError, match="29, where this metric needs 30"):
        frechet_infinity(mixed(29, 4, 0), mixed(50, 4, 3))
