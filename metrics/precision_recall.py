"""Fidelity and diversity from nearest neighbours: precision, recall, density, coverage."""

import torch
from torch import Tensor

from metrics.checks import check_pair
from metrics.distances import chunks
from runtime.errors import UserError

# images on each side below which the numbers say nothing: of 15 real ones, k = 5, gray images cover
# all
FEWEST = 50
TIE = 1e-7  # a distance that is within this share of a radius equals it, whatever its last bits


def manifold(real: Tensor, generated: Tensor, k: int = 5) -> dict[str, float]:
    """Precision, recall, density and coverage, by the balls that reach from each row to its k-th
    nearest other row, their surface excluded, as in the package prdc.

    Args:
        real: [N, D].
        generated: [M, D].
    Returns:
        precision: the share of generated rows in a real ball; recall: of real rows in a generated
        ball; density: how many real balls a generated row lies in, over k (may exceed 1); coverage:
        the share of real balls with a generated row in them.
    Raises:
        UserError: where either has fewer than k + 1 rows or holds NaN, and where each real row has
            k copies, as all balls are empty then.
    Source:
        Kynkäänniemi et al. 2019, eq. 1 to 3 (precision, recall); Naeem et al. 2020, eq. 3 and 4
        (density, coverage).
    """
    check_pair(generated, real, "the generated images", "the real images", least=k + 1)
    real_radii, generated_radii = _radii(real, k), _radii(generated, k)
    if not real_radii.any():
        raise UserError(
            f"Each of the real images has {k} copies among the {len(real)}: precision, recall, "
            "density and coverage are undefined. Are they constant images, or are their features?"
        )
    # real balls around each generated row
    inside = torch.zeros(len(generated), dtype=torch.float64, device=real.device)
    recalled, covered = [], []
    for rows, distances in chunks(real, generated):
        in_real = distances < real_radii[rows, None]
        inside += in_real.sum(0)
        covered.append(in_real.any(1))
        recalled.append((distances < generated_radii).any(1))
    return {
        "precision": float((inside > 0).double().mean()),
        "recall": float(torch.cat(recalled).double().mean()),
        "density": float(inside.mean() / k),
        "coverage": float(torch.cat(covered).double().mean()),
    }


def _radii(x: Tensor, k: int) -> Tensor:
    """[N]: the distance to the k-th nearest other row; the row itself is the nearest, at 0."""
    nearest = [distances.kthvalue(k + 1, dim=1).values for _, distances in chunks(x, x)]
    return torch.cat(nearest) * (1 - TIE)
