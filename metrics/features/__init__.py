"""What an image is to a metric: a vector. Features are chosen by config (conf/features), and a
metric sees matrices only."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from runtime.errors import UserError

Resample = Literal["bilinear", "bicubic"]


class Embedding(NamedTuple):
    features: Tensor  # [N, D] float32
    logits: Tensor | None = None  # [N, classes] float32, of Inception only


class Features(nn.Module):
    """images [B, H, W, C] uint8, C 1 or 3, of any size, on the device of the features -> Embedding.

    Args:
        name: in full, for captions.
        short: for headings.
        identity: what decides its numbers, as JSON: an evaluation with other weights is another
            protocol.
        frechet: what the Fréchet distance in these features is called; "FID" is said of Inception's
            alone.
    """

    def __init__(
        self, name: str, short: str, identity: dict[str, Any], frechet: str | None = None
    ) -> None:
        super().__init__()
        self.name, self.short, self.identity = name, short, identity
        self.frechet = frechet or f"Fréchet distance ({short})"


@torch.no_grad()
def extract(
    features: Features,
    images: np.ndarray | Sequence[np.ndarray],
    rows: Sequence[int] | np.ndarray | None = None,
    batch_size: int = 64,
    desc: str = "features",
    device: torch.device | str = "cpu",
    view: Callable[[np.ndarray], np.ndarray] = lambda images: images,
) -> Embedding:
    """Computed on device in fp32, returned on the CPU, in the order of rows.

    Args:
        images: [N, H, W, C] uint8, such as a memory map.
        rows: those that are wanted; None: all.
        view: [B, H, W, C] -> what the features take of it, such as data.pixels.to_picture.
    Raises:
        UserError: where features come out as NaN or infinity.
    """
    images = np.asarray(images)  # what is a memory map stays one
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"{desc}: images must be [N, H, W, C] of uint8, not {list(images.shape)} of "
            f"{images.dtype}."
        )
    rows = np.arange(len(images)) if rows is None else np.asarray(rows)
    if not len(rows):
        raise UserError(f"{desc}: there are no images to take features of.")
    features, parts = features.to(device), []
    with _in_full_precision(torch.device(device)):
        for start in tqdm(
            range(0, len(rows), batch_size), desc=desc, unit="batch", delay=2, leave=False
        ):
            batch = np.ascontiguousarray(view(images[rows[start : start + batch_size]]))
            embedding = features(torch.from_numpy(batch).to(device))
            parts.append([each.float().cpu() for each in embedding if each is not None])
    whole = [torch.cat(each) for each in zip(*parts, strict=True)]
    finite = torch.stack([each.isfinite().all(1) for each in whole]).all(0)
    if not finite.all():
        raise UserError(
            f"{desc}: NaN or infinity in the {features.name} of {int((~finite).sum())} of "
            f"{len(rows)} images, the first in row {rows[int(finite.int().argmin())]}: "
            "their weights are broken, or do not belong to this network."
        )
    return Embedding(*whole)


@contextlib.contextmanager
def _in_full_precision(device: torch.device) -> Iterator[None]:
    """fp32, whatever the run computes in: features of one set are compared with those that another
    process has kept of another."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def in_colour(images: Tensor) -> Tensor:
    """[B, H, W, 1 or 3] -> [B, 3, H, W], gray repeated."""
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"images must be [N, H, W, 1 or 3], not {list(images.shape)}.")
    return images.expand(-1, -1, -1, 3).permute(0, 3, 1, 2)


def resized(x: Tensor, size: int, resample: Resample) -> Tensor:
    """[B, 3, H, W] -> [B, 3, size, size]; antialiased where it becomes smaller. Bicubic goes beyond
    the range of x at edges."""
    return F.interpolate(x, size, mode=resample, antialias=True)
