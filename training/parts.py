"""The parts of a run from its config. What may be built in each section is fixed here: a config inside a checkpoint is foreign
input."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch

from data.dataset import DataSettings
from diffusion.generate import SamplerSettings, steps_of
from diffusion.losses import TEACH_VARIANCE, hybrid_loss
from models.network import build_denoiser
from runtime.build import build, check, check_arguments, describe, fits
from runtime.config import canonical
from runtime.errors import UserError, near
from runtime.log import WandbSettings
from training.settings import RunSettings, TrainSettings, TransferSettings
from transfer.fit import SourceSettings
from transfer.inject import check as check_frozen
from transfer.inject import inject
from transfer.penalties import L2SP
from transfer.rules import ParameterPlan, Rule
from transfer.similarity import PairwiseSimilarity, check_images

Config = dict[str, Any]

# section: the packages that define its targets
TARGETS = {"model": ["models"], "schedule": ["diffusion"], "parameterization": ["diffusion"], "variance": ["diffusion"],
           "loss": ["diffusion"], "timesteps": ["diffusion"], "optimizer": ["torch.optim"]}
GIVEN = {"model": ["out_channels"], "timesteps": ["steps"], "optimizer": ["params"]}  # arguments that do not come from the config
# section: (what it holds, the packages of targets inside it)
SETTINGS: dict[str, tuple[type, list[str]]] = {
    "data": (DataSettings, ["data"]), "train": (TrainSettings, []), "transfer": (TransferSettings, ["transfer", "diffusion"]),
    "source": (SourceSettings, ["transfer"]), "sampler": (SamplerSettings, ["diffusion"]), "run": (RunSettings, []),
    "wandb": (WandbSettings, [])}
ANY = [torch.zeros(1, requires_grad=True)]  # for an optimizer that is only looked at
PLAIN = {"experiment": str, "seed": int, "gpu_hours": float, "spacing": dict, "network_schedule": dict | None}


def settings_of(config: Config, section: str) -> Any:
    """A section as its frozen dataclass, checked."""
    kind, packages = SETTINGS[section]
    node = {"_target_": f"{kind.__module__}.{kind.__name__}", **config[section]}
    return build(node, [kind.__module__, *packages], section)


def optimizer_of(config: Config, groups: list[Any]) -> torch.optim.Optimizer:
    """Of these parameters, or groups of them. Raises UserError at a setting that it refuses."""
    try:
        return build(config["optimizer"], TARGETS["optimizer"], "optimizer")(groups)
    except ValueError as error:
        raise UserError(f"optimizer: {error}.") from error


def check_config(config: Config) -> None:
    """Raises UserError at the first wrong key or type, before any data is read and anything large is built."""
    known = {*TARGETS, *SETTINGS, *PLAIN}
    if unknown := [key for key in config if key not in known]:
        raise UserError(f"{unknown[0]}: no such setting; {near(unknown[0], known)}")
    for section in (*TARGETS, *SETTINGS):
        if not isinstance(config.get(section), dict):
            raise UserError(f"{section}={config.get(section)} is not a mapping. What a file in conf/{section} says stands below its keys.")
    config = with_classes(config, 1)  # how many there are is not known yet
    for key, kind in PLAIN.items():
        if not fits(config[key], kind):
            raise UserError(f"{key}={config[key]!r} is not {describe(kind)}.")
    for section, packages in TARGETS.items():
        check(config[section], packages, section, GIVEN.get(section, []))
    for section, (kind, packages) in SETTINGS.items():
        check_arguments(kind, config[section], [kind.__module__, *packages], section)
        settings_of(config, section)
    sampler, schedule = settings_of(config, "sampler"), build(config["schedule"], TARGETS["schedule"], "schedule")
    steps_of(schedule, sampler)  # refused here, and not at the first picture, hours later
    rules_of(config)
    optimizer_of(config, ANY)
    check_variance(config)
    check_terms(config)
    check_penalties(config)
    check_source(config)


def check_source(config: Config) -> None:
    """A strategy that is about the source needs one."""
    strategy = settings_of(config, "transfer")
    if (strategy.needs_source or not strategy.rules) and not settings_of(config, "source").used:
        raise UserError(f"transfer={strategy.name} is about a source, and there is none: give source.from=, an experiment, a run or a "
                        "checkpoint.")


def check_terms(config: Config) -> None:
    """A term of a strategy is built later, from where the run starts: what its settings lack shows here."""
    strategy = settings_of(config, "transfer")
    for k, injection in enumerate(strategy.inject):
        if not hasattr(injection, "on"):
            raise UserError(f"transfer.inject[{k}]: {config['transfer']['inject'][k]['_target_']} is built to nothing that goes into a "
                            "network, as transfer.lora.LoRA is (without _partial_).")
    terms = [(f"penalties[{k}]", penalty) for k, penalty in enumerate(strategy.penalties)]
    if strategy.loss and config["loss"] != {"_target_": "diffusion.losses.simple_loss", "_partial_": True}:
        raise UserError(f"transfer={strategy.name} has a loss of its own, in place of the section loss: leave loss=simple.")
    for where, term in [*terms, ("replay", strategy.replay), ("loss", strategy.loss)]:
        if term is not None:
            check_bound(term, f"transfer.{where}")
            check_called(term, where)


def check_bound(term: Any, where: str) -> None:
    """A node that is built with one argument lacks no other, nor do the nodes inside it."""
    try:
        inspect.signature(term).bind(None)
    except TypeError as error:
        raise UserError(f"{where}: {error}.") from error
    for key, inside in getattr(term, "keywords", {}).items():
        if isinstance(inside, functools.partial):
            check_bound(inside, f"{where}.{key}")


def check_called(term: Any, where: str) -> None:
    """What a class builds is called as a penalty, (Seen), or as a loss, (denoiser, x0, t, noise, condition)."""
    kind, made = where.partition("[")[0], getattr(term, "func", term)
    arguments = {"penalties": 1, "loss": 5}.get(kind)
    if arguments is None or not inspect.isclass(made):
        return
    call = next((vars(base)["__call__"] for base in made.__mro__ if "__call__" in vars(base)), None)
    try:
        inspect.signature(call).bind(*[None] * (1 + arguments))
    except TypeError as error:
        raise UserError(f"transfer.{where}: what {made.__module__}.{made.__name__} builds cannot stand in transfer.{kind} "
                        f"({error}).") from error


def check_penalties(config: Config) -> None:
    """Terms that the rest of the config leaves no room for: one that draws weights to where they started, beside weight decay, which draws
    them to 0, or with weights that are not the source's; and one that compares images, with too few of them."""
    penalties = [p.func for p in settings_of(config, "transfer").penalties if inspect.isclass(p.func)]
    if any(issubclass(p, PairwiseSimilarity) for p in penalties):
        check_images(config["train"]["batch_size"] // config["train"]["accumulation"])
    if not any(issubclass(p, L2SP) for p in penalties):
        return
    if settings_of(config, "source").draws:
        raise UserError(f"transfer={config['transfer']['name']} holds the weights near the source's, and with this copy= none is the "
                        "source's: leave copy=values.")
    if decay := optimizer_of(config, ANY).defaults.get("weight_decay", 0):  # AdamW has one of its own, where the config has none
        raise UserError(f"optimizer.weight_decay={decay:g} draws the weights to 0, and transfer={config['transfer']['name']} to where they "
                        "started: set optimizer.weight_decay=0.")


def check_variance(config: Config) -> None:
    """A learned variance and a loss that teaches it go together."""
    variance, loss = (build(config[n], TARGETS[n], n) for n in ("variance", "loss"))
    teaches = getattr(loss, "func", loss) in TEACH_VARIANCE
    if variance.outputs == 2 and not teaches:
        raise UserError("this loss does not teach the variance: with a learned variance use loss=hybrid or loss=bound, or choose "
                        "variance=fixed_large.")
    if getattr(loss, "func", loss) is hybrid_loss and variance.outputs == 1:
        raise UserError("loss=hybrid adds a term for a learned variance, and this one is fixed: use variance=learned_range or loss=simple.")


def rules_of(config: Config) -> list[Rule]:
    """The rules, with shares of the run as steps."""
    for k, rule in enumerate(config["transfer"]["rules"]):
        check_arguments(Rule, rule, [], f"transfer.rules[{k}]")
    return [Rule(**{"from_" if key == "from" else key: value for key, value in rule.items()}).at(config["train"]["steps"])
            for rule in config["transfer"]["rules"]]


def complete(config: Config) -> Config:
    """A strategy without rules trains nothing, so its run has no steps."""
    return config if config["transfer"]["rules"] else config | {"train": config["train"] | {"steps": 0}}


def with_schedule(config: Config, source: Config | None) -> Config:
    """The network of a source knows the timesteps of the source's schedule, and goes on being given those. Raises UserError where what it
    says means something in its own schedule only."""
    if source is None or config["network_schedule"]:
        return config
    known = source.get("network_schedule") or source["schedule"]
    if canonical(known) == canonical(config["schedule"]):
        return config
    for section, target in (("parameterization", "PredictMean"), ("variance", "Learned")):
        if config[section]["_target_"].endswith(f".{target}") and config[section] == source[section]:
            raise UserError(f"{section}={target} is about the steps of the source's schedule, and schedule= is another one: take the "
                            f"source's schedule, or another {section}.")
    return config | {"network_schedule": known}


def with_classes(config: Config, new: int, kept: int = 0) -> Config:
    """classes=auto and count=auto as numbers: new classes of the images, then those kept of the source. Images without classes are one
    class of their own, where the strategy wants a class."""
    def filled(node: Any, numbers: dict[str, int]) -> Any:
        if isinstance(node, list):
            return [filled(inside, numbers) for inside in node]
        if not isinstance(node, dict):
            return node  # refused by check_config
        return {key: numbers[key] if value == "auto" and key in numbers else value for key, value in node.items()}

    new = max(new, 1)
    return config | {
        "model": filled(config["model"], {"classes": new + kept}),
        "transfer": config["transfer"] | {"inject": filled(config["transfer"].get("inject", []), {"count": new})}}


def check_network(config: Config) -> ParameterPlan:
    """Builds the denoiser without memory and resolves the rules on it: what is wrong with either shows before data is read."""
    config = with_classes(config, 1)
    channels = config["data"]["channels"]
    if (takes := config["model"].get("in_channels", channels)) != channels:
        raise UserError(f"model.in_channels={takes}, and images have data.channels={channels}: leave model.in_channels out, which follows "
                        "from data.channels.")
    with torch.device("meta"):
        network = build_denoiser(config).network
        inject(network, settings_of(config, "transfer").inject)
    multiple = getattr(network, "multiple", 1)
    size = config["data"]["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height % multiple or width % multiple:
        raise UserError(f"data.size={size}: this model needs height and width divisible by {multiple}.")
    plan = ParameterPlan(network, rules_of(config))
    check_frozen(network, plan.trains())
    if config["train"]["steps"]:
        plan.must_train(config["train"]["steps"])
    return plan
