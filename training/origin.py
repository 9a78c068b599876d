"""How a run starts from its source: its weights fitted to the target's network, and what a strategy goes on asking of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.dataset import Dataset
from data.source import ImageSource
from diffusion.denoiser import Denoiser
from models.network import network_of
from models.pretrained import Trained
from runtime import checkpoint
from runtime.build import build
from runtime.config import differences
from runtime.errors import Misfit, UserError
from training.loop import Terms
from training.parts import ANY, TARGETS, Config, optimizer_of, rules_of, settings_of
from training.settings import TransferSettings
from transfer.fit import AT_ZERO, COPIED, TABLE, Fit, fit, summary, values
from transfer.inject import inject
from transfer.penalties import L2SP
from transfer.rules import ParameterPlan, Rule, own_word, rules_for_alike
from transfer.scale import BranchScale
from transfer.source import Source, other_settings
from transfer.source_images import check_known, real
from transfer.start import Start
from transfer.trained import fitted, left_without_classes, read_origin, write_origin

log = logging.getLogger(__name__)
TOLD = 20  # classes in a line of the log
# What is so as long as a parameter that begins alike does not train.
ALIKE = {TABLE: "its labels do nothing", "conv_in.weight": "the network does not see the channels apart",
         "conv_out.weight": "new outputs cannot tell anything apart"}


def start_from(found: Trained, denoiser: Denoiser, config: Config, directory: Path, classes: Sequence[str]) -> None:
    """Fits the source's weights to the network and keeps the table of what became of each tensor."""
    settings = settings_of(config, "source")
    theirs = found.state["config"]
    learned = all(build(c["variance"], TARGETS["variance"], "variance").outputs == 2 for c in (config, theirs))
    if lines := differences(config["schedule"], theirs["schedule"], "schedule"):
        log.info("the source was trained with another schedule (source -> here), so its network is given the timestep of equal "
                 "signal-to-noise ratio: %s", "; ".join(f"{line:.200}" for line in lines))
    for section in ("parameterization", *(["variance"] if learned else [])):
        if lines := differences(config[section], theirs[section], section):
            log.warning("the source was trained with another %s (source -> here): %s", section, "; ".join(f"{line:.200}" for line in lines))
    other = other_network(config, theirs)
    file = checkpoint.FILES[settings.weights]
    origin = {"from": settings.from_, "path": str(found.path), "step": found.step, "weights": file, "sha256": found.state["sha256"][file]}
    check_same_source(directory, origin)
    state, rows = fitted(config, denoiser.network, found)
    if left_without_classes(config, theirs):
        origin["null_row"] = "folded" if any(row.status == "folded" for row in rows) else "left out"
    if other:
        log.warning(other)
    denoiser.network.load_state_dict(state)
    log.info(summary(rows))
    check_classes(found.state["classes"], classes, denoiser.network.classes)
    write_origin(directory, origin, rows)


def other_network(config: Config, theirs: Config) -> str:
    other = "; ".join(other_settings(config["model"], theirs["model"]))
    return other and f"the source's network has other settings (here -> source): {other}. With the source's all of its weights fit."


def check_fits(config: Config, theirs: Config) -> None:
    """Fits the weights of a source with that config without memory: that none fits shows before data is read. The classes that both
    have count later."""
    one = {"classes": 1}
    try:
        planned_fit(*(c | {"model": c["model"] | (one if c["model"].get("classes", 0) else {})} for c in (config, theirs)))
    except UserError as error:
        raise Misfit(f"{error}\n{other_network(config, theirs)}".strip()) from error


def planned_fit(config: Config, theirs: Config) -> list[Fit]:
    """What will become of the tensors of a source with that config, without memory."""
    settings = settings_of(config, "source")
    with torch.device("meta"):
        rows = fit(network_of(theirs).state_dict(), network_of(config).state_dict(), replace(settings, copy=values),
                   settings.kept(theirs))[1]
    return [row._replace(alike=False) if settings.draws and row.status in COPIED else row for row in rows]


