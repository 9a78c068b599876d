"""A run's identity and the directory that follows from it: runs/EXPERIMENT/STRATEGY-seedS-HASH."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from config.identity import digest, identity
from config.run_config import RunConfig
from data.image_reader import ImageReader
from transfer.adapt_weights import TABLE, Fit
from transfer.difffit import BranchScale
from transfer.penalties import L2SP
from transfer.rules import rules_of
from transfer.source_images import made_anew

if TYPE_CHECKING:
    from training.pretrained_source import PretrainedSource


def open_images(config: RunConfig) -> ImageReader:
    """Those that a run is trained on, not decoded yet."""
    return config.data.open_reader(Path(config.run.cache))


def name_run(
    config: RunConfig, images: str, source: PretrainedSource | None, table: Sequence[Fit]
) -> tuple[dict[str, Any], Path]:
    """What a run is (its identity), and its directory. images: their fingerprint. table: what
    becomes of its source's tensors."""
    who = identity(config, images)
    # shares of a run depend on its length
    who["transfer"] = who["transfer"] | {"rules": [asdict(rule) for rule in rules_of(config)]}
    if source:
        who["source"] |= source.identity
        who["transfer"] |= made_anew(config.transfer, source.config.schedule)
    elif not config.source.include:
        who["source"] = {"include": []}  # nothing is copied, so where from makes no difference
    if changed := changed_since(config, table):
        who["changed"] = changed
    name = f"{config.transfer.name}-seed{config.seed}-{digest(who)}"
    return who, Path(config.run.directory or Path(config.run.root) / config.experiment / name)


def changed_since(config: RunConfig, table: Sequence[Fit]) -> list[str]:
    """What of this run is computed otherwise than when runs with the same settings got their
    names."""
    penalties = [getattr(penalty, "func", None) for penalty in config.transfer.penalties]
    scales = any(isinstance(injection, BranchScale) for injection in config.transfer.inject)
    status = {row.name: row.status for row in table}.get(TABLE)
    applies = {
        "the null row of the source's classes is folded": status == "folded",
        "L2-SP does not hold new rows of the class table": status == "resized"
        and L2SP in penalties,
        "weight decay leaves scales alone": scales and weight_decay(config) > 0,
    }
    return [what for what, does in applies.items() if does]


def weight_decay(config: RunConfig) -> float:
    """AdamW has one of its own, where the config has none."""
    optimizer = config.build_optimizer([torch.zeros(1, requires_grad=True)])  # only looked at
    return optimizer.defaults.get("weight_decay", 0)
