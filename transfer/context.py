"""Where a transfer starts: what penalties, replay and other terms of a strategy are built from."""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor

from data.dataset import Dataset
from data.settings import DataSettings
from diffusion.denoiser import Denoiser, ForwardPass
from models.formats.misfit import Tensors
from runtime.content import sha256_of
from runtime.files import locked, read_checked, write_checked
from transfer.trained_weights import TrainedWeights


class Penalty:
    """What is added to the loss of a micro-batch of target images, built from a Start."""

    def __call__(self, step: ForwardPass) -> Tensor:
        """A scalar."""
        raise NotImplementedError


@dataclass(frozen=True)
class Start:
    """A run at its first step.

    Attributes:
        denoiser: the one that will train, on its device, with the source's weights and injected
            parameters that change nothing yet.
        trained: the source itself, with its own config.
        copied: the parameters that came from it.
        target, data: the images that are trained on, and their settings.
        first_kept: the label that the source's class 0 has in the target's class table, None where
            its classes are not kept.
        cache: for what is costly and depends on the source alone.
        new_rows: so many rows of a class table that was copied are of classes that the source does
            not have.
    """

    denoiser: Denoiser
    trained: TrainedWeights
    copied: Collection[str]
    target: Dataset
    data: DataSettings
    first_kept: int | None
    seed: int
    batch_size: int
    cache: Path
    new_rows: int = 0

    def frozen(self) -> Denoiser:
        """A copy of the start, which is the source in the target's shape: it never trains."""
        return copy.deepcopy(self.denoiser).requires_grad_(False).eval()

    def measured_once(
        self, kind: str, decided_by: list[Any], measure: Callable[[], Tensors]
    ) -> Tensors:
        """The tensors that measure() returns, which are kept in the cache under a hash of all that
        decides them."""
        path = self.cache / f"{kind}-{sha256_of(decided_by)[:16]}.safetensors"
        with locked(path.with_suffix(".lock")):
            data = read_checked(path)
            if data is None:
                tensors = {name: x.cpu().contiguous() for name, x in measure().items()}
                data = safetensors.torch.save(tensors)
                write_checked(path, data)
        return safetensors.torch.load(data)

    def labels_of(self, source: np.ndarray) -> np.ndarray:
        """The source's labels [N] as the target's network knows them: its kept rows, or the null
        class."""
        if self.first_kept is None:
            return np.full_like(source, self.denoiser.network.classes)
        return source + self.first_kept
