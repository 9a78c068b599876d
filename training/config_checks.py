"""What is wrong with a config, told before any data is read and anything large is built."""

import functools
import inspect
from typing import Any

import torch

from config.run_config import NODES, OF_STUDIES, SETTINGS, VALUES, RunConfig
from diffusion.generate import steps_of
from diffusion.losses import TEACH_VARIANCE, hybrid_loss, simple_loss
from runtime.config_schema import describe, fits
from runtime.errors import UserError, near
from training.optimizer import weight_decay
from transfer.adapt_weights import draws
from transfer.adapters import check as check_frozen
from transfer.adapters import inject
from transfer.context import Penalty
from transfer.freezing_and_rates import ParameterPlan, rules_of
from transfer.pairwise_similarity import PairwiseSimilarity, check_images
from transfer.penalties import L2SP

SECTIONS = (*NODES, *SETTINGS)


def check_run_config(raw: dict[str, Any]) -> RunConfig:
    """A composed config as a record, each section of which is well formed.

    Raises:
        UserError: at the first wrong key, type or value, and at parts that cannot go together.
    """
    raw = {key: value for key, value in raw.items() if key not in OF_STUDIES}
    _check_sections(raw)
    asked = RunConfig(raw)
    config = asked.with_classes(1)  # how many there are is not known yet
    for section in SECTIONS:
        if section not in ("timesteps", "optimizer"):
            getattr(config, section)
    config.build_timesteps()
    # refused here, and not at the first picture, hours later
    steps_of(config.schedule, config.sampler)
    rules_of(config)
    weight_decay(config)
    _check_learning_rate(config)
    _check_loss(config)
    _check_terms(config)
    _check_penalties(config)
    if (config.transfer.needs_source or not config.transfer.rules) and not config.source.used:
        raise UserError(
            f"transfer={config.transfer.name} is about a source, and there is none: give "
            "source.from=, an experiment, a run or a checkpoint."
        )
    return asked.completed


def _check_sections(raw: dict[str, Any]) -> None:
    known = {*SECTIONS, *VALUES}
    for key in raw:
        if key not in known:
            raise UserError(f"{key}: no such setting; {near(key, known)}")
    for section in SECTIONS:
        if not isinstance(raw.get(section), dict):
            raise UserError(
                f"{section}={raw.get(section)} is not a mapping. What a file in conf/{section} "
                "says stands below its keys."
            )
    for key, kind in VALUES.items():
        if key not in raw:
            raise UserError(f"{key} must be set.")
        if not fits(raw[key], kind):
            raise UserError(f"{key}={raw[key]!r} is not {describe(kind)}.")


def _check_learning_rate(config: RunConfig) -> None:
    """It lasts as long as the run."""
    steps = config.train.steps
    if steps and not config.learning_rate(steps - 1) > 0:
        raise UserError(
            f"learning_rate: it is 0 before the last of train.steps={steps}, so that nothing would "
            "train from there on. Leave learning_rate.steps out, which then is train.steps, or "
            "give no fewer steps than these."
        )


def _check_loss(config: RunConfig) -> None:
    """A learned variance and a loss that teaches it go together, and a loss of the strategy's own
    stands in place of the plain one."""
    loss = getattr(config.loss, "func", config.loss)
    if config.variance.outputs == 2 and loss not in TEACH_VARIANCE:
        raise UserError(
            "this loss does not teach the variance: with a learned variance use loss=hybrid or "
            "loss=bound, or choose variance=fixed_large."
        )
    if loss is hybrid_loss and config.variance.outputs == 1:
        raise UserError(
            "loss=hybrid adds a term for a learned variance, and this one is fixed: use "
            "variance=learned_range or loss=simple."
        )
    strategy = config.transfer
    if strategy.loss and (loss is not simple_loss or getattr(config.loss, "keywords", None)):
        raise UserError(
            f"transfer={strategy.name} has a loss of its own, in place of the section loss: "
            "leave loss=simple."
        )


def _check_terms(config: RunConfig) -> None:
    """A term of a strategy is built later, from where the run starts: what its settings lack shows
    here."""
    strategy = config.transfer
    for k, injection in enumerate(strategy.inject):
        if not hasattr(injection, "on"):
            raise UserError(
                f"transfer.inject[{k}]: {config.raw['transfer']['inject'][k]['_target_']} is "
                "built to nothing that goes into a network, as transfer.lora.LoRA is (without "
                "_partial_)."
            )
    for where, term in strategy.terms.items():
        _check_bound(term, f"transfer.{where}")
        _check_kind(term, where)


def _check_bound(term: Any, where: str) -> None:
    """A node that is built with one argument lacks no other, nor do the nodes inside it."""
    try:
        inspect.signature(term).bind(None)
    except TypeError as error:
        raise UserError(f"{where}: {error}.") from error
    for key, inside in getattr(term, "keywords", {}).items():
        if isinstance(inside, functools.partial):
            _check_bound(inside, f"{where}.{key}")


def _check_kind(term: Any, where: str) -> None:
    """A penalty is a scalar and a loss a value for each image: one cannot stand in the other's
    place."""
    made, place = getattr(term, "func", term), where.partition("[")[0]
    if (
        inspect.isclass(made)
        and place != "replay"
        and issubclass(made, Penalty) != (place == "penalties")
    ):
        raise UserError(
            f"transfer.{where}: what {made.__module__}.{made.__name__} builds cannot stand in "
            f"transfer.{place}: penalties derive from transfer.context.Penalty, and a loss does "
            "not."
        )


def _check_penalties(config: RunConfig) -> None:
    """Terms that the rest of the config leaves no room for: one that draws weights to where they
    started, beside weight decay, which draws them to 0, or with weights that are not the source's;
    and one that compares images, with too few of them."""
    name, made = config.transfer.name, [getattr(p, "func", p) for p in config.transfer.penalties]
    penalties = [kind for kind in made if inspect.isclass(kind)]
    if any(issubclass(p, PairwiseSimilarity) for p in penalties):
        check_images(config.train.batch_size // config.train.accumulation)
    if not any(issubclass(p, L2SP) for p in penalties):
        return
    if draws(config.source):
        raise UserError(
            f"transfer={name} holds the weights near the source's, and with this copy= none is "
            "the source's: leave copy=values."
        )
    if decay := weight_decay(config):
        raise UserError(
            f"optimizer.weight_decay={decay:g} draws the weights to 0, and transfer={name} to "
            "where they started: set optimizer.weight_decay=0."
        )


def check_network(config: RunConfig) -> ParameterPlan:
    """Builds the denoiser without memory and resolves the rules on it, before data is read.

    Raises:
        UserError: where the network does not fit its images, or the rules do not fit the network.
    """
    config = config.with_classes(1)
    channels = config.data.channels
    if (takes := config.raw["model"].get("in_channels", channels)) != channels:
        raise UserError(
            f"model.in_channels={takes}, and images have data.channels={channels}: leave "
            "model.in_channels out, which follows from data.channels."
        )
    with torch.device("meta"):
        network = config.build_denoiser().network
        inject(network, config.transfer.inject)
    multiple = getattr(network, "multiple", 1)
    if any(side % multiple for side in config.data.height_width):
        raise UserError(
            f"data.size={config.data.size}: this model needs height and width divisible by "
            f"{multiple}."
        )
    plan = ParameterPlan(network, rules_of(config))
    check_frozen(network, plan.trains())
    if config.train.steps:
        plan.must_train(config.train.steps)
    return plan
