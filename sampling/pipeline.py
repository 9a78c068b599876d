"""Images from trained weights: what sample.py, evaluate.py and a notebook share.

from sampling import load
model = load("runs/pretrain_demo/NAME")
images = model.sample(16, seed=0)          # [16, C, H, W] in [-1, 1]
model.to_pil(images)[0].save("image.png")
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.pixels import to_picture, to_uint8
from diffusion.denoiser import Condition, Denoise, Denoiser
from diffusion.generate import SamplerSettings, generate, steps_of, warn_of_start
from diffusion.guidance import guide
from diffusion.samplers import ddim
from diffusion.spacing import log_snr_steps
from kernels import dispatch
from runtime.checkpoint import Which
from runtime.device import pick_device
from runtime.errors import UserError, near
from runtime.precision import arithmetic, pick_precision
from runtime.seeds import derive
from sampling.cuda_graph import cast_ahead, prepared
from sampling.guidance_reference import GuidanceReference, open_reference
from transfer.trained_weights import (
    TrainedWeights,
    open_weights,
    source_of,
    start_of,
    stated_config,
)

NULL_CLASS, SOURCE = "null_class", "source"
Label = int | str | Sequence[int] | None
OnStep = Callable[[Sequence[int], Tensor, int], object]  # (image numbers, predicted x0, t)


@dataclass(frozen=True)
class SampleRequest:
    """Which images are wanted. Image k is a function of (seed, k), whatever the batch it is made
    in.

    Args:
        label: a class by name or number, "all" for each in turn, a list of numbers for these in
            turn, None for the null class.
        guidance: away from the reference, 1 for none.
        reference: NULL_CLASS (classifier-free guidance), SOURCE (domain guidance), or the name of
            other weights (autoguidance).
    """

    sampler: SamplerSettings
    n: int
    seed: int = 0
    batch_size: int = 64
    label: Label = None
    guidance: float = 1.0
    reference: str = NULL_CLASS
    precision: str = "fp32"
    kernels: dispatch.Kernels = "auto"


def _readied(denoiser: Denoiser, steps: Sequence[int]) -> Callable[[Condition | None], Denoise]:
    """condition -> Denoise. On a CPU the denoiser itself: there is little to spare, and the images
    keep their bits."""
    if denoiser.schedule.alpha_bar.is_cuda:
        return prepared(denoiser, steps)
    return lambda condition: partial(denoiser, condition=condition)


def _check_finite(numbers: Sequence[int], x0: Tensor) -> None:
    finite = x0.isfinite().flatten(1).all(1).tolist()
    if bad := [k for k, fine in zip(numbers, finite, strict=True) if not fine]:
        raise UserError(
            f"{len(bad)} of {len(numbers)} images are not finite (NaN or infinite), image {bad[0]} "
            "first: the network has diverged, or precision=bf16 is too coarse for it. "
            "precision=fp32 and an earlier checkpoints/step_N tell which."
        )


def class_labels(
    label: Label, classes: Sequence[str], images: Sequence[int], untold: Sequence[str] = ()
) -> Tensor | None:
    """[B] the class of each image, or None for the null class. untold: the classes of the images of
    a model that was trained without them."""
    if label is None:
        return None
    if not classes:
        those = (
            f"those of its images, {', '.join(untold[:12])}" if untold else "those of its images"
        )
        raise UserError(
            f"label={label}: this model has no classes, as its model.classes is 0; one that was "
            f"trained with model.classes=auto has {those}."
        )
    if label == "all":
        label = range(len(classes))
    if isinstance(label, int | str):
        label = [class_number(label, classes, "all")]
    return torch.tensor([label[k % len(label)] for k in images])


def class_number(label: int | str, classes: Sequence[str], *others: str) -> int:
    """A class by its name or number. others: what may be given in place of one."""
    if str(label) in classes:
        return classes.index(str(label))
    if not isinstance(label, int) or not 0 <= label < len(classes):
        raise UserError(f"label={label}: no such class; {near(str(label), [*classes, *others])}")
    return label


@dataclass(frozen=True)
class Pipeline:
    """A trained model that is sampled from. source: where what it was trained from is, if that
    moved. shown: the channels that pictures show, counted from 1; None: those of its config."""

    weights: TrainedWeights
    device: torch.device
    which: Which = "ema"
    source: str | None = None
    shown: Sequence[int] | None = None

    @cached_property
    def denoiser(self) -> Denoiser:
        return self.weights.config.frozen_denoiser(self.weights.load(self.which), self.device)

    @cached_property
    def source_denoiser(self) -> Denoiser:
        """What the run started from, for domain guidance (Zhong et al. 2025)."""
        config = self.weights.config
        start = start_of(config, source_of(self.weights.origin, config, self.source))
        return config.frozen_denoiser(start, self.device)

    @cached_property
    def _opened(self) -> dict[str, GuidanceReference]:
        """Other weights by their names."""
        return {}

    def open_reference(self, name: str) -> GuidanceReference | None:
        """Other weights that guidance leads away from; None for the null class and the source.

        Raises:
            UserError: where there are none, or they do not go with this model.
        """
        if name not in (NULL_CLASS, SOURCE) and name not in self._opened:
            self._opened[name] = open_reference(name, self.weights, self.which, self.device)
        return self._opened.get(name)

    @property
    def classes(self) -> Sequence[str]:
        """Names of its labels; none without classes."""
        return self.weights.classes if self.denoiser.network.classes else []

    @torch.no_grad()
    def batches(
        self,
        request: SampleRequest,
        numbers: Sequence[int],
        on_step: OnStep = lambda numbers, x0, t: None,
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Makes the images with these numbers, batch by batch.

        Args:
            on_step: told the first predicted x0 of a batch at each t.
        Yields:
            (numbers, images [B, C, H, W] in about [-1, 1]).
        Raises:
            UserError: where images are not finite, or a label is unknown.
        """
        denoiser, shape = self.denoiser, self.weights.config.image_shape
        other = self.open_reference(request.reference)
        reference = self.source_denoiser if request.reference == SOURCE else denoiser
        reference = other.denoiser if other else reference
        schedule, device = denoiser.schedule, self.device
        precision = pick_precision(request.precision, device)
        dispatch.select(request.kernels, device)
        steps = steps_of(schedule, request.sampler)[:-1]
        if numbers:
            warn_of_start(schedule, request.sampler, shape)
        if precision == "bf16":
            for each in {denoiser, reference}:
                cast_ahead(each.network, torch.bfloat16)
        with arithmetic(precision, device)():
            ready = {each: _readied(each, steps) for each in {denoiser, reference}}
            for start in range(0, len(numbers), request.batch_size):
                batch = numbers[start : start + request.batch_size]
                labels = class_labels(request.label, self.classes, batch, self.weights.classes)
                denoise = ready[denoiser](None if labels is None else {"label": labels.to(device)})
                if request.guidance != 1:
                    theirs = other.condition(labels) if other else None
                    denoise = guide(denoise, ready[reference](theirs), request.guidance)
                seeds = [derive(request.seed, "image", k) for k in batch]
                watch = partial(on_step, batch)
                x0 = generate(denoise, schedule, request.sampler, shape, seeds, watch)
                _check_finite(batch, x0)
                yield batch, x0

    def sample(
        self,
        n: int,
        seed: int = 0,
        label: Label = None,
        guidance: float = 1.0,
        reference: str = NULL_CLASS,
        steps: int = 50,
        sampler: SamplerSettings | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Images 0 .. n - 1 of this seed, the same that sample.py writes.

        Args:
            label: a class by name or number, "all" for each in turn, None for the null class.
            guidance: away from the reference; 1 is none.
            reference: null_class (classifier-free guidance), source (domain guidance), or other
                weights, of whatever load() opens, a smaller or less trained model (autoguidance).
            steps: of DDIM, evenly in the log of the signal-to-noise ratio; sampler in place of it.
        Returns:
            [n, C, H, W] in about [-1, 1], on the CPU.
        """
        settings = sampler or SamplerSettings(ddim, log_snr_steps, steps)
        request = SampleRequest(settings, n, seed, batch_size, label, guidance, reference)
        return torch.cat([x0.cpu() for _, x0 in self.batches(request, range(n))])

    def view(self, images: np.ndarray) -> np.ndarray:
        """[..., C] -> [..., 1 or 3], the channels that pictures show."""
        return to_picture(images, self.shown or self.weights.config.shown)

    def to_pil(self, images: Tensor) -> list[Image.Image]:
        """[n, C, H, W] in about [-1, 1] -> pictures of 8 bits."""
        pixels = self.view(to_uint8(images).cpu().numpy())
        gray = pixels.shape[-1] == 1  # [n, H, W], as Pillow has it
        return [Image.fromarray(image) for image in (pixels[..., 0] if gray else pixels)]


def load(
    name: str,
    device: str | int = "auto",
    weights: Which = "ema",
    source: str | None = None,
    trained_as: str | None = None,
    overrides: Sequence[str] = (),
) -> Pipeline:
    """Opens a run or one of its checkpoints, a folder in diffusers' format, OWNER/NAME on the Hub,
    a published file, or a file of a run's difference from its source.

    Args:
        device: auto, cpu, cuda, cuda:1 or 1.
        weights: the running average (EMA); "model", the last iterate; "average", that of another
            length which was chosen for a run.
        source: where the source of a run or of a difference is, if it was moved.
        trained_as, overrides: of a bare file of weights, the experiment whose settings it has, and
            changes of these.
    Raises:
        UserError: where there is nothing of that name, or it is damaged.
    """
    stated = stated_config(name, trained_as, overrides)
    found = open_weights(name, weights, stated=stated, source=source)
    return Pipeline(found, pick_device(device), weights, source)
