"""Which t a training step sees. A part is a module: what it remembers are its buffers, and they go
into the checkpoint."""

import math

import torch
from torch import Tensor, nn


class Timesteps(nn.Module):
    """Built for a schedule's number of steps. One that no loss changes leaves nothing in a
    checkpoint."""

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(t [batch] integers in 1..T, the weight of each one's loss [batch]), on the generator's
        device, without waiting for it."""
        raise NotImplementedError

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Told the losses [B] of each step, unweighted."""


class Uniform(Timesteps):
    """t uniform in 1..T; Ho et al. 2020, algorithm 1."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """As Timesteps.draw."""
        t = torch.randint(1, self.steps + 1, (batch,), generator=generator, device=generator.device)
        return t, torch.ones(batch, device=t.device)


class Tabulated(Timesteps):
    """t by fixed probabilities. The loss is not weighted against them: what is seen more often
    counts more.

    likelihood: [T] of t = 1..T, in any scale.
    """

    cumulative: Tensor

    def __init__(self, likelihood: Tensor):
        super().__init__()
        cumulative = likelihood.double().cumsum(0)
        # P(at most t), by t - 1
        self.register_buffer("cumulative", cumulative / cumulative[-1], persistent=False)

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """As Timesteps.draw. The first t whose cumulative probability exceeds a uniform number in
        [0, 1): unlike torch.multinomial it never waits for the device."""
        u = torch.rand(batch, dtype=torch.float64, generator=generator, device=generator.device)
        return torch.searchsorted(self.cumulative, u, right=True) + 1, torch.ones(
            batch, device=u.device
        )


class Power(Tabulated):
    """p(t) in proportion to t^exponent: the target's t in Diff-Tuning (Zhong et al. 2024; exponent
    1 in their code), where the noisy end is what a new domain has to learn."""

    def __init__(self, steps: int, exponent: float):
        super().__init__(_power(steps, exponent))


class MirroredPower(Tabulated):
    """p(t) in proportion to (T + 1 - t)^exponent: the same from the other end, for the source's
    images in Diff-Tuning, whose clean end is to be kept."""

    def __init__(self, steps: int, exponent: float):
        super().__init__(_power(steps, exponent).flip(0))


def _power(steps: int, exponent: float) -> Tensor:
    """(t / T)^exponent, [T]."""
    if not 0 <= exponent < math.inf:
        raise ValueError(
            f"exponent must be 0 or more, not {exponent}. (MirroredPower falls with t.)"
        )
    return _shares(steps) ** exponent


def _shares(steps: int) -> Tensor:
    """t / T, [T] of t = 1..T."""
    return torch.arange(1, steps + 1, dtype=torch.float64) / steps


class Range(Tabulated):
    """t uniform among those with low < t / T <= high: one part of the chain, such as its noisy
    half."""

    def __init__(self, steps: int, low: float, high: float):
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"low and high are shares of T with 0 <= low < high <= 1, not {low} and {high}."
            )
        share = _shares(steps)
        inside = (low < share) & (share <= high)
        if not inside.any():
            raise ValueError(
                f"of T = {steps} steps none has {low} < t / T <= {high}: move low and high "
                "farther apart."
            )
        super().__init__(inside)


class Importance(Timesteps):
    """t with probability in proportion to the root mean square of its last losses, the loss
    weighted by 1 / (T p(t)), which leaves its mean. Uniform until every t has `history` losses.

    Args:
        uniform: share that stays uniform, so that no t is forgotten (the authors' code: 0.001).
    Source:
        Nichol and Dhariwal 2021, eq. 18.
    """

    losses: Tensor
    seen: Tensor

    def __init__(self, steps: int, history: int = 10, uniform: float = 0.001):
        super().__init__()
        if history < 1 or not 0 <= uniform <= 1:
            raise ValueError(
                f"history must be at least 1 and uniform in [0, 1], not {history} and {uniform}."
            )
        self.steps, self.history, self.uniform = steps, history, uniform
        # by t; row 0 takes what is not kept
        self.register_buffer("losses", torch.zeros(steps + 1, history, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(steps + 1, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """[T] of t = 1..T."""
        scale = self.losses[1:].square().mean(1).sqrt()
        p = (1 - self.uniform) * scale / scale.sum() + self.uniform / self.steps
        known = (self.seen[1:] >= self.history).all() & (scale.sum() > 0)
        return torch.where(known, p, 1 / self.steps)

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """As Timesteps.draw."""
        p = self.probabilities()
        index = torch.multinomial(p, batch, replacement=True, generator=generator)
        return index + 1, (1 / (self.steps * p[index])).float()

    def update(self, t: Tensor, loss: Tensor) -> None:
        """As Timesteps.update: the losses take the places of the oldest ones of their t, without
        waiting for the device."""
        t, order = t.sort(stable=True)
        loss = loss[order].double().nan_to_num(0, 0, 0)
        rank = torch.arange(len(t), device=t.device)
        nth = rank - torch.searchsorted(t, t)  # of the same t in this batch
        from_last = torch.searchsorted(t, t, right=True) - 1 - rank
        kept = from_last < self.history  # else a place would be written twice
        row = torch.where(kept, t, 0)
        place = (self.seen[t] + nth) % self.history
        self.losses[row, place] = torch.where(kept, loss, 0.0)
        self.seen.index_add_(0, t, torch.ones_like(t))