def with_alike_trained(config: Config, table: Sequence[Fit]) -> Config:
    """What begins alike trains in every strategy that trains: here, and nowhere else, the rules for it come into the config
    (transfer.rules.rules_for_alike). What is injected that such a weight would have to stay frozen for is taken off it."""
    rules, alike = rules_of(config), [row.name for row in table if row.alike]
    if not rules or not alike:
        return config
    network = network_of(config)
    names = [name for name, _ in network.named_parameters()]
    taught = [name for name in alike if not own_word(rules, names, name)]
    strategy = config["transfer"] | {"inject": [
        node | {"patterns": patterns_beside(node["patterns"], names, taught)} if getattr(injection, "frozen_base", False) else node
        for node, injection in zip(config["transfer"].get("inject", []), settings_of(config, "transfer").inject, strict=True)]}
    inject(network, settings_of(config | {"transfer": strategy}, "transfer").inject)
    more = [{"pattern": rule.pattern, "learning_rate_scale": rule.learning_rate_scale}
            for rule in rules_for_alike(rules, network, alike)]
    return config | {"transfer": strategy | {"rules": [*strategy["rules"], *more]}}


def patterns_beside(patterns: Sequence[str], names: Sequence[str], out: Sequence[str]) -> list[str]:
    """Globs that match what these do but for the names in out: one that matched any of those becomes the list of the others."""
    found: list[str] = []
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        found += [name for name in matched if name not in out] if set(matched) & set(out) else [pattern]
    return found


def changed_since(config: Config, table: Sequence[Fit]) -> list[str]:
    """What of this run is computed otherwise than when runs with the same settings got their names."""
    strategy = settings_of(config, "transfer")
    penalties = [getattr(penalty, "func", None) for penalty in strategy.penalties]
    scales = any(isinstance(injection, BranchScale) for injection in strategy.inject)
    status = {row.name: row.status for row in table}.get(TABLE)
    applies = {"the null row of the source's classes is folded": status == "folded",
               "L2-SP does not hold new rows of the class table": status == "resized" and L2SP in penalties,
               "weight decay leaves scales alone": scales and optimizer_of(config, ANY).defaults.get("weight_decay", 0) > 0}
    return [what for what, does in applies.items() if does]


def check_images_known(config: Config, source: Trained) -> None:
    """Raises UserError where a term takes the images that the source was trained on, and the source does not say them."""
    strategy = settings_of(config, "transfer")
    for term in filter(None, [*strategy.penalties, strategy.replay, strategy.loss]):
        images = term.keywords.get("images")
        if getattr(images, "func", images) is real:
            check_known(source)


def check_same_source(directory: Path, origin: dict[str, Any]) -> None:
    """A run that goes on needs the very source that it started from."""
    before = read_origin(directory)
    if before and before["sha256"] != origin["sha256"] and checkpoint.latest(directory / "checkpoints"):
        raise UserError(f"{directory} started from {before['path']}, and {origin['path']} holds other weights now. Put the source back, "
                        "or give this run another run.directory.")


def check_classes(source: Sequence[str], target: Sequence[str], classes: int) -> None:
    """Says where the rows of the source's class table went to classes of other names."""
    if classes and len(source) == len(target) and list(source) != list(target):
        log.warning("the source's classes have other names, and each starts as that of its number: %s",
                    ", ".join(f"{theirs} -> {ours}" for theirs, ours in list(zip(source, target, strict=True))[:8]))


def class_names(config: Config, images: Sequence[str], origin: Trained | None) -> list[str]:
    """Of the rows of the class table, where there is one: the images' classes, or "new" for images that have none, then the source's that
    are kept. Of a network without classes, the images'."""
    if not config["model"].get("classes", 0):
        return list(images)
    kept = [f"source/{name}" for name in origin.state["classes"]] if origin and config["source"]["keep_classes"] else []
    return [*(images or ["new"]), *kept]


def told_classes(dataset: Dataset) -> str:
    """The images' classes and how many images of each are trained on: "3 classes: A (40), B (30), C (30)"."""
    counts = np.bincount(dataset.labels[dataset.splits["train"]], minlength=len(dataset.classes))
    named = [f"{name} ({count})" for name, count in zip(dataset.classes, counts, strict=True)]
    return f"{len(named)} classes: {', '.join(named[:TOLD])}" + (f" and {len(named) - TOLD} more" if len(named) > TOLD else "")


def kept_classes(config: Config, source: Source | None) -> int:
    """How many classes of the source stay in the class table."""
    return settings_of(config, "source").kept(source.own) if source else 0


