"""The UNet against diffusers' UNet2DModel: the same random weights, the same images, outputs and
all gradients.

Every weight is drawn anew, norms, biases and the near-zero last layers included, so that nothing
hides. float64 judges; the differences in float32 are printed (`pytest -s`). Only the timestep
embedding is float32 in both: its angles near 1000 are good to about 1e-5, so in float64 both take
diffusers', and tests/models/test_unet.py holds ours to its formula.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import runtime.torchvision  # noqa: F401  before anything that imports torchvision
from tests.helpers.networks import difference, randomize, run

# isort: split
from diffusers import UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding

import models.unet
from models.unet import UNet
from tests.helpers.diffusers_names import to_diffusers
from tests.helpers.networks import configured

# google/ddpm-cifar10-32 and ddpm-celebahq-256
COMMON = {
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
WIDTHS = {
    "ddpm_cifar10": (128, 256, 256, 256),
    "ddpm_celeba64": (128, 256, 256, 256, 512),
    "ddpm_256": (128, 128, 256, 256, 512, 512),
}
ATTENTION = {"ddpm_cifar10": 1, "ddpm_celeba64": 2, "ddpm_256": 4}


def pair(name):
    """(ours, diffusers') with the same random weights."""
    widths, level = WIDTHS[name], ATTENTION[name]
    down = ["AttnDownBlock2D" if k == level else "DownBlock2D" for k in range(len(widths))]
    up = [kind.replace("Down", "Up") for kind in reversed(down)]
    theirs = UNet2DModel(
        block_out_channels=widths, down_block_types=down, up_block_types=up, **COMMON
    ).eval()
    ours = UNet(**configured(name)).eval()
    randomize(ours)
    # strict: every name on both sides
    theirs.load_state_dict(to_diffusers(ours.state_dict(), len(widths)))
    return ours, theirs


def compare(ours, theirs, size, timestep, dtype):
    """Largest relative differences: (output, input's gradient, the worst parameter's gradient and
    its name)."""
    timestep = torch.tensor(timestep)
    x = torch.randn(
        len(timestep),
        3,
        size,
        size,
        generator=torch.Generator().manual_seed(1),
        dtype=torch.float64,
    ).to(dtype)
    out, input_grad, grads = run(ours.to(dtype), lambda x: ours(x, timestep, {}), x)
    their_out, their_input_grad, their_grads = run(
        nn.Module.to(theirs, dtype), lambda x: theirs(x, timestep).sample, x
    )
    grads = to_diffusers(grads, levels=len(ours.down))
    assert grads.keys() == their_grads.keys()
    assert all(grad.abs().max() > 0 for grad in their_grads.values())
    # for k's bias, whose true gradient is 0: softmax ignores it
    largest = max(grad.abs().max().item() for grad in their_grads.values())
    worst = max(
        (
            (grads[name] - grad).abs().max().item()
            / (largest if "to_k.bias" in name else grad.abs().max().item()),
            name,
        )
        for name, grad in their_grads.items()
    )
    return difference(out, their_out), difference(input_grad, their_input_grad), *worst


def check(name, size, timestep, monkeypatch):
    """float32 printed and held to 1e-4, float64 to 1e-12."""
    ours, theirs = pair(name)
    for dtype, bound in ((torch.float32, 1e-4), (torch.float64, 1e-12)):
        if dtype == torch.float64:
            monkeypatch.setattr(
                models.unet,
                "timestep_embedding",
                lambda t, c: get_timestep_embedding(t, c, downscale_freq_shift=1),
            )
        out, input_grad, grad, where = compare(ours, theirs, size, timestep, dtype)
        print(
            f"\n{name}, {size} px, t {timestep}, {dtype}: output {out:.1e}, input's gradient "
            f"{input_grad:.1e}, parameters' gradients at most {grad:.1e} ({where})"
        )
        assert max(out, input_grad, grad) < bound


def test_cifar10_is_unet2d(monkeypatch):
    """google/ddpm-cifar10-32's configuration, 35.7 M parameters, two images of 16 px at different
    timesteps."""
    check("ddpm_cifar10", 16, [7, 999], monkeypatch)


@pytest.mark.slow
def test_256_is_unet2d(monkeypatch):
    """google/ddpm-celebahq-256's configuration, 113.7 M parameters, on 64 px (2x2 at the
    bottom)."""
    check("ddpm_256", 64, [500], monkeypatch)


@pytest.mark.slow
def test_celeba64_is_unet2d(monkeypatch):
    """DDIM's CelebA configuration, 78.7 M parameters, 64 px."""
    check("ddpm_celeba64", 64, [0, 250], monkeypatch)
