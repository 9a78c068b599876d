"""The variational bound of the negative log-likelihood, term by term, in bits per value of 8-bit
images."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.denoiser import Denoise
from diffusion.schedule import NoiseSchedule
from diffusion.variational_bound import bound_term, prior_bits
from runtime.seeds import generator


class Bound(NamedTuple):
    """On the CPU, float64. bits = prior + terms.sum(0), [N]: of each image, bits per value.

    prior: [N], L_T. terms: [K, N], what stratum k adds: its length times the term of the one t
    drawn in it. t: [K, N], those t; t = 1 is the decoder's term.
    """

    bits: Tensor
    prior: Tensor
    terms: Tensor
    t: Tensor


def strata(steps: int, count: int) -> list[range]:
    """1..T cut into count ranges. The terms fall about as 1/t, so t = 1, the decoder's, stands
    alone, and the others grow as a geometric series. One t drawn evenly in each, times its length,
    makes an unbiased estimate of the sum over t."""
    assert min(2, steps) <= count <= steps
    ends = [1]
    while len(ends) < count:  # each at least one t long
        left = count - len(ends)
        geometric = round(ends[-1] * (steps / ends[-1]) ** (1 / left))
        ends.append(max(ends[-1] + 1, min(geometric, steps - left + 1)))
    return [range(first + 1, last + 1) for first, last in zip([0, *ends[:-1]], ends, strict=True)]


def every(steps: int) -> list[range]:
    """Each t in 1..T a stratum of its own: the sum itself."""
    return [range(t, t + 1) for t in range(1, steps + 1)]


def drawn(timesteps: Sequence[range], seeds: Sequence[int]) -> Tensor:
    """One t of each range for each seed. [K, N] int64"""
    first = torch.tensor([stratum.start for stratum in timesteps])
    length = torch.tensor([len(stratum) for stratum in timesteps])
    shares = [
        torch.rand(len(first), dtype=torch.float64, generator=generator(seed, "bound", "t"))
        for seed in seeds
    ]
    return first[:, None] + (torch.stack(shares, 1) * length[:, None]).long()


def noise_at(t: Tensor, seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The noise of each image at its t, a function of (seed, t). [N, *shape] float32"""
    noises = [
        torch.randn(*shape, generator=generator(seed, "bound", k))
        for k, seed in zip(t.tolist(), seeds, strict=True)
    ]
    return torch.stack(noises)


@torch.no_grad()
def bound(
    denoise: Denoise,
    schedule: NoiseSchedule,
    x0: Tensor,
    seeds: Sequence[int],
    timesteps: Sequence[range] | None = None,
    on_step: Callable[[int], object] = lambda images: None,
) -> Bound:
    """An upper bound of -log2 p(x0), as the mean over the values of an image.

    Args:
        x0: [N, C, H, W] in [-1, 1] on the grid of 256 levels, one batch, on the schedule's device;
            the bits are those of the 8-bit values.
        seeds: one for each image, which decides its noise and, where timesteps are strata() of
            1..T, its t, whatever the batch.
        timesteps: None for every t, which takes T evaluations of the network.
        on_step: told after each of these how many images it was of.
    Source:
        Ho et al. 2020, eq. 5.
    """
    timesteps = every(schedule.steps) if timesteps is None else timesteps
    t_all, parts = drawn(timesteps, seeds), []
    for stratum, t in zip(timesteps, t_all, strict=True):
        noise = noise_at(t, seeds, x0.shape[1:]).to(x0)
        t = t.to(x0.device)
        x_t = schedule.add_noise(x0, noise, t)
        parts.append(len(stratum) * bound_term(schedule, denoise(x_t, t), x0, x_t, t).double())
        on_step(len(x0))
    prior, terms = prior_bits(schedule, x0).double().cpu(), torch.stack(parts).cpu()
    return Bound(prior + terms.sum(0), prior, terms, t_all)
