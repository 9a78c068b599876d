"""The running average of the weights."""

import copy

import torch
from torch import nn


def ema_decay(decay: float, updates: int) -> float:
    """min(decay, (1 + n) / (10 + n)): short runs are not left with their start. updates: n, those
    done before."""
    return min(decay, (1 + updates) / (10 + updates))


def share_of_start(decay: float, updates: int) -> float:
    """The weight that the average still gives to where it began."""
    share = 1.0
    for n in range(updates):
        share *= ema_decay(decay, n)
        if share < 1e-12:
            return 0.0
    return share


class Ema:
    """A network whose parameters follow another's: ema <- decay ema + (1 - decay) weights. A frozen
    weight stays to the bit."""

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self._average = [p.detach() for p in self.network.parameters()]
        self._weights = [p.detach() for p in network.parameters()]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        torch._foreach_lerp_(self._average, self._weights, 1 - ema_decay(self.decay, updates))
