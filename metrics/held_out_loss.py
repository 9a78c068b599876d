"""Held-out loss: the squared error of the predicted noise on images that training does not see, by
decile of t."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.pixels import to_x0
from data.splits import spread
from diffusion.denoiser import Denoiser
from metrics.resampling import Groups
from runtime.seeds import generator

CHUNK = 64
WINDOW = 17  # draws that a mean at a t is of


class HeldOut(NamedTuple):
    """Draw by draw, on the CPU; the k-th draw of two denoisers is of the same image, t and noise.

    errors: [draws] float64, in units of noise. t: [draws] in 1..T. image: [draws], which of those
    drawn. steps: T. groups: of each image drawn, see metrics.resampling.
    """

    errors: Tensor
    t: Tensor
    image: Tensor
    steps: int
    groups: Groups = None

    @property
    def decile(self) -> Tensor:
        """[draws] of t, 0 (lowest noise) to 9."""
        return (self.t - 1) * 10 // self.steps

    def values(self) -> dict[str, float]:
        """{"loss": mean over t, "loss_t0" .. "loss_t9": by decile of t}; a decile that no draw fell
        into is left out."""
        by_decile = {
            f"loss_t{d}": self.errors[self.decile == d].mean().item()
            for d in self.decile.unique().tolist()
        }
        return {"loss": self.errors.mean().item()} | by_decile


@torch.no_grad()
def held_out_errors(
    denoiser: Denoiser,
    images: np.ndarray,
    labels: np.ndarray | None,
    rows: np.ndarray,
    draws: int,
    on_chunk: Callable[[int], object] = lambda drawn: None,
) -> HeldOut:
    """On a fixed grid of (image, t, noise) triples, the same for every run on the same rows.

    Images are spread evenly over the rows, class by class where there are labels, a quarter as many
    as draws or all rows where there are fewer. Each has the same number of t, four or a multiple,
    one in each of so many equal parts of 1..T, and over all images the t are even over 1..T.

    Args:
        denoiser: in eval mode.
        images: [*, H, W, C] uint8.
        labels: [*] of all images, None for the null class, as for images of a domain whose classes
            the network does not have.
        rows: of images, those to draw from.
        draws: the number of triples, rounded down to what the grid allows, and at least 4.
        on_chunk: told before each batch how many triples it has.
    Returns:
        Errors in units of noise whatever the network predicts; 1 is what predicting 0 would give.
    """
    T, device = denoiser.schedule.steps, denoiser.schedule.alpha_bar.device
    count, each = grid_of(len(rows), draws)
    chosen, t_all = drawn_rows(rows, draws, labels), stratified(count, each, T).flatten()
    image = torch.arange(count).repeat_interleave(each)
    errors: list[Tensor] = []
    for start in range(0, len(t_all), CHUNK):
        part = slice(start, start + CHUNK)
        index, t = chosen[image[part].numpy()], t_all[part].to(device)
        on_chunk(len(index))
        x0 = to_x0(torch.from_numpy(images[index]).to(device))
        noise = torch.randn(x0.shape, generator=generator("held-out", start)).to(device)
        condition = {} if labels is None else {"label": torch.from_numpy(labels[index]).to(device)}
        prediction = denoiser.forward_pass(x0, t, noise, condition).prediction
        errors.append((prediction.noise - noise).square().flatten(1).mean(1).cpu())
    return HeldOut(torch.cat(errors).double(), t_all, image, T)


def about_the_curve(errors: Tensor, t: Tensor) -> Tensor:
    """[draws]: what each error adds to the mean error at its t, so what the image and the noise do:
    the grid is even in t, and which t an image has says nothing of the images.

    The mean is the line through the nearest WINDOW errors in the order of t, and a residual is
    scaled by 1 / sqrt(1 - h), h the weight of an error in its own mean. Linear in errors: the
    residuals of a difference of two runs are the difference of their residuals.

    Source:
        Cleveland 1979, local linear regression; on an even grid Savitzky and Golay's filter.
    """
    from scipy.signal import savgol_filter  # takes a third of a second

    order, draws = t.argsort(stable=True), len(t)
    window = min(WINDOW, draws - 1 + draws % 2)
    if window < 3:
        return errors - errors.mean()
    edge, half = savgol_filter(np.eye(window), window, 1, axis=0).diagonal(), window // 2
    own = np.full(draws, 1 / window)
    own[:half], own[-half:] = edge[:half], edge[-half:]
    y = errors[order].numpy()
    residual = torch.from_numpy((y - savgol_filter(y, window, 1)) / np.sqrt(1 - own))
    return torch.empty_like(residual).scatter_(0, order, residual)


def drawn_rows(rows: np.ndarray, draws: int, labels: np.ndarray | None) -> np.ndarray:
    """Those of the rows that so many draws are of."""
    return spread(rows, grid_of(len(rows), draws)[0], labels)


def grid_of(rows: int, draws: int) -> tuple[int, int]:
    """How many images, of so many, and how many t of each."""
    count = min(rows, max(1, draws // 4))
    return count, 4 * max(1, draws // (4 * count))


def stratified(images: int, each: int, T: int) -> Tensor:
    """[images, each] t: an even grid over 1..T cut into `each` parts, of which every image has one
    t at random without replacement."""
    orders = [torch.randperm(images, generator=generator("held-out t", k)) for k in range(each)]
    places = torch.stack(orders, dim=1)
    return 1 + (2 * (torch.arange(each) * images + places) + 1) * T // (2 * images * each)
