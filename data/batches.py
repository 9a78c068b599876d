"""Batch k as a function of (seed, k), gathered from the memory map on a thread of its own."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.augmentation import OFF, Augmentation, augment, draw_flips, told
from data.dataset import Dataset
from data.pixels import to_x0
from runtime.seeds import generator


class Batch(NamedTuple):
    images: Tensor  # [B, H, W, C] uint8
    label: Tensor  # [B] int64
    flip: Tensor  # [B] bool
    drawn: Tensor  # [B, 11], see Augmentation.draw; [B, 0] without augmentation


class Batches:
    """The training stream: one permutation of the images after the other, cut into batches.

    Endless; batch k holds the positions k B .. (k + 1) B of the stream, also where the data is
    smaller than a batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        flip: bool,
        seed: int,
        augmentation: Augmentation = OFF,
    ):
        self.dataset, self.rows = dataset, dataset.splits["train"]
        self.batch_size, self.flip, self.seed = batch_size, flip, seed
        self.augmentation = augmentation
        self._permutation = lru_cache(maxsize=2)(self._permute)

    def _permute(self, epoch: int) -> np.ndarray:
        order = torch.randperm(len(self.rows), generator=generator(self.seed, "epoch", epoch))
        return self.rows[order.numpy()]

    def indices(self, k: int) -> np.ndarray:
        """Rows of the map in batch k. [B]"""
        places = np.arange(k * self.batch_size, (k + 1) * self.batch_size)
        epochs, places = np.divmod(places, len(self.rows))
        parts = [self._permutation(e)[places[epochs == e]] for e in np.unique(epochs).tolist()]
        return np.concatenate(parts)

    def batch(self, k: int) -> Batch:
        rows = self.indices(k)
        images, labels = self.dataset.images[rows], self.dataset.labels[rows]
        flip = draw_flips(self.batch_size, self.seed, k) & self.flip
        drawn = torch.empty(self.batch_size, 0)
        if self.augmentation.on:
            drawn = self.augmentation.draw(self.batch_size, self.seed, k)
        return Batch(torch.from_numpy(images), torch.from_numpy(labels), flip, drawn)

    def as_trained_on(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """A batch of these, on its device -> x0 [B, C, H, W], and what the network is told of what
        was done to it."""
        x0 = to_x0(batch.images, batch.flip if self.flip else None)
        if not self.augmentation.on:
            return x0, {}
        return augment(x0, batch.drawn), {"augmentation": told(batch.drawn)}

    def prefetched(
        self, start: int, stop: int, pin: bool = False, depth: int = 4
    ) -> Generator[Batch, None, None]:
        """Batches start .. stop - 1, made ahead on a thread; an error there is raised here."""

        def make(k: int) -> Batch:
            batch = self.batch(k)
            return Batch(*(x.pin_memory() for x in batch)) if pin else batch

        # a new thread is on GPU 0, and pinning opens a context there
        here = partial(torch.cuda.set_device, torch.cuda.current_device()) if pin else None
        pool = ThreadPoolExecutor(1, "batches", here)
        futures = (pool.submit(make, k) for k in range(start, stop))
        ahead = deque(islice(futures, depth))
        try:
            while ahead:
                ahead.extend(islice(futures, 1))
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
