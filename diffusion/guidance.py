"""Guidance of a denoiser, away from a reference, and the labels that a network is trained on for
it."""

import torch
from torch import Tensor

from diffusion.denoiser import Denoise, Prediction
from diffusion.schedule import Time


def guide(conditional: Denoise, reference: Denoise, scale: float) -> Denoise:
    """reference + scale (conditional - reference). scale 1 is the conditional model, 0 the
    reference.

    Args:
        reference: the null class (classifier-free guidance, where the paper's w is scale - 1), the
            frozen source (domain guidance), or a smaller or less trained model with the same label
            (autoguidance).
    Source:
        Ho and Salimans 2022, eq. 6; Karras et al. 2024 (Guiding a Diffusion Model with a Bad
        Version of Itself), eq. 3.
    """

    def guided(x_t: Tensor, t: Time) -> Prediction:
        towards, away = conditional(x_t, t), reference(x_t, t)
        return towards._replace(
            x0=torch.lerp(away.x0, towards.x0, scale),
            noise=torch.lerp(away.noise, towards.noise, scale),
        )

    return guided


def drop_labels(label: Tensor, null: int, share: float, random: torch.Generator) -> Tensor:
    """This share of the labels [B], drawn at random, becomes the null class, so that one network
    learns the conditional and the unconditional model.

    Source:
        Ho and Salimans 2022, algorithm 1.
    """
    drop = torch.rand(len(label), generator=random, device=label.device)
    return torch.where(drop < share, null, label)
