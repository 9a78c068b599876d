"""Membership inference by the loss: whether a network predicts the noise of its training images
better than that of images which it never saw."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from data.pixels import to_x0
from diffusion.denoiser import Denoiser
from metrics.auroc import auroc, weighted_auroc, within_its_range
from metrics.estimate import Estimate, estimate
from metrics.resampling import Groups, drawn_from, resampled
from runtime.errors import UserError
from runtime.seeds import generator

IMAGES = 256  # at most, of either kind
EACH = 1  # t in a decile: of 40 memorised X-rays five move the AUC of no decile by more than 0.05
CHUNK = 64


def times(T: int) -> Tensor:
    """[10 EACH]: the middle of each of so many equal parts of 1..T."""
    parts = 10 * EACH
    return 1 + (2 * torch.arange(parts) + 1) * T // (2 * parts)


@torch.no_grad()
def errors_at_times(
    denoiser: Denoiser,
    images: np.ndarray,
    labels: np.ndarray | None,
    rows: np.ndarray,
    on_chunk: Callable[[int], object] = lambda images: None,
) -> Tensor:
    """The squared error of the predicted noise of each image at the same t and, at each of these,
    in the same noise, so that images compare with one another. (The held-out loss gives each image
    other t, which compares networks.)

    Args:
        denoiser: in eval mode.
        images: [*, H, W, C] uint8.
        labels: [*] of all images, None for the null class.
        rows: of images, N of them.
        on_chunk: told after each batch of how many images it was.
    Returns:
        [N, 10 EACH] float64 on the CPU, in units of noise.
    Raises:
        UserError: where an error is not finite.
    """
    device, found = denoiser.schedule.alpha_bar.device, []
    for start in range(0, len(rows), CHUNK):
        index = rows[start : start + CHUNK]
        x0 = to_x0(torch.from_numpy(images[index]).to(device))
        condition = {} if labels is None else {"label": torch.from_numpy(labels[index]).to(device)}
        parts = []
        for k, t in enumerate(times(denoiser.schedule.steps).tolist()):
            noise = torch.randn(x0.shape[1:], generator=generator("membership", k)).to(device)
            noise, t = noise.expand_as(x0), torch.full((len(x0),), t, device=device)
            prediction = denoiser.forward_pass(x0, t, noise, condition).prediction
            parts.append((prediction.noise - noise).square().flatten(1).mean(1).cpu())
        found.append(torch.stack(parts, dim=1).double())
        on_chunk(len(index))
    errors = torch.cat(found)
    if not errors.isfinite().all():
        raise UserError("the network's errors are not finite: it has diverged. Use another step.")
    return errors


def loss_attack(
    members: Tensor, others: Tensor, groups: tuple[Groups, Groups] = (None, None)
) -> Estimate:
    """The AUROC of minus the mean error over t, of members [n, 10 EACH] against others [m, 10
    EACH]: 0.5 where the error tells nothing, 1 where each member's is below all others'.

    Its replicates draw either kind with replacement, or where it has groups, of members and of
    others, these; of two networks judged on as many images they are paired.

    Source:
        Yeom et al. 2018, the threshold on the loss; of diffusion models Matsumoto et al. 2023,
        where each t is an attack of its own, and Carlini et al. 2023.
    """
    ours, theirs = -members.mean(1), -others.mean(1)
    a = resampled(len(ours), 200, "members", groups=groups[0])
    b = resampled(len(theirs), 200, "non-members", groups=groups[1])
    fewest = drawn_from((len(ours), groups[0]), (len(theirs), groups[1]))
    replicates = weighted_auroc(ours, theirs, a, b)
    return within_its_range(estimate(auroc(ours, theirs), replicates, *fewest))


def attack_by_decile(members: Tensor, others: Tensor) -> list[float]:
    """The same AUROC of the mean error at the t of each decile, that of the lowest noise first."""
    deciles = zip(members.split(EACH, dim=1), others.split(EACH, dim=1), strict=True)
    return [auroc(-ours.mean(1), -theirs.mean(1)) for ours, theirs in deciles]


def paired_difference(one: Estimate, other: Estimate) -> Estimate:
    """one - other, of the same images, paired."""
    replicates = torch.tensor(one["replicates"]) - torch.tensor(other["replicates"])
    value, of_images = one["value"] - other["value"], one.get("of_images")
    return estimate(value, replicates, one["images"], of_images)
