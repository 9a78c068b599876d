"""The sections of a run's config that belong to no other package, as frozen dataclasses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from kernels.dispatch import Kernels
from runtime.checkpoint import Which
from runtime.config_schema import Settings
from runtime.device import named_device

Precision = Literal["auto", "fp32", "tf32", "bf16"]
FEWEST = 10  # images that a KID is computed of
LONGEST = 12**-0.5  # average in ema_lengths: the plain mean of all steps


@dataclass(frozen=True)
class TrainSettings(Settings):
    """Numbers that decide what the weights become.

    Args:
        steps: 0 judges the start as it is.
        batch_size: images a step, whatever the accumulation.
        accumulation: micro-batches a step.
        warmup: steps over which the rate rises from 0.
        clip: largest norm of the gradient, null for none.
        ema_decay: of the running average, which warms up as min(decay, (1 + n) / (10 + n)).
        ema_lengths: sigma_rel of the averages that are kept beside it (training.power_average),
            from which those of other lengths are made afterwards.
        label_dropout: share of labels replaced by the null class.
        precision: auto is bf16 on a GPU that has it, else fp32; decided once and kept with the run.
    """

    steps: int
    batch_size: int
    accumulation: int
    warmup: int
    clip: float | None
    ema_decay: float
    label_dropout: float
    precision: Precision
    ema_lengths: Sequence[float] = ()

    def __post_init__(self) -> None:
        if min(self.batch_size, self.accumulation) < 1 or min(self.steps, self.warmup) < 0:
            raise ValueError(
                "batch_size and accumulation must be at least 1, steps and warmup at least 0."
            )
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of "
                f"accumulation={self.accumulation}."
            )
        if not 0 <= self.ema_decay < 1 or not 0 <= self.label_dropout <= 1:
            raise ValueError("ema_decay must be in [0, 1), label_dropout in [0, 1].")
        if self.clip is not None and self.clip <= 0:
            raise ValueError("clip must be above 0, or null for none.")
        lengths = list(self.ema_lengths)
        if len(set(lengths)) < len(lengths) or not all(0 < s <= LONGEST for s in lengths):
            raise ValueError(
                f"ema_lengths={lengths} must be different numbers above 0 and at most "
                f"{LONGEST:.3f}, the plain mean of all steps."
            )


@dataclass(frozen=True)
class RunSettings(Settings):
    """Where a run happens and what it tells; none of it changes the weights, but for rounding.

    Args:
        device: see runtime.device.pick_device.
        kernels: see kernels.dispatch.select.
        compile: torch.compile of the network that trains.
        root: runs go to root/EXPERIMENT/NAME.
        experiment: in place of the experiment's name.
        directory: where the run goes in place of that.
        cache: of decoded images.
        log_every, sample_every, checkpoint_every: in steps; evaluation and samples also come at the
            end.
        checkpoint_at: the steps of evaluation and checkpoint in place of each checkpoint_every;
            pictures then come with the first evaluation after each sample_every.
        keep_last: checkpoints kept besides the best.
        held_out_draws: (image, t, noise) triples of the held-out loss, four or more of each image.
        samples: images in the grid.
        kid_images: images generated at each evaluation, for KID and rho (training.online_kid), 0
            for none.
        best_by: what the checkpoint that is kept as the best is lowest in.
        deterministic: see runtime.device.repeat_bits.
        hours: what the process may take, from its start on, several runs of a sweep together: it
            saves in time and ends as one that was preempted, so that the same command goes on;
            null for no limit.
        restart: begin again where there are checkpoints and all are damaged, which are put aside.
        evaluate: command lines of evaluate.py, without its checkpoint, that follow the training
            (evaluation.after_training).
    """

    device: str | int
    kernels: Kernels
    compile: bool
    root: str
    directory: str | None
    cache: str
    log_every: int
    sample_every: int
    checkpoint_every: int
    keep_last: int
    held_out_draws: int
    samples: int
    kid_images: int
    best_by: Literal["loss", "kid"]
    deterministic: bool = False
    hours: float | None = None
    restart: bool = False
    experiment: str | None = None
    evaluate: Sequence[str] = ()
    checkpoint_at: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.hours is not None and self.hours <= 0:
            raise ValueError("hours must be above 0, or null for no limit.")
        named_device(self.device)  # a name that is none is told before anything is read
        if self.experiment is not None and (not self.experiment or "/" in self.experiment):
            raise ValueError(
                f"experiment={self.experiment!r} is the name of one folder below run.root: it must "
                "have letters, and no slash."
            )
        if self.kid_images != 0 and self.kid_images < FEWEST:
            raise ValueError(
                f"kid_images={self.kid_images} is too few for a KID: 0 for none, or at least "
                f"{FEWEST}."
            )
        if self.best_by == "kid" and not self.kid_images:
            raise ValueError(
                "best_by=kid needs generated images: set run.kid_images, 500 for example, or "
                "run.best_by=loss."
            )
        for name in (
            "log_every",
            "sample_every",
            "checkpoint_every",
            "keep_last",
            "held_out_draws",
            "samples",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1.")
        self._check_steps()

    def _check_steps(self) -> None:
        at = self.checkpoint_at
        if at is not None and any(b <= a for a, b in pairwise([0, *at])):
            raise ValueError(
                f"checkpoint_at={list(at)}: they are steps, counted from 1, that rise; null for "
                "each checkpoint_every."
            )


@dataclass(frozen=True)
class SourceSettings(Settings):
    """Where the weights come from, and which are copied.

    Args:
        from_: an experiment's name, a run directory or a checkpoint, a folder in diffusers' format,
            OWNER/NAME on the Hugging Face Hub, or a file of weights; null starts at random.
        include: globs of the parameters that are copied.
        depth: only the first so many parts of the network, see transfer.adapt_weights.depth_of;
            null for all.
        copy: what is copied of a tensor, null for its values (transfer.adapt_weights).
        keep_classes: the class table has the source's classes after the target's.
        weights: the running average or the last iterate.
        train: train a missing source even if that takes long.
        overrides: of the source experiment's own settings.
    """

    from_: str | None = None
    include: Sequence[str] = ("*",)
    depth: int | None = None
    copy: Callable[[Tensor, torch.Generator], Tensor] | None = None
    keep_classes: bool = False
    weights: Which = "ema"
    train: bool = False
    overrides: Sequence[str] = ()

    @property
    def used(self) -> bool:
        return self.from_ is not None and len(self.include) > 0

    @property
    def whole(self) -> bool:
        """Whether all is to be copied, and not a part that somebody chose."""
        return list(self.include) == ["*"] and self.depth is None


@dataclass(frozen=True)
class RuleSettings(Settings):
    """What trains, when, and at which rate; transfer.freezing_and_rates.Rule is the same with its
    moments as steps.

    Args:
        pattern: glob on the full name of a parameter (`*` also crosses dots).
        learning_rate_scale: times the optimizer's rate; 0 freezes.
        from_, until: active while from <= step < until, steps counted from 0; each a step or a
            share of the run, "30%".
        optional: the pattern may match nothing, such as the class table of a network without
            classes.
    """

    pattern: str
    learning_rate_scale: float = 1.0
    from_: float | str = 0
    until: float | str | None = None
    optional: bool = False


@dataclass(frozen=True)
class TransferSettings(Settings):
    """A strategy. Its penalties, replay and loss are factories, called with a
    transfer.context.Start.

    Args:
        name: for the run's directory.
        rules: what trains when.
        inject: adapters that are put into the network (transfer.adapters).
        penalties: what is added to the loss (transfer.context.Penalty).
        replay: source images that are trained on too.
        loss: in place of the section loss.
    """

    name: str
    rules: Sequence[RuleSettings]
    inject: Sequence[Any] = ()
    penalties: Sequence[Callable[..., Any]] = ()
    replay: Callable[..., Any] | None = None
    loss: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ValueError(
                f"name={self.name!r} begins the name of a directory: it must have letters, and "
                "no slash."
            )

    @property
    def terms(self) -> dict[str, Any]:
        """What is built from where the run starts, bound to its settings, by its place in the
        config."""
        penalties = {f"penalties[{k}]": penalty for k, penalty in enumerate(self.penalties)}
        others = {"replay": self.replay, "loss": self.loss}
        return penalties | {name: term for name, term in others.items() if term is not None}

    @property
    def needs_source(self) -> bool:
        """While it trains, and not only at its start."""
        return bool(self.terms)
