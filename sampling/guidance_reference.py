"""Other weights that guidance leads away from: a smaller or less trained model of the same images
(autoguidance)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from config.run_config import RunConfig
from diffusion.denoiser import Condition, Denoiser
from diffusion.schedule import NoiseSchedule
from runtime.checkpoint import Which
from runtime.errors import UserError
from transfer.trained_weights import TrainedWeights, open_weights

log = logging.getLogger("sample")


@dataclass(frozen=True)
class GuidanceReference:
    """labels: [classes], the label here of each label of the model; None: it is given none, which
    is its null class where it has classes."""

    weights: TrainedWeights
    labels: Tensor | None
    which: Which
    device: torch.device

    @cached_property
    def denoiser(self) -> Denoiser:
        return self.weights.config.frozen_denoiser(self.weights.load(self.which), self.device)

    def condition(self, labels: Tensor | None) -> Condition | None:
        """labels: [B], of the model; None for its null class."""
        if labels is None or self.labels is None:
            return None
        return {"label": self.labels[labels].to(self.device)}


def open_reference(
    name: str, model: TrainedWeights, which: Which, device: torch.device
) -> GuidanceReference:
    """name: whatever open_weights opens; a bare file that does not say its settings has the
    model's.

    Raises:
        UserError: where there is none, or its images or its schedule are other ones.
    """
    try:
        found = open_weights(name, which, otherwise=model.config)
    except UserError as error:
        raise UserError(
            f"reference={name}: neither null_class nor source, and no weights that can be read: "
            f"{error}"
        ) from error
    check_same_process(name, model.config, found.config)
    return GuidanceReference(found, labels_in(name, model, found), which, device)


def check_same_process(name: str, model: RunConfig, reference: RunConfig) -> None:
    """Both denoise the same x_t at the same t.

    Raises:
        UserError: with the difference.
    """
    if reference.image_shape != model.image_shape:
        theirs, ours = (
            f"{channels} channels of {height}x{width}"
            for channels, height, width in (reference.image_shape, model.image_shape)
        )
        raise UserError(
            f"reference={name}: its images have {theirs}, and those of this model {ours}. A "
            "reference is trained on images of the same size."
        )
    if how := _told_schedules(model.schedule, reference.schedule):
        raise UserError(
            f"reference={name}: its noise schedule has {how}. A reference is trained with the same "
            "schedule=."
        )


def _told_schedules(ours: NoiseSchedule, theirs: NoiseSchedule) -> str:
    """Where they differ by more than rounding; nothing where they do not."""
    if ours.steps != theirs.steps:
        return f"T = {theirs.steps}, and that of this model T = {ours.steps}"
    if torch.allclose(ours.alpha_bar, theirs.alpha_bar, rtol=1e-4):
        return ""
    t = int((ours.alpha_bar - theirs.alpha_bar).abs().argmax())
    return (
        f"alpha_bar = {theirs.alpha_bar[t].item():.4g} at t = {t}, and that of this model "
        f"{ours.alpha_bar[t].item():.4g}"
    )


def labels_in(name: str, model: TrainedWeights, reference: TrainedWeights) -> Tensor | None:
    """See GuidanceReference.labels: classes of the same names are found by these, and as many
    others by their numbers, which is said."""
    ours, theirs = _known(model), _known(reference)
    if len(ours) != len(theirs):
        log.warning(
            f"reference={name}: it knows {len(theirs)} classes and this model {len(ours)}, so it "
            f"is given no label{', but its null class' if theirs else ''}."
        )
        return None
    if set(ours) == set(theirs):
        return torch.tensor([list(theirs).index(each) for each in ours], dtype=torch.int64)
    log.warning(
        f"reference={name}: its classes are called {', '.join(theirs[:6])}, and those of this "
        f"model {', '.join(ours[:6])}: they are taken for the same, number by number."
    )
    return torch.arange(len(ours))


def _known(weights: TrainedWeights) -> Sequence[str]:
    """The classes that the network is told of."""
    return weights.classes if weights.config.classes else []
