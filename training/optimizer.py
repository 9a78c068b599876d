"""The optimizer of a run and its learning rates."""

from collections.abc import Sequence
from typing import Any

import torch

from config.run_config import NODES, RunConfig
from runtime.config_schema import bind, make


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


def set_rates(optimizer: torch.optim.Optimizer, scales: Sequence[float], factor: float) -> None:
    """optimizer.lr times the scale of each group times factor."""
    for group, scale in zip(optimizer.param_groups, scales, strict=True):
        group["lr"] = optimizer.defaults["lr"] * scale * factor
