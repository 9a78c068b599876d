"""Sets of images as the features that an evaluation measures in see them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.pixels import to_picture
from evaluation.protocol import ReferenceImages
from metrics.features import Embedding, Features, extract
from metrics.features.distances import Pixels
from metrics.resampling import Groups
from runtime.content import sha256_of
from runtime.files import locked, read_checked, write_checked

TOLD = {"train": "training images", "test": "held-out images"}


class ImageFeatures(NamedTuple):
    """Of one set of images, [N, D] each. logits: of Inception. perceptual: for the distance within
    clusters. groups: see metrics.resampling."""

    features: Tensor
    pixels: Tensor
    perceptual: Tensor
    logits: Tensor | None = None
    groups: Groups = None


@dataclass(frozen=True)
class FeatureExtractor:
    """cache: of features that other evaluations need too. shown: the channels of the images that
    features see, where they are not gray or colour as they are; pixels are all of them."""

    features: Features
    perceptual: Features
    device: torch.device
    batch_size: int
    cache: Path
    shown: Sequence[int] | None = None

    def extract(self, images: np.ndarray, what: str) -> ImageFeatures:
        """Of images [N, H, W, C] uint8. what: they are, for the progress bar."""
        found = self._compute(self.features, images, None, what)
        perceptual = found.features
        if self.features.identity != self.perceptual.identity:
            perceptual = self._compute(self.perceptual, images, None, what).features
        return ImageFeatures(found.features, _pixels(images, None, what), perceptual, found.logits)

    def extract_cached(self, reference: ReferenceImages, split: str) -> ImageFeatures:
        """The same of the images of a split, without logits."""
        return ImageFeatures(
            self._cached(self.features, reference, split),
            _pixels(reference.images, reference.rows[split], TOLD[split]),
            self._cached(self.perceptual, reference, split),
            groups=reference.groups_of(split),
        )

    def _cached(self, kind: Features, reference: ReferenceImages, split: str) -> Tensor:
        seen = [list(self.shown)] if self.shown else []
        key = sha256_of([kind.identity, reference.digests[split], *seen])[:16]
        path = self.cache / "features" / f"{key}.npy"
        with locked(path.with_suffix(".lock")):
            if read_checked(path) is not None:
                return torch.from_numpy(np.load(path))
            rows = reference.rows[split]
            found = self._compute(kind, reference.images, rows, TOLD[split]).features
            file = io.BytesIO()
            np.save(file, found.numpy())
            write_checked(path, file.getvalue())
            return found

    def _compute(
        self, kind: Features, images: np.ndarray, rows: np.ndarray | None, what: str
    ) -> Embedding:
        desc = f"{kind.short} features of {what}"
        view = partial(to_picture, shown=self.shown)
        return extract(kind, images, rows, self.batch_size, desc, self.device, view)

    @property
    def names(self) -> dict[str, Any]:
        """As evaluation.json has them."""
        return {
            "features": {
                name: getattr(self.features, name) for name in ("name", "short", "frechet")
            },
            "perceptual": {name: getattr(self.perceptual, name) for name in ("name", "short")},
        }


def _pixels(images: np.ndarray, rows: np.ndarray | None, what: str) -> Tensor:
    return extract(Pixels(), images, rows, desc=f"pixels of {what}").features
