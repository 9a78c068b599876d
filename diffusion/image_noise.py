"""The noise of image k: a function of its seed, whatever the batch."""

from collections.abc import Sequence

import torch
from torch import Tensor


class NoisePerImage:
    """Noise of image k by (seed, k) and the number of the draw: the same bits in whatever batch it
    is made.

    Drawn on the CPU, so that every device sees the same. seeds: one integer for each image of the
    batch.
    """

    def __init__(self, seeds: Sequence[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, like: Tensor) -> Tensor:
        noise = torch.stack([torch.randn(like.shape[1:], generator=g) for g in self.generators])
        if like.is_cuda:  # so that the copy waits for nothing
            noise = noise.pin_memory()
        return noise.to(like, non_blocking=True)
