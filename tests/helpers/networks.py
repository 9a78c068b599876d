"""The networks of conf/model, random weights for them, and how two are compared."""

from __future__ import annotations

import torch
from omegaconf import OmegaConf
from torch import nn

from tests.helpers import ROOT

MODELS = ROOT / "conf/model"


# Ho et al., Song et al.
GOLDEN = {
    "ddpm_cifar10": 35_746_307,
    "ddpm_celeba64": 78_700_803,
    "ddpm_256": 113_673_219,
}


def configured(name, channels=3):
    """The arguments of a model of conf/model."""
    config = OmegaConf.create(
        {"data": {"channels": channels}, "model": OmegaConf.load(MODELS / f"{name}.yaml")}
    )
    arguments = OmegaConf.to_container(config, resolve=True)["model"]
    kind = "adm.ADMUNet" if name in PUBLISHED else "unet.UNet"
    assert arguments.pop("_target_") == f"models.{kind}"
    # the builder's, who knows whether the variance is learned
    assert "out_channels" not in arguments
    return arguments


def batch(size=(8, 8), channels=3, count=2, seed=0):
    """(x, timestep)"""
    return torch.randn(
        count, channels, *size, generator=torch.Generator().manual_seed(seed)
    ), torch.arange(count) * 300


def gradients(network, x, timestep, condition=None):
    """Output and gradients of all parameters and of the input, with dropout from one seed."""
    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    out = network(x, timestep, condition or {})
    grads = torch.autograd.grad(out.square().sum(), [x, *network.parameters()])
    return [out.detach(), *grads]


def randomize(network):
    """Weights that keep the signal's size, norms about 1, biases of 0.3."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        is_norm = "norm" in name and name.endswith("weight")
        std = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
        nn.init.normal_(parameter, 1.0 if is_norm else 0.0, std, generator=generator)


def run(network, call, x):
    """Output, gradient of the input, and gradients by name, of a fixed random projection of the
    output."""
    network.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    out = call(x)
    weight = torch.randn(
        out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    ).to(out.dtype)
    (out * weight).sum().backward()
    return out.detach(), x.grad, {name: p.grad for name, p in network.named_parameters()}


class Output(nn.Module):
    """A network that is a function of (x, t in 1..T)."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, timestep, condition):
        return self.function(x, timestep + 1)


def difference(a, b):
    """Largest difference over the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


# parameters with a learned variance's output channels, without our null class, which theirs do not
# have
PUBLISHED = {
    "improved_cifar10": 52_546_438,
    "improved_imagenet64": 121_063_942,
    "improved_imagenet64_cond": 273_049_350,
    "improved_lsun256": 113_676_678,
    "adm_imagenet64": 295_904_454,
    "adm_imagenet128": 421_529_606,
    "adm_imagenet256": 553_838_086,
    "adm_imagenet256_uncond": 552_814_086,
    "adm_imagenet512": 558_997_638,
    "adm_lsun256": 552_814_086,
}
