"""The network of a config."""

from __future__ import annotations

from typing import Any

import torch

from models.unet import UNet
from runtime.build import build, check


def build_network(config: dict[str, Any]) -> UNet:
    """On the current default device, weights by the global seed. Its output channels follow from those of the image and from whether
    the variance is learned. Raises UserError where the sections model and variance are wrong or not of this project."""
    outputs = build(config["variance"], ["diffusion"], "variance").outputs
    check(config["model"], ["models"], "model", ["out_channels"])
    return build(config["model"], ["models"], "model", out_channels=outputs * config["model"].get("in_channels", 3))


def network_of(config: dict[str, Any]) -> UNet:
    """The same without memory: names and shapes."""
    with torch.device("meta"):
        return build_network(config)
