"""The schedule of diffusers' schedulers, what the network predicts and its variance, as nodes of
our config. Their JSON is foreign input: a key that means nothing of ours is refused by name, and
what only says how they sample is told in the log."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from runtime.config_schema import parse
from runtime.errors import UserError, near

Node = dict[str, Any]
# of a process; a longer one is a mistake in the file, and would fill the memory
MOST_STEPS = 1_000_000
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SchedulerConfig:
    """What diffusers' schedulers (DDPM, DDIM, PNDM, DPM-Solver, Euler, ...) share and a model
    depends on, and what we have a word on; the rest is the sampler's matter."""

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str
    trained_betas: Sequence[float] | None = None
    variance_type: str = "fixed_small"
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = False
    timestep_spacing: str = "leading"


PARAMETERIZATIONS = {
    "epsilon": "PredictNoise",
    "sample": "PredictX0",
    "v_prediction": "PredictVelocity",
}
VARIANCES = {
    "fixed_small": "FixedSmall",
    "fixed_small_log": "FixedSmall",
    "fixed_large": "FixedLarge",
    "fixed_large_log": "FixedLarge",
    "learned_range": "LearnedRange",
}


def node(module: str, name: str, **settings: Any) -> Node:
    return {"_target_": f"diffusion.{module}.{name}", **settings}


HO = {
    "schedule": node("schedule", "linear", steps=1000, beta_start=1e-4, beta_end=0.02),
    "parameterization": node("parameterization", "PredictNoise"),
    "variance": node("variance", "FixedSmall"),
}


def read_scheduler(config: dict[str, Any], where: str) -> dict[str, Node]:
    """The nodes schedule, parameterization and variance. How such a scheduler samples is told in
    the log where it differs from ours.

    Args:
        where: the file, for messages.
    Raises:
        UserError: where it means something that is not here.
    """
    if config.get("trained_betas") is None and config.get("beta_schedule") is None:
        raise UserError(
            f"{where}: {config.get('_class_name', 'this scheduler')} says no betas (beta_schedule "
            "or trained_betas): it is not of a diffusion in discrete steps, as DDPM's and DDIM's "
            "are."
        )
    if "predict_epsilon" in config:  # before diffusers 0.10
        config = {"prediction_type": "epsilon" if config["predict_epsilon"] else "sample", **config}
    known = {f.name: config[f.name] for f in fields(SchedulerConfig) if f.name in config}
    if config.get("variance_type") is None:  # of DPM-Solver
        known.pop("variance_type", None)
    scheduler = parse(SchedulerConfig, known, [], where)
    if scheduler.variance_type == "learned":
        raise UserError(
            f'{where}: variance_type="learned": diffusers takes the output for the variance '
            "itself and not for its log, as Ho et al. do, so that it may come out negative. There "
            'is no such variance here; there is "learned_range", if that is what the network was '
            "trained with."
        )
    for key, names in (("prediction_type", PARAMETERIZATIONS), ("variance_type", VARIANCES)):
        if (value := getattr(scheduler, key)) not in names:
            raise UserError(
                f"{where}: {key}={json.dumps(value)}: there is no such {key} here; "
                f"{near(str(value), names)}"
            )
    _say_how_it_samples(scheduler, where)
    return {
        "schedule": _schedule(scheduler, where),
        "variance": node("variance", VARIANCES[scheduler.variance_type]),
        "parameterization": node("parameterization", PARAMETERIZATIONS[scheduler.prediction_type]),
    }


def _schedule(scheduler: SchedulerConfig, where: str) -> Node:
    steps, start, end = scheduler.num_train_timesteps, scheduler.beta_start, scheduler.beta_end
    kind, betas = scheduler.beta_schedule, scheduler.trained_betas
    if not 1 <= steps <= MOST_STEPS or not (0 < start < 1 and 0 < end <= 1):
        raise UserError(
            f"{where}: num_train_timesteps={steps}, beta_start={start}, beta_end={end}: there "
            f"must be 1 to {MOST_STEPS} steps, with betas between 0 and 1."
        )
    if betas is not None:
        if len(betas) != steps:
            raise UserError(
                f"{where}: {len(betas)} trained_betas, but num_train_timesteps={steps}."
            )
        found = node("schedule", "from_betas", betas=list(betas))
    elif kind in SCHEDULES:
        found = SCHEDULES[kind](steps=steps, beta_start=start, beta_end=end)
    else:
        raise UserError(
            f"{where}: beta_schedule={json.dumps(kind)}: no such schedule here; "
            f"{near(kind, SCHEDULES)} Any other can be written out as trained_betas."
        )
    if scheduler.rescale_betas_zero_snr:
        return node("schedule", "zero_terminal", schedule=found)
    return found


def _cosine(steps: int, **_: float) -> Node:
    return node("schedule", "cosine", steps=steps, offset=0.008, max_beta=0.999)


def _sigmoid(steps: int, beta_start: float, beta_end: float) -> Node:
    """Theirs is GeoDiff's, betas along a sigmoid from -6 to 6; ours is alpha_bar along one."""
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, steps))) * (beta_end - beta_start) + beta_start
    return node("schedule", "from_betas", betas=betas.tolist())


SCHEDULES: dict[str, Callable[..., Node]] = {
    "linear": partial(node, "schedule", "linear"),
    "scaled_linear": partial(node, "schedule", "scaled_linear"),
    "squaredcos_cap_v2": _cosine,
    "sigmoid": _sigmoid,
}


def _say_how_it_samples(scheduler: SchedulerConfig, where: str) -> None:
    if scheduler.thresholding:
        log.warning(
            "%s: thresholding=true: there is no dynamic thresholding here; x0 is clipped to "
            "[-1, 1] instead.",
            where,
        )
    if scheduler.clip_sample_range != 1:
        log.warning(
            "%s: clip_sample_range=%s: x0 is clipped to [-1, 1] here, or with "
            "sampler.clip=false not at all.",
            where,
            scheduler.clip_sample_range,
        )
    if not scheduler.clip_sample:
        log.warning("%s: clip_sample=false: sampler.clip=false samples as it does.", where)
    if (spacing := scheduler.timestep_spacing) != "leading":
        log.info(
            "%s: timestep_spacing=%s: choose spacing=trailing or such; it is not read from there.",
            where,
            spacing,
        )
