"""The optimizer of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from config.run_config import NODES, RunConfig
from runtime.build import bind, make


def build_optimizer(config: RunConfig, groups: Sequence[Any]) -> torch.optim.Optimizer:
    """Of these parameters, or groups of them.

    Raises:
        UserError: at a setting that it refuses.
    """
    optimizer = bind(config.raw["optimizer"], NODES["optimizer"], "optimizer", ["params"])
    return make(optimizer, "optimizer", groups)


def weight_decay(config: RunConfig) -> float:
    """AdamW has one of its own, where the config has none."""
    optimizer = build_optimizer(config, [torch.zeros(1, requires_grad=True)])  # only looked at
    return optimizer.defaults.get("weight_decay", 0)
