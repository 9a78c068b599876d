"""An average of the weights of any length, made after training from the snapshots of two others:
the combination whose profile over steps is nearest to the one that is wanted.

The profiles here are those that the discrete averages have, and not the continuous ones of the
paper. Lengths of averages are sigma_rel (training.power_average).

Source:
    Karras et al. 2024 (EDM2), section 3.2 and appendix C.3.
"""

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
from torch import Tensor

from models.formats.misfit import Tensors
from training.power_average import gamma_of
from training.snapshots import Snapshot

CHUNK = 1 << 20  # steps at once
SMALLEST = 1e-12  # eigenvalue that counts, over the largest


class Profile(NamedTuple):
    """The weights of an average at a step t over the steps 1..t: w_i = (i/t)^(gamma + 1) -
    ((i - 1)/t)^(gamma + 1). They sum to 1, and training.power_average's recursion has just these.

    Args:
        step: t.
    """

    step: int
    gamma: float


def weights_of(profile: Profile, first: int, last: int) -> Tensor:
    """[last - first] float64: w_i of the steps first + 1 .. last."""
    i = torch.arange(first + 1, last + 1, dtype=torch.float64)
    exponent = profile.gamma + 1
    # 1 - (1 - 1/i)^exponent without cancellation
    return (i / profile.step) ** exponent * -torch.expm1(exponent * torch.log1p(-1 / i))


def inner_products(profiles: Sequence[Profile]) -> Tensor:
    """[n, n] float64: the sum of w_i v_i over all steps, for each pair of profiles.

    Of two lengths, what is summed up to a step s goes on to the next one: over the weights at t it
    is (s/t)^(exponents) of what it was over those at s, so that each step is visited once.
    """
    steps = sorted({profile.step for profile in profiles})
    gammas = sorted({profile.gamma for profile in profiles})
    at_equal_steps: dict[tuple[float, float, int], float] = {}
    for a, b in combinations_with_replacement(gammas, 2):
        total, before = 0.0, 0
        for t in steps:
            total *= (before / t) ** (a + b + 2)
            for first in range(before, t, CHUNK):
                last = min(first + CHUNK, t)
                one, other = (weights_of(Profile(t, g), first, last) for g in (a, b))
                total += (one @ other).item()
            at_equal_steps[a, b, t] = at_equal_steps[b, a, t] = total
            before = t

    def product(one: Profile, other: Profile) -> float:
        early, late = sorted((one, other))
        share = (early.step / late.step) ** (late.gamma + 1)
        return at_equal_steps[one.gamma, other.gamma, early.step] * share

    rows = [[product(one, other) for other in profiles] for one in profiles]
    return torch.tensor(rows, dtype=torch.float64)


def nearest_combination(known: Sequence[Profile], wanted: Profile) -> tuple[Tensor, float]:
    """The combination of known profiles nearest to the wanted one, of all whose coefficients sum to
    1: the last one, and a least-squares sum of the others' differences from it.

    Returns:
        [n] float64, coefficients; and the residual ||sum - wanted|| / ||wanted|| over steps.
    """
    G = inner_products([*known, wanted])
    n = len(known)
    # differences from the last known one, also of the one that is wanted: [n, n]
    D = G - G[n - 1] - G[:, n - 1 : n] + G[n - 1, n - 1]
    among = [k for k in range(n + 1) if k != n - 1]
    D = D[among][:, among]
    inverse = torch.linalg.pinv(D[:-1, :-1], rtol=SMALLEST, hermitian=True)
    others = inverse @ D[:-1, -1]
    coefficients = torch.cat([others, 1 - others.sum(0, keepdim=True)])
    difference = torch.cat([coefficients, torch.tensor([-1.0], dtype=torch.float64)])
    squared = (difference @ G @ difference).clamp(min=0) / G[-1, -1]
    return coefficients, squared.sqrt().item()


class Reconstruction(NamedTuple):
    """How an average is made: of which snapshots and lengths, with which coefficients, and how far
    its profile is from the one that is wanted, relative."""

    parts: Sequence[tuple[Snapshot, float]]
    coefficients: Tensor
    residual: float

    def tensors(self) -> Tensors:
        """The average, by plain names of what trains, float32. What is the same in all parts comes
        out to the bit: their differences are summed, in float64."""
        snapshot, length = self.parts[-1]
        last = {name: w.double() for name, w in snapshot.read(length).items()}
        total = {name: w.clone() for name, w in last.items()}
        for (snapshot, length), c in zip(self.parts[:-1], self.coefficients.tolist(), strict=False):
            for name, w in snapshot.read(length).items():
                total[name] += c * (w.double() - last[name])
        return {name: w.float() for name, w in total.items()}


def reconstruct(snapshots: Sequence[Snapshot], step: int, length: float) -> Reconstruction:
    """The average of a length at a step.

    Args:
        snapshots: of one run; those after the step are left out.
        length: sigma_rel.
    """
    parts = [(s, own) for s in snapshots if s.step <= step for own in s.lengths]
    assert parts, step
    known = [Profile(s.step, gamma_of(own)) for s, own in parts]
    return Reconstruction(parts, *nearest_combination(known, Profile(step, gamma_of(length))))