def check_number_of_classes(config: Config, images: ImageSource, source: Source | None) -> None:
    classes, kept = config["model"].get("classes", 0), kept_classes(config, source)
    new = max(1, len(images.classes)) if classes else 0
    if classes and classes != new + kept:
        raise UserError(f"model.classes={classes}, but {images.name} has {len(images.classes)} classes"
                        + (f" and {kept} of the source are kept" if kept else "")
                        + f": set model.classes to {new + kept if images.classes or kept else 0}, or to auto.")
    if kept and not classes:
        raise UserError(f"source.keep_classes=true keeps the {kept} classes of the source in a class table, and a network with "
                        "model.classes=0 has none: set model.classes=auto, or source.keep_classes=false.")


def terms_of(strategy: TransferSettings, origin: Trained, denoiser: Denoiser, dataset: Dataset, config: Config, directory: Path) -> Terms:
    """What the strategy adds to the loss, built from where the run starts."""
    kept = settings_of(config, "source").kept(origin.state["config"])
    first_kept = denoiser.network.classes - kept if denoiser.network.classes and kept else None
    table = fit_table(directory)
    resized = any(row.name == TABLE and row.status == "resized" for row in table)
    start = Start(denoiser, origin, copied(table), dataset, settings_of(config, "data"), first_kept, config["seed"],
                  config["train"]["batch_size"], Path(config["run"]["cache"]), denoiser.network.classes - kept if resized else 0)
    return Terms([penalty(start) for penalty in strategy.penalties], strategy.replay and strategy.replay(start),
                 strategy.loss and strategy.loss(start))


def copied(table: Sequence[Fit]) -> set[str]:
    """The tensors that the source decides."""
    return {row.name for row in table if row.status in COPIED}


def to_store(plan: ParameterPlan, table: Sequence[Fit]) -> list[str]:
    """The tensors that a target costs to store: all that do not follow from its source."""
    followed = copied(table) - set(plan.trains())
    return [name for name in plan.parameters if name not in followed]


def facts(plan: ParameterPlan, directory: Path) -> dict[str, Any]:
    """What result.json says that does not change in a run."""
    origin, stored = read_origin(directory), to_store(plan, fit_table(directory))
    return {"trained_parameters": plan.count(), "parameters": sum(plan.parameters[n].numel() for n in plan.plain),
            "trained_share": plan.share(), "all_from": plan.train_together(),
            "bytes_to_store": sum(plan.parameters[n].numel() * plan.parameters[n].element_size() for n in stored),
            "source_sha256": origin["sha256"] if origin else None}


def warn_of_random(plan: ParameterPlan, directory: Path) -> None:
    """What neither came from the source nor trains stays as it was drawn, which is hardly ever meant."""
    table, trains = fit_table(directory), plan.trains()
    random = [row.name for row in table if row.status in ("new", "drawn") and row.how != AT_ZERO] if table else plan.plain
    if stuck := [name for name in random if name not in trains]:
        log.warning("%d tensors are random and frozen, so that they stay random (%s): the rules freeze what the source did not fill",
                    len(stuck), ", ".join(stuck[:4]) + (", ..." if len(stuck) > 4 else ""))


def tell_of_alike(plan: ParameterPlan, rules: Sequence[Rule], directory: Path, strategy: str) -> None:
    """What begins alike trains from the first step on, also where a rule for more than it alone freezes it; or what it cannot do where it
    does not train."""
    alike, trains = [row.name for row in fit_table(directory) if row.alike], plan.trains()
    frozen = [name for name in alike if not any(n == name or n.startswith(f"{name}.") for n in trains)]
    if taught := [name for name in alike if name not in frozen]:
        log.info("new to the source, so that it trains: %s", ", ".join(taught))
    for name in taught:
        if overruled := [rule.pattern for rule in rules if rule.learning_rate_scale == 0 and fnmatchcase(name, rule.pattern)]:
            log.warning("%s trains, though {pattern: '%s', learning_rate_scale: 0} freezes it: it is new to the source. A rule for it "
                        "alone is obeyed: {pattern: %s, learning_rate_scale: 0}", name, overruled[-1], name)
    for name in frozen:
        if name in ALIKE:
            log.warning("%s is new to the source and does not train with transfer=%s: %s", name, strategy, ALIKE[name])


def fit_table(directory: Path) -> list[Fit]:
    """What became of the source's tensors, as source.json says it; empty without a source."""
    origin = read_origin(directory)
    return [Fit(**row) for row in origin["tensors"]] if origin else []
