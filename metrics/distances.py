"""Euclidean distances between the rows of two matrices, in float64, a few rows at a time."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

ENTRIES = 2**23  # of one chunk of a pairwise matrix: 64 MiB
# a squared distance below this share of the squared norms has lost digits in |x|^2 + |y|^2 - 2 x.y
CANCELS = 1e-6


def chunks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(rows, distances [len(rows), M] float64) for slices of the rows of x [N, D], in order, to
    every row of y [M, D].

    Right to 1e-8 relative, wherever the origin lies; equal rows are at 0 exactly. Other ties hold
    to that error only: the same pair asked for in another matrix, or the other way round, may
    differ in its last bits.
    """
    centred = y.to(torch.float64, copy=True)  # the one copy: 50,000 images of 64x64x3 are 5 GB
    centre = centred.mean(0)
    centred -= centre
    norms = torch.einsum("md,md->m", centred, centred)
    for rows in slices(len(x), max(y.shape)):  # a chunk of x is no larger than one of the distances
        part = x[rows].double() - centre
        scale = part.square().sum(1)[:, None] + norms
        # ten times as fast as differences at D = 2048
        squared = torch.addmm(scale, part, centred.T, alpha=-2)
        cancelled = (squared <= CANCELS * scale).nonzero(as_tuple=True)
        yield rows, _mend(squared, cancelled, x[rows], y).sqrt()


def slices(rows: int, width: int) -> Iterator[slice]:
    """Slices of range(rows), in order, so that a matrix of one slice by width has ENTRIES entries
    at most."""
    step = max(1, ENTRIES // width)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _mend(squared: Tensor, where: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """squared with the entries at where computed by differences, which do not cancel."""
    if len(where[0]) > squared.numel() // 16:  # images that are all alike, or clusters far apart
        return torch.cdist(
            x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist"
        ).square()
    for part in slices(len(where[0]), x.shape[1]):
        i, j = (index[part] for index in where)
        squared[i, j] = (x[i].double() - y[j].double()).square().sum(1)
    return squared
