"""The factor of every learning rate at a step k, counted from 0: a warm-up times a function of k
alone, so that a run that is resumed goes on at its rate."""

import math
from dataclasses import dataclass


def warm_up(k: int, steps: int) -> float:
    """Rises evenly to 1 over so many steps."""
    return min(1.0, (k + 1) / max(1, steps))


@dataclass(frozen=True)
class Constant:
    """1 at every step; Ho et al. 2020."""

    def __call__(self, k: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Cosine:
    """From 1 at step 0 to 0 after so many steps; Loshchilov and Hutter 2017, eq. 5, with eta_min 0
    and without restarts."""

    steps: int

    def __call__(self, k: int) -> float:
        return (1 + math.cos(math.pi * min(k, self.steps) / max(1, self.steps))) / 2


@dataclass(frozen=True)
class InverseSquareRoot:
    """1 up to step t_ref, then in proportion to 1 / sqrt(k); Karras et al. 2024 (EDM2), eq. 67."""

    t_ref: int

    def __post_init__(self) -> None:
        if self.t_ref < 1:
            raise ValueError(f"t_ref={self.t_ref} must be at least 1, in steps.")

    def __call__(self, k: int) -> float:
        return 1 / math.sqrt(max(k / self.t_ref, 1))
