"""Distances between images that the target keeps from its source: pairwise similarity."""

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.denoiser import ForwardPass
from runtime.errors import UserError
from transfer.context import Penalty, Start


class PairwiseSimilarity(Penalty):
    """What DDPM-PA (Zhu et al. 2022, arXiv 2211.03264) and DomainStudio (Zhu et al. 2023, arXiv
    2306.14153) add to the loss, with x the predictions of x0, of the student or the source, and hf
    the Haar bands of high frequency:

        weight KL(x) + high_frequency_weight KL(hf(x)) + reconstruction_weight mean (hf(student's x)
        - hf(x0))^2

    KL is similarity_kl. The published code was read, the papers' equations could not be. There, 3
    images of a batch are compared and KLDivLoss averages over the pairs, so its weights 4, 4, 1 are
    2, 2, 1 here (for n images, 4 / (n - 1)); the third was 0.05 in the code as first published
    (commit a877a21 of bbzhu-jy16/DomainStudio) and is 1 since the next (cc69341); both KLs are of
    the source to the student (its text-to-image script turns the second one round); and without a
    learned variance it leaves out the second and the third term, which we do not. x is not clipped:
    a network that predicts noise has an error of x as large as that of the noise times 1 / SNR, so
    the third term is mostly about high noise.
    """

    def __init__(
        self,
        start: Start,
        *,
        weight: float,
        high_frequency_weight: float,
        reconstruction_weight: float,
    ):
        if not min(weight, high_frequency_weight, reconstruction_weight) >= 0:
            raise UserError(
                f"PairwiseSimilarity: weight={weight}, "
                f"high_frequency_weight={high_frequency_weight} and reconstruction_weight="
                f"{reconstruction_weight} must not be negative."
            )
        self.weight, self.high_frequency_weight = weight, high_frequency_weight
        self.reconstruction_weight = reconstruction_weight
        self.source = start.frozen()

    def __call__(self, step: ForwardPass) -> Tensor:
        check_images(len(step.x_t))
        with torch.no_grad():
            source = self.source(step.x_t, step.t, step.condition).x0
        student = step.prediction.x0
        # a cosine in bf16 would be off by more than the images differ
        with torch.autocast(student.device.type, enabled=False):
            return (
                self.weight * similarity_kl(source, student)
                + self.high_frequency_weight
                * similarity_kl(high_frequencies(source), high_frequencies(student))
                + self.reconstruction_weight
                * F.mse_loss(high_frequencies(student), high_frequencies(step.x0))
            )


def check_images(n: int) -> None:
    """Checks that a micro-batch has images to compare.

    Raises:
        UserError: where they are fewer than 3.
    """
    if n < 3:
        raise UserError(
            f"PairwiseSimilarity compares images within a micro-batch, which has {n}: at least 3 "
            "are needed. Raise train.batch_size or lower train.accumulation (a micro-batch has "
            "batch_size / accumulation images)."
        )


def log_similarity(x: Tensor) -> Tensor:
    """For image i the log softmax, over the other images j, of cos(x_i, x_j).

    Args:
        x: [B, ...].
    Returns:
        [B, B - 1].
    """
    B = len(x)
    x = F.normalize(x.flatten(1))
    cosine = x @ x.T
    # Without its diagonal: after the first value, each run of B + 1 ends with one of the diagonal.
    others = cosine.flatten()[1:].view(B - 1, B + 1)[:, :-1].reshape(B, B - 1)
    return others.log_softmax(1)


def similarity_kl(source: Tensor, student: Tensor) -> Tensor:
    """KL(source's || student's) of the similarities, nats, mean over the images."""
    return F.kl_div(
        log_similarity(student), log_similarity(source), reduction="batchmean", log_target=True
    )


def high_frequencies(x: Tensor) -> Tensor:
    """LH + HL + HH of the orthonormal Haar transform, L = (1, 1) / sqrt 2 and H = (-1, 1) / sqrt 2,
    added up as in the published code.

    Args:
        x: [B, C, H, W]. Of an odd size, the last row or column has no partner and is left out.
    Returns:
        [B, C, H/2, W/2].
    """
    H, W = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    top, bottom = x[..., 0:H:2, :W], x[..., 1:H:2, :W]
    a, b = top[..., 0::2], top[..., 1::2]
    c, d = bottom[..., 0::2], bottom[..., 1::2]
    # LH, HL, HH
    return (b + d - a - c) / 2 + (c + d - a - b) / 2 + (a + d - b - c) / 2
