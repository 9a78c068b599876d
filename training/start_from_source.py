"""How a run starts from its source: its weights fitted to the target's network, and what a strategy
goes on asking of it."""

import json
import logging
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from config.run_config import RunConfig
from data.dataset import Dataset
from diffusion.denoiser import Denoiser
from runtime import checkpoint
from runtime.checkpoint import FILES
from runtime.content import differences
from runtime.errors import Misfit, UserError
from transfer.adapt_weights import AT_ZERO, COPIED, Fit, planned_fit, summary
from transfer.adapters import inject
from transfer.class_names import warn_of_renamed_classes
from transfer.context import Start
from transfer.freezing_and_rates import ParameterPlan, own_word, rules_for_alike, rules_of
from transfer.resize_weights import TABLE
from transfer.source_images import check_known, images_of, real
from transfer.trained_weights import (
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
    "dropout",
    "gradient_checkpointing",
)
# What is so as long as a parameter that begins alike does not train.
ALIKE = {
    TABLE: "its labels do nothing",
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
        "weights": FILES[which],
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
        for key in ours | models
        if key not in FREE and ours.get(key) != models.get(key)
    ]


def _short(value: Any) -> str:
    return json.dumps(value).replace(" ", "").strip('"')


def check_fits(config: RunConfig, theirs: RunConfig) -> None:
    """Fits the weights of a source with that config without memory: that none fits shows before
    data is read. The classes that both have count later.

    Raises:
        Misfit: where none fits.
    """
    ours, source = (
        c.with_sections(model=c.raw["model"] | {"classes": 1}) if c.classes else c
        for c in (config, theirs)
    )
    try:
        planned_fit(ours, source)
    except UserError as error:
        raise Misfit(f"{error}\n{other_network(config, theirs)}".strip()) from error


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
    drawn = [row.name for row in table if row.status in ("new", "drawn") and row.how != AT_ZERO]
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
