"""The network of a config, and the denoiser around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusion.denoiser import Denoiser
from models.unet import UNet
from runtime.build import build, check
from runtime.errors import UserError


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


def build_denoiser(config: dict[str, Any]) -> Denoiser:
    """The network (on the current default device, weights by the global seed) inside its schedule and parameterization."""
    schedule, parameterization, variance = (build(config[n], ["diffusion"], n) for n in ("schedule", "parameterization", "variance"))
    known = config.get("network_schedule")
    network = build_network(config)
    try:
        return Denoiser(network, schedule, parameterization, variance, known and build(known, ["diffusion"], "network_schedule"))
    except ValueError as error:
        raise UserError(str(error)) from error


def frozen_denoiser(config: dict[str, Any], weights: dict[str, Tensor], device: torch.device) -> Denoiser:
    """The same with trained weights, to be asked and not trained. The global random stream is left alone."""
    with torch.random.fork_rng(devices=[]):
        denoiser = build_denoiser(config)
    denoiser.network.load_state_dict(weights)
    return denoiser.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def image_shape(data: dict[str, Any]) -> tuple[int, int, int]:
    """C, H, W of the images that a network was made for, by the section data of its config."""
    size = data["size"]
    if size is None:
        raise UserError("the config of this network does not say the size of its images: write it there, as sample_size.")
    return (data["channels"], *((size, size) if isinstance(size, int) else size))
