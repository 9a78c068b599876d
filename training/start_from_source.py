"""How a run starts from its source: its weights fitted to the target's network, and what a strategy
goes on asking of it."""

import json
import logging
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from config.overrides import CONF, options
from config.run_config import RunConfig
from data.dataset import Dataset
from diffusion.denoiser import Denoiser
from runtime import checkpoint
from runtime.checkpoint import FILES
from runtime.content import differences
from runtime.errors import Misfit, UserError
from training.prune_checkpoints import keep_for
from transfer.adapt_weights import AT_ZERO, COPIED, Fit, planned_fit, summary
from transfer.adapters import inject
from transfer.class_names import warn_of_renamed_classes
from transfer.context import Start
from transfer.freezing_and_rates import ParameterPlan, own_word, rules_for_alike, rules_of
from transfer.resize_weights import AUGMENTATION, TABLE
from transfer.source_images import check_known, images_of, real
from transfer.trained_weights import (
    CHOSEN,
    TrainedWeights,
    fit_table,
    fitted,
    left_without_classes,
    read_origin,
    write_origin,
)

log = logging.getLogger(__name__)
# of a model: the weights fit all the same
FREE = (
    "in_channels",
    "out_channels",
    "classes",
    "augmentations",
    "dropout",
    "gradient_checkpointing",
)
# With another of these the same weights compute something else, whether or not they fit.
MEANING = {
    "_target_",
    "heads",
    "head_channels",
    "groups",
    "scale_shift",
    "resample_blocks",
    "timestep_scale",
}
LEAST = 0.5  # of a network's values that a whole source is to give
# What is so as long as a parameter that begins alike does not train.
ALIKE = {
    TABLE: "its labels do nothing",
    AUGMENTATION: "the network is not told of augmentations, so that its samples show them",
    "conv_in.weight": "the network does not see the channels apart",
    "conv_out.weight": "new outputs cannot tell anything apart",
}


def start_from(
    found: TrainedWeights,
    denoiser: Denoiser,
    config: RunConfig,
    directory: Path,
    classes: Sequence[str],
) -> None:
    """Fits the source's weights to the network and keeps the table of what became of each tensor.

    Args:
        denoiser: as it was initialized; its network gets the weights.
        directory: of the run, for source.json.
        classes: names of the target's.
    Raises:
        UserError: where no weight fits, or the run started from other weights than these.
    """
    theirs, which = found.config, config.source.weights
    learned = config.variance.outputs == theirs.variance.outputs == 2

    def differing(section: str) -> str:
        lines = differences(config.raw[section], theirs.raw[section], section)
        return "; ".join(f"{line:.200}" for line in lines)

    if lines := differing("schedule"):
        log.info(
            "the source was trained with another schedule (source -> here), so its network is "
            f"given the timestep of equal signal-to-noise ratio: {lines}"
        )
    for section in ("parameterization", *(["variance"] if learned else [])):
        if lines := differing(section):
            log.warning(f"the source was trained with another {section} (source -> here): {lines}")
    origin = {
        "from": config.source.from_,
        "path": str(found.path),
        "folder": os.getcwd(),  # which a relative path is of
        "step": found.step,
        "weights": FILES.get(which, CHOSEN),
        "sha256": found.digests[which],
    }
    before = read_origin(directory)
    if (
        before
        and before["sha256"] != origin["sha256"]
        and checkpoint.latest(directory / "checkpoints")
    ):
        raise UserError(
            f"{directory} started from {before['path']}, and {origin['path']} holds other weights "
            "now. Put the source back, or give this run another run.directory."
        )
    keep_for(found.path, directory)  # before it is read
    state, rows = fitted(config, denoiser.network, found)
    if left_without_classes(config, theirs):
        origin["null_row"] = "folded" if any(row.status == "folded" for row in rows) else "left out"
    if other := other_network(config, theirs):
        log.warning(other)
    denoiser.network.load_state_dict(state)
    log.info(summary(rows))
    warn_of_renamed_classes(found.classes, classes, denoiser.network.classes)
    write_origin(directory, origin, rows)


def other_network(config: RunConfig, theirs: RunConfig) -> str:
    other = "; ".join(other_settings(config, theirs))
    return other and (
        f"the source's network has other settings (here -> source): {other}. With the source's "
        "all of its weights fit."
    )


