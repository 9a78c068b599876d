"""Averages of the weights whose length is a share of the training so far, kept beside the EMA: of
two of them an average of any length is made afterwards (training.post_hoc_average).

Source:
    Karras et al. 2024 (EDM2), "Analyzing and Improving the Training Dynamics of Diffusion Models",
    section 3 and appendix C.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config.sections import LONGEST


def length_of(gamma: float) -> float:
    """sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2): the standard deviation of
    the profile t^gamma on [0, 1]. Karras et al. 2024, eq. 123."""
    return (gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5


def gamma_of(length: float) -> float:
    """Its inverse, the largest root of gamma^3 + 7 gamma^2 + (16 - tau) gamma + 12 - tau with tau =
    sigma_rel^-2. Karras et al. 2024, eq. 126.

    Args:
        length: sigma_rel, in (0, LONGEST].
    """
    assert 0 < length <= LONGEST, length
    tau = length**-2
    return float(np.roots([1, 7, 16 - tau, 12 - tau]).real.max())


def power_decay(gamma: float, step: int) -> float:
    """beta_gamma(t) = (1 - 1/t)^(gamma + 1), t counted from 1, so that what was there before the
    first step gets no weight. Karras et al. 2024, eq. 127."""
    return (1 - 1 / step) ** (gamma + 1)


class PowerAverages:
    """average <- beta average + (1 - beta) weights, one average of each length.

    Args:
        parameters: what trains at any time of the run, by plain names (transfer.adapters).
        lengths: sigma_rel of each.
    """

    def __init__(self, parameters: Mapping[str, Tensor], lengths: Sequence[float]):
        self._weights = [p.detach() for p in parameters.values()]
        self.by_length = {
            length: dict(zip(parameters, map(torch.clone, self._weights), strict=True))
            for length in lengths
        }
        self._gamma = {length: gamma_of(length) for length in lengths}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """step: t, the number of steps done, this one included. Nothing waits for the device."""
        for length, average in self.by_length.items():
            share = 1 - power_decay(self._gamma[length], step)
            torch._foreach_lerp_(list(average.values()), self._weights, share)

    def state_dict(self) -> dict[str, Any]:
        return {str(length): average for length, average in self.by_length.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for length, average in self.by_length.items():
            for name, tensor in average.items():
                tensor.copy_(state[str(length)][name])
