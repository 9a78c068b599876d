"""The Fréchet distance of two feature matrices: FID, where the features are those of FID's
Inception."""

from collections.abc import Callable
from statistics import linear_regression

import torch
from torch import Tensor

from metrics.checks import JUDGED, check_features, check_pair
from runtime.seeds import generator

POINTS = 15  # sizes of the extrapolation


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), in squared units of the features; >= 0.

    Right for singular covariances. Biased upwards by about c / N, where c depends on the model too:
    compare at equal N only.

    Args:
        x: [N, D].
        y: [M, D].
    Raises:
        UserError: where either has fewer than 2 rows, or holds NaN.
    Source:
        Heusel et al. 2017, eq. 6; covariances over N - 1, as in their code.
    """
    check_pair(x, y)
    return _distance_to(y)(x)


def frechet_infinity(x: Tensor, y: Tensor) -> float:
    """The Fréchet distance that x would have for N to infinity: a least-squares line in 1 / N.

    Through 15 sizes spread evenly from N / 2 to N, the rows of each drawn without replacement, a
    function of N. (The paper's start at N / 10, 5,000 of 50,000 images. On fewer the distance is no
    line in 1 / N from there: of two Gaussians of 64 features 0.67 apart, 500 images give -0.75 on
    average from N / 10, 0.68 from N / 2 and 3.2 plainly.) May fall below 0 where the truth is near
    it. The bias of y's own size stays, and where N is not above the number of directions that vary
    alike the line misses the truth still: compare at equal N.

    Args:
        x: [N, D].
        y: [M, D].
    Raises:
        UserError: as of frechet_distance, and where N < 30.
    Source:
        Chong and Forsyth 2020, section 3.
    """
    check_pair(x, y)
    check_features(x, JUDGED, least=2 * POINTS)
    distance = _distance_to(y)
    sizes = torch.linspace(len(x) // 2, len(x), POINTS).round().long().tolist()
    distances = []
    for size in sizes:
        rows = torch.randperm(len(x), generator=generator("frechet_infinity", size))[:size]
        distances.append(distance(x[rows.to(x.device)]))
    return linear_regression([1 / size for size in sizes], distances).intercept


def _distance_to(y: Tensor) -> Callable[[Tensor], float]:
    """x -> the Fréchet distance of x and y, with y's part computed once.

    C_y = R^T R with R of the QR decomposition of y. C_x C_y has the eigenvalues of R C_x R^T, the
    covariance of x R^T, beside zeros: it is symmetric, so that no root of a matrix is needed, and
    of min(N, M, D) rows.
    """
    y = y.double()
    mean = y.mean(0)
    root = torch.linalg.qr((y - mean) / (len(y) - 1) ** 0.5, mode="r").R  # [min(M, D), D]
    trace = root.square().sum()

    def distance(x: Tensor) -> float:
        x = x.double()
        centred = (x - x.mean(0)) / (len(x) - 1) ** 0.5
        seen = centred @ root.T  # [N, min(M, D)]
        product = seen @ seen.T if len(seen) < seen.shape[1] else seen.T @ seen
        roots = torch.linalg.eigvalsh(product).clamp(min=0).sqrt()
        apart = (x.mean(0) - mean).square().sum()
        return max(0.0, float(apart + centred.square().sum() + trace - 2 * roots.sum()))

    return distance