def other_settings(config: RunConfig, theirs: RunConfig) -> list[str]:
    """The settings of the source's model that decide which tensors fit and that the target's has
    otherwise, as overrides."""
    ours, models = config.raw["model"], theirs.raw["model"]
    return [
        f"model.{key}={_short(ours.get(key))} -> {_short(models.get(key))}"
        for key in _other_keys(ours, models)
    ]


def _other_keys(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return [key for key in ours | theirs if key not in FREE and ours.get(key) != theirs.get(key)]


def _short(value: Any) -> str:
    return json.dumps(value).replace(" ", "").strip('"')


def check_fits(config: RunConfig, theirs: RunConfig) -> None:
    """Fits the weights of a source with that config without memory: that it is another network
    shows before data is read. The classes that both have count later.

    Raises:
        Misfit: where none fits, or so few that the source is hardly one, or they would compute
            something else; unless somebody chose the part that is copied.
    """
    ours, source = (
        c.with_sections(model=c.raw["model"] | {"classes": 1}) if c.classes else c
        for c in (config, theirs)
    )
    try:
        table = planned_fit(ours, source)
    except UserError as error:
        raise Misfit(f"{error}\n{other_network(config, theirs)}".strip()) from error
    if config.source.whole and (why := _what_is_lost(ours, source, table)):
        raise Misfit(
            f"source.from={config.source.from_}: {why}. (Here -> source: "
            f"{'; '.join(other_settings(config, theirs))}.) Take the source's network, "
            f"{model_named(theirs)}; or choose the part of it that is to be copied, with "
            "source.include=[...] or source.depth=N."
        )


def _what_is_lost(ours: RunConfig, theirs: RunConfig, table: Sequence[Fit]) -> str | None:
    """Why a source is hardly one; None where it is, as where levels were added to it."""
    here, there = ours.raw["model"], theirs.raw["model"]
    other = set(_other_keys(here, there))
    if other & MEANING:
        return "its network is another, in which the same weights compute something else"
    sizes = {name: tensor.numel() for name, tensor in ours.shape_network().state_dict().items()}
    new = sum(sizes.get(row.name, 0) for row in table if row.status == "new")
    share = 1 - new / sum(sizes.values())
    common = min(len(here["multipliers"]), len(there["multipliers"]))
    more_levels = other <= {"multipliers", "attention_levels"} and (
        here["multipliers"][:common] == there["multipliers"][:common]
    )
    if share >= LEAST or more_levels:
        return None
    return (
        f"its network is another, and only {share:.0%} of the values here would come from it, "
        "while the rest begins at random"
    )


def model_named(theirs: RunConfig) -> str:
    """model=NAME, where conf/model has this network, or else all of its settings."""
    model = theirs.raw["model"]
    for name in options("model"):
        known = yaml.safe_load((CONF / f"model/{name}.yaml").read_text())
        if not _other_keys(known, model):
            return f"model={name}"
    return " ".join(f"model.{k}={_short(v)}" for k, v in model.items() if k not in FREE)


def with_alike_trained(config: RunConfig, table: Sequence[Fit]) -> RunConfig:
    """What begins alike trains in every strategy that trains: here, and nowhere else, the rules for
    it come into the config (freezing_and_rates.rules_for_alike). What is injected that such a
    weight would have to stay frozen for is taken off it."""
    rules, alike = rules_of(config), [row.name for row in table if row.alike]
    if not rules or not alike:
        return config
    network = config.shape_network()
    names = [name for name, _ in network.named_parameters()]
    taught = [name for name in alike if not own_word(rules, names, name)]
    strategy, nodes = config.raw["transfer"], []
    for node, injection in zip(strategy.get("inject", []), config.transfer.inject, strict=True):
        if getattr(injection, "frozen_base", False):
            node = node | {"patterns": patterns_beside(node["patterns"], names, taught)}
        nodes.append(node)
    strategy = strategy | {"inject": nodes}
    inject(network, config.with_sections(transfer=strategy).transfer.inject)
    more = [
        {"pattern": rule.pattern, "learning_rate_scale": rule.learning_rate_scale}
        for rule in rules_for_alike(rules, network, alike)
    ]
    return config.with_sections(transfer=strategy | {"rules": [*strategy["rules"], *more]})


def patterns_beside(patterns: Sequence[str], names: Sequence[str], out: Sequence[str]) -> list[str]:
    """Globs that match what these do but for the names in out: one that matched any of those
    becomes the list of the others."""
    found: list[str] = []
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        others = [name for name in matched if name not in out]
        found += [pattern] if others == matched else others
    return found


def check_images_known(config: RunConfig, source: TrainedWeights) -> None:
    """A term may take the images that the source was trained on.

    Raises:
        UserError: where the source does not say them.
    """
    for images in map(images_of, config.transfer.terms.values()):
        if getattr(images, "func", images) is real:
            check_known(source)


def start_of(
    config: RunConfig, origin: TrainedWeights, denoiser: Denoiser, dataset: Dataset, directory: Path
) -> Start:
    """What the terms of a strategy are built from."""
    classes, kept = denoiser.network.classes, config.kept_classes(origin.config)
    table = fit_table(directory)
    resized = any(row.name == TABLE and row.status == "resized" for row in table)
    return Start(
        denoiser,
        origin,
        copied(table),
        dataset,
        config.data,
        classes - kept if classes and kept else None,
        config.seed,
        config.train.batch_size,
        Path(config.run.cache),
        classes - kept if resized else 0,
    )


def copied(table: Sequence[Fit]) -> set[str]:
    """The tensors that the source decides."""
    return {row.name for row in table if row.status in COPIED}


def to_store(plan: ParameterPlan, directory: Path) -> list[str]:
    """The tensors that a target costs to store: all that do not follow from its source.
    directory: of its run."""
    followed = copied(fit_table(directory)) - set(plan.trains())
    return [name for name in plan.parameters if name not in followed]


def facts(plan: ParameterPlan, directory: Path) -> dict[str, Any]:
    """What result.json says that does not change in a run."""
    origin, stored = read_origin(directory), to_store(plan, directory)
    return {
        "trained_parameters": plan.count(),
        "parameters": sum(plan.parameters[n].numel() for n in plan.plain),
        "trained_share": plan.share(),
        "all_from": plan.train_together(),
        "bytes_to_store": sum(plan.parameters[n].nbytes for n in stored),
        "source_sha256": origin["sha256"] if origin else None,
    }


def tell_of_start(plan: ParameterPlan, config: RunConfig, directory: Path) -> None:
    """What neither came from the source nor trains stays as it was drawn, which is hardly ever
    meant. What begins alike trains from the first step on, also where a rule for more than it alone
    freezes it; or it is told what it cannot do where it does not train."""
    table, trains = fit_table(directory), plan.trains()
    started = [row for row in table if row.how not in AT_ZERO.values()]
    drawn = [row.name for row in started if row.status in ("new", "drawn")]
    if stuck := [name for name in (drawn if table else plan.plain) if name not in trains]:
        some = ", ".join(stuck[:4]) + (", ..." if len(stuck) > 4 else "")
        log.warning(
            f"{len(stuck)} tensors are random and frozen, so that they stay random ({some}): the "
            "rules freeze what the source did not fill"
        )
    alike = [row.name for row in table if row.alike]
    # a weight, or what an adapter has put below its name
    taught = [a for a in alike if any(t == a or t.startswith(f"{a}.") for t in trains)]
    if taught:
        log.info(f"new to the source, so that it trains: {', '.join(taught)}")
    freezing = [r.pattern for r in rules_of(config) if r.learning_rate_scale == 0]
    for name in alike:
        overruled = [pattern for pattern in freezing if fnmatchcase(name, pattern)]
        if name in taught and overruled:
            log.warning(
                f"{name} trains, though {{pattern: '{overruled[-1]}', learning_rate_scale: 0}} "
                "freezes it: it is new to the source. A rule for it alone is obeyed: {pattern: "
                f"{name}, learning_rate_scale: 0}}"
            )
        elif name not in taught and name in ALIKE:
            log.warning(
                f"{name} is new to the source and does not train with "
                f"transfer={config.transfer.name}: {ALIKE[name]}"
            )
