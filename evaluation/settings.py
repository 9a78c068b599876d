"""What evaluate.py is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from config.sections import Precision
from diffusion.generate import SamplerSettings
from kernels.dispatch import Kernels
from metrics.features import Features
from runtime.checkpoint import Which
from runtime.config_schema import Settings
from runtime.errors import near

# Those that came later. They change no other number, so that no protocol names them: an evaluation
# of before is of the same one, and gets what it lacks.
AUDITS = ("membership", "classification")
METRICS = ("quality", "memorization", "loss", "bound", "forgetting", "baselines", *AUDITS)
OF_IMAGES = ("quality", "memorization", "baselines")  # those that need no network
OF_NETWORK = ("loss", "bound", *AUDITS)  # those that need no features of images


@dataclass(frozen=True)
class EvaluateSettings(Settings):
    """See conf/evaluate.yaml."""

    sampler: SamplerSettings
    features: Features
    perceptual: Features
    checkpoint: str | None
    images: str | None
    train: str | None
    test: str | None
    metrics: str | Sequence[str]
    overrides: Sequence[str]
    source: str | None
    n: int
    seed: int
    select: Literal["best", "last", "every"]
    weights: Which
    label: int | str | None
    held_out_draws: int
    bound_images: int | None
    bound_steps: int | None
    out: str | None
    cache: str
    batch_size: int
    device: str | int
    precision: Precision
    kernels: Kernels
    shown: Sequence[int] | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        for name in self._named:
            if name not in METRICS:
                raise ValueError(f"metrics: {name} is none of them; {near(name, METRICS)}")
        if not self.wanted:
            raise ValueError(
                f"metrics={list(self._named)}: nothing is asked for. metrics=all, or some of "
                f"[{','.join(METRICS)}]; with images= of [{','.join(OF_IMAGES)}]."
            )
        if self.checkpoint is None and (self.images is None or self.train is None):
            raise ValueError(
                "what is to be evaluated? checkpoint=RUN, or images=DIR with checkpoint=RUN or "
                "train=DIR test=DIR to compare with."
            )
        if self.checkpoint is not None and (self.train or self.test):
            raise ValueError(
                "train= and test= are for images= alone: with checkpoint= the images to compare "
                "with are the run's."
            )

        if self.select == "every" and (self.images is not None or self.weights == "average"):
            raise ValueError(
                "select=every is about each checkpoint of a run: with images= or weights=average "
                "leave it out."
            )

    def _check_numbers(self) -> None:
        for name in ("n", "held_out_draws", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1.")
        if self.bound_images is not None and self.bound_images < 1:
            raise ValueError("bound_images must be at least 1, or null for all held-out images.")
        if self.bound_steps is not None and self.bound_steps < 2:
            raise ValueError("bound_steps must be at least 2, or null for all steps.")

    @property
    def _named(self) -> Sequence[str]:
        if self.metrics == "all":
            return METRICS
        return [self.metrics] if isinstance(self.metrics, str) else self.metrics

    @cached_property
    def wanted(self) -> list[str]:
        """The metrics that are computed, in their order."""
        return [m for m in (METRICS if self.images is None else OF_IMAGES) if m in self._named]
