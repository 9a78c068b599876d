"""The light set: how near the averaged model's images come to the validation images, and whether to
the training images, as it trains."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.dataset import Dataset
from data.pixels import to_picture, to_uint8
from data.splits import spread
from metrics.features import Features, extract
from metrics.features.random import RandomConvolutional
from metrics.kid import kid
from metrics.memorization import median, nearest, rho
from runtime.errors import UserError
from runtime.seeds import derive

MOST = 2000  # reference images of a split
BATCH = 64  # images generated at a time, at most
# (seeds, their labels [B]) -> x0 [B, C, H, W] in about [-1, 1]
Make = Callable[[Sequence[int], Tensor], Tensor]
log = logging.getLogger(__name__)


class Reference(NamedTuple):
    """Features of the training and the validation images, and the distances of the latter to the
    former."""

    train: Tensor
    validation: Tensor
    distances: Tensor


@dataclass
class LightSet:
    """The images are the same function of the weights in every run and at every step: seeds
    ("light", k), the classes of the training images in turn. In random convolutional features,
    which need no file; its numbers compare with each other and with no paper's.

    Args:
        count: images to generate.
        batch_size: the most at a time.
        on_batch: called before each batch; it may raise, to stop.
        shown: the channels that the features see (data.pixels.to_picture).
    Raises:
        UserError: where there are no validation images to compare with.
    """

    dataset: Dataset
    count: int
    batch_size: int
    device: torch.device
    features: Features = field(default_factory=RandomConvolutional)
    on_batch: Callable[[], object] = lambda: None
    shown: Sequence[int] | None = None

    def __post_init__(self):
        if (found := len(self.dataset.splits["validation"])) < 2:
            raise UserError(
                f"run.kid_images={self.count} compares generated images with validation images, "
                f"and there {'is 1' if found else 'are none'}: set run.kid_images=0 and "
                "run.best_by=loss, or give data with a validation split."
            )
        self.batch_size = min(self.batch_size, BATCH)
        self.features.register_forward_pre_hook(lambda *_: self.on_batch())

    def __call__(self, make: Make) -> dict[str, float]:
        """{"kid": to the validation images, "kid_train": to the training images, "rho"}. kid_train
        is left out where there is one training image, rho where most validation images are copies
        of training images."""
        train, validation, distances = self._reference
        generated = self._features(self._generated(make), None, "generated")
        values = {"kid": kid(generated, validation)}
        if len(train) > 1:
            values["kid_train"] = kid(generated, train)
        if median(distances) > 0:
            values["rho"] = rho(nearest(generated, train, 1).distances[:, 0], distances)
        return values

    def _generated(self, make: Make) -> np.ndarray:
        """[count, H, W, C] uint8"""
        classes = np.unique(self.dataset.labels[self.dataset.splits["train"]])
        labels = torch.from_numpy(np.resize(classes, self.count))  # in turn
        images = []
        for part in torch.arange(self.count).split(self.batch_size):
            self.on_batch()
            x0 = make([derive("light", k) for k in part.tolist()], labels[part].to(self.device))
            if not x0.isfinite().all():
                raise UserError(
                    "the images generated for run.kid_images hold NaN or infinity: the model has "
                    "diverged. Usual cures: a lower optimizer.lr, a longer train.warmup, "
                    "train.precision=fp32."
                )
            images.append(to_uint8(x0).cpu())
        return torch.cat(images).numpy()

    @cached_property
    def _reference(self) -> Reference:
        """Computed once in a process."""
        data = self.dataset
        train, validation = (
            self._features(data.images, spread(data.splits[split], MOST, data.labels), split)
            for split in ("train", "validation")
        )
        distances = nearest(validation, train, 1).distances[:, 0]
        if not median(distances) > 0:
            log.warning(
                "rho is left out: half of the validation images or more are equal to training "
                "images."
            )
        return Reference(train, validation, distances)

    def _features(self, images: np.ndarray, rows: np.ndarray | None, which: str) -> Tensor:
        desc = f"features of {which} images"
        view = partial(to_picture, shown=self.shown)
        return extract(self.features, images, rows, BATCH, desc, self.device, view).features
