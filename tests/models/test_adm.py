"""The UNet of improved-diffusion and ADM: published sizes, formulas, initialization, and diffusers'
UNet2DModel key by key.

Parity with OpenAI's own formulas and names is in tests/models/formats/test_openai.py.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import runtime.torchvision  # noqa: F401  before anything that imports torchvision
from tests.helpers.networks import PUBLISHED, configured

# isort: split
from diffusers import UNet2DModel

from models.adm import ADMUNet, ScaleShiftResBlock, cosine_first_embedding
from models.layers import Attention, GroupNorm, Resample, ResBlock
from tests.helpers.diffusers_names import RES_BLOCK, to_diffusers
from tests.helpers.networks import MODELS, batch, difference, gradients, randomize, run

SMALL = {
    "channels": 16,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention_levels": [1],
    "groups": 4,
    "heads": 2,
}
# and all defaults
DIFFUSERS = {
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": (32, 64, 96),
    "sample_size": 16,
    "norm_num_groups": 8,
    "dropout": 0.0,
}
OURS = {
    "channels": 32,
    "multipliers": [1, 2, 3],
    "blocks": 2,
    "attention_levels": [1, 2],
    "groups": 8,
    "head_channels": 8,
}


def small(**options):
    """Every weight random, so that nothing hides behind a layer that starts at zero."""
    network = ADMUNet(**SMALL | options)
    randomize(network)
    return network


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    """Parameter counts, at learned variance; classes have one row more than theirs."""
    with torch.device("meta"):
        network = ADMUNet(**configured(name), out_channels=6)
    null_class = 4 * network.channels if network.classes else 0
    assert sum(p.numel() for p in network.parameters()) - null_class == PUBLISHED[name]
    assert all(
        isinstance(m, GroupNorm) and m.eps == 1e-5
        for m in network.modules()
        if isinstance(m, nn.GroupNorm)
    )
    assert not list(network.buffers())


def test_every_published_model_is_counted():
    """No YAML of this family without its number."""
    assert {
        p.stem for p in MODELS.glob("*.yaml") if "models.adm" in p.read_text()
    } == PUBLISHED.keys()


def test_heads():
    """ADM 256: heads of 64 channels wherever attention is; improved CIFAR-10: four heads of 64."""
    with torch.device("meta"):
        adm, improved = (
            ADMUNet(**configured("adm_imagenet256")),
            ADMUNet(**configured("improved_cifar10")),
        )
    heads = {
        name: (m.heads, m.out.in_features)
        for name, m in adm.named_modules()
        if isinstance(m, Attention)
    }
    assert all(width == 64 * n for n, width in heads.values())
    assert {name.split(".")[1] for name in heads if not name.startswith("mid")} == {"3", "4", "5"}
    assert all(m.heads == 4 for m in improved.modules() if isinstance(m, Attention))


def test_names_are_the_interface_of_transfer():
    """UNet's names; a resampling residual block is the downsample itself."""
    adm, improved = (
        dict(ADMUNet(**SMALL, classes=3, resample_blocks=on).named_modules())
        for on in (True, False)
    )
    for name in [
        "conv_in",
        "time_mlp.0",
        "time_mlp.2",
        "class_embedding",
        "down.1.attention.0.qkv",
        "mid.attention.0.out",
        "norm_out",
        "conv_out",
        "up.1.block.1.shortcut",
    ]:
        assert name in adm and name in improved
    for level, name in (("down.0.downsample", "downsample"), ("up.1.upsample", "upsample")):
        assert (
            isinstance(adm[level], ScaleShiftResBlock)
            and f"{level}.norm1" in adm
            and f"{level}.time_proj" in adm
        ), name
    assert isinstance(improved["down.0.downsample"], Resample)
    assert isinstance(improved["up.1.upsample"], Resample)
    plain = ADMUNet(**SMALL, scale_shift=False)
    assert type(plain.mid.block[0]) is ResBlock and plain.mid.block[0].time_proj.out_features == 32


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"heads": None}, "set one of heads"),
        ({"head_channels": 8}, "set one of heads"),
        ({"heads": 3}, "heads=3"),
        ({"heads": None, "head_channels": 12}, "head_channels=12"),
        ({"channels": 18}, "groups=4"),
        ({"attention_levels": [2]}, "no level 2"),
        ({"multipliers": [0.2, 1]}, "groups=4"),
    ],
)
def test_impossible_networks_are_refused(options, match):
    """Each constructor mistake has its own message."""
    with pytest.raises(ValueError, match=match):
        ADMUNet(**SMALL | options)


@pytest.mark.parametrize("channels", [32, 128, 192])
def test_timestep_embedding(channels):
    """cos(t w_k), then sin, w_k = 10000^(-k / half), in float64; float32 angles near 1000 are good
    to 1e-4."""
    t, half = np.array([0, 1, 17, 500, 999]), channels // 2
    angle = t[:, None] * 10000.0 ** (-np.arange(half) / half)
    expected = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    ours = cosine_first_embedding(torch.from_numpy(t), channels)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    np.testing.assert_allclose(ours[:2], expected[:2], atol=3e-7)


def test_timestep_scale():
    """T = 4000 scaled by 1/4 reads timestep 400 as 100, and fractions of a step as such."""
    scaled, plain = small(timestep_scale=0.25).eval(), small().eval()
    x, _ = batch()
    torch.testing.assert_close(
        scaled(x, torch.tensor([400, 3999]), {}),
        plain(x, torch.tensor([100, 999.75]), {}),
        rtol=0,
        atol=0,
    )


def test_first_multiplier_sets_the_ends():
    """Multiplier 0.5 of ADM 512: conv_in and conv_out have the width of level 0, the time embedding
    that of channels."""
    network = small(channels=32, multipliers=[0.5, 1])
    assert network.conv_in.out_channels == network.conv_out.in_channels == 16
    assert network.time_mlp[0].in_features == 32
    assert network(*batch(), {}).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("scale_shift", [True, False])
def test_initialization_is_theirs(scale_shift):
    """Zeros in the last layer of every block, attention and of the network; torch's uniform +-
    1/sqrt(fan in) elsewhere, biases too; class rows standard normal; norms the identity."""
    torch.manual_seed(0)
    network = ADMUNet(
        **SMALL | {"channels": 32, "groups": 8},
        classes=50,
        scale_shift=scale_shift,
        resample_blocks=True,
    )
    zero = 0
    for name, parameter in network.named_parameters():
        module, leaf = name.rsplit(".", 1)
        if module.endswith(("conv2", ".out")) or module == "conv_out":
            assert (parameter == 0).all(), name
            zero += 1
        elif "norm" in module:
            assert (parameter == (leaf == "weight")).all(), name
        elif module == "class_embedding":
            assert abs(parameter.std() - 1) < 0.05
        else:
            layer = network.get_submodule(module)
            limit, count = layer.weight[0].numel() ** -0.5, parameter.numel()
            assert limit * (1 - 20 / count) < parameter.abs().max() <= limit * (1 + 1e-6), name
            if leaf == "weight":
                assert (
                    abs(parameter.double().square().mean() * 3 / limit**2 - 1)
                    < 5 * (0.8 / count) ** 0.5
                ), name
    # down, its resampling, middle, up, its resampling
    blocks, attentions = (
        1 + 1 + 1 + 2 + 2 + 2 + 1,
        1 + 1 + 2,
    )
    assert zero == 2 * (blocks + attentions + 1)
    assert (network(*batch(), {}) == 0).all()


@pytest.mark.parametrize("resample_blocks", [True, False])
def test_gradient_checkpointing_changes_nothing(resample_blocks):
    """Equal outputs and gradients, dropout drawn from the same seed."""
    plain, saved = (
        gradients(
            small(dropout=0.3, resample_blocks=resample_blocks, gradient_checkpointing=on).train(),
            *batch(),
        )
        for on in (False, True)
    )
    for a, b in zip(plain, saved, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_null_class():
    """The row after the classes is what a missing label means."""
    network = small(classes=3).eval()
    x, timestep = batch()
    assert torch.equal(
        network(x, timestep, {}), network(x, timestep, {"label": torch.tensor([3, 3])})
    )
    assert not torch.allclose(
        network(x, timestep, {}), network(x, timestep, {"label": torch.tensor([0, 1])})
    )


def test_output_is_channels_last():
    """The layout of the fast convolutions goes through pooling and repeating too."""
    for resample_blocks in (True, False):
        out = small(resample_blocks=resample_blocks)(*batch(), {})
        assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("resample_blocks", [True, False])
def test_runs_in_bfloat16(resample_blocks):
    """The whole network cast to a type computes in it, near float32's result; a copy of it is
    another network of the same weights."""
    network, (x, timestep) = small(resample_blocks=resample_blocks).eval(), batch()
    plain, cast = (
        network(x, timestep, {}),
        copy.deepcopy(network).to(torch.bfloat16)(x.bfloat16(), timestep, {}),
    )
    assert cast.dtype == torch.bfloat16 and network.conv_in.weight.dtype == torch.float32
    assert (cast.float() - plain).abs().max() < 0.2 * plain.abs().max()


# --- diffusers ------------------------------------------------------------------------------------


def diffusers_names(tensors, levels):
    """tests/helpers/diffusers_names.py, and residual blocks in the place of downsample and
    upsample, and the class table."""
    renamed, rest = {}, {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if "downsample" in parts[2:3] and parts[3] != "conv":
            renamed[f"down_blocks.{parts[1]}.downsamplers.0.{RES_BLOCK[parts[3]]}.{parts[4]}"] = (
                tensor
            )
        elif "upsample" in parts[2:3] and parts[3] != "conv":
            block, part = levels - 1 - int(parts[1]), RES_BLOCK[parts[3]]
            renamed[f"up_blocks.{block}.upsamplers.0.{part}.{parts[4]}"] = tensor
        elif parts[0] == "class_embedding":
            renamed[name] = tensor
        else:
            rest[name] = tensor
    return renamed | to_diffusers(rest, levels)


# with scale_shift, UNet2DModel's middle attention has no norm unless this gives it one
MID_NORM = {"attn_norm_num_groups": 8}

VARIANTS = {
    "default": (  # google's and everyone's UNet2DModel()
        {
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        },
        {"scale_shift": False},
    ),
    "scale shift": (
        {
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            "resnet_time_scale_shift": "scale_shift",
            "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "num_class_embeds": 4,
        }
        | MID_NORM,
        {"scale_shift": True, "classes": 3},
    ),
    # downsample_type="resnet" counts in blocks with attention only; a level without needs
    # ResnetDownsampleBlock2D by name
    "resampling residual blocks": (
        {
            "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            "downsample_type": "resnet",
            "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "upsample_type": "resnet",
            "resnet_time_scale_shift": "scale_shift",
        }
        | MID_NORM,
        {"scale_shift": True, "resample_blocks": True},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_is_unet2d(variant):
    """Outputs and all gradients in float64 within 1e-12, the embedding included, which both take in
    float32 by the same formula."""
    theirs_options, ours_options = VARIANTS[variant]
    theirs, ours = (
        UNet2DModel(**DIFFUSERS | theirs_options).double(),
        ADMUNet(**OURS | ours_options).double(),
    )
    randomize(ours)
    # strict: every name on both sides
    theirs.load_state_dict(diffusers_names(ours.state_dict(), 3))
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    timestep, label = torch.tensor([7, 999]), torch.tensor([1, 3]) if ours.classes else None
    out, x_grad, grads = run(
        ours, lambda x: ours(x, timestep, {} if label is None else {"label": label}), x
    )
    their_out, their_x_grad, their_grads = run(
        theirs, lambda x: theirs(x, timestep, class_labels=label).sample, x
    )
    grads = diffusers_names(grads, 3)
    assert grads.keys() == their_grads.keys()
    # for k's bias, whose true gradient is 0: softmax ignores it
    largest = max(g.abs().max().item() for g in their_grads.values())
    worst = max(
        (
            (grads[name] - g).abs().max().item()
            / (largest if "to_k.bias" in name else g.abs().max().item()),
            name,
        )
        for name, g in their_grads.items()
    )
    print(
        f"\n{variant}: output {difference(out, their_out):.1e}, input's gradient "
        f"{difference(x_grad, their_x_grad):.1e}, parameters' gradients at most {worst[0]:.1e} "
        f"({worst[1]})"
    )
    assert max(difference(out, their_out), difference(x_grad, their_x_grad), worst[0]) < 1e-12


def test_is_the_default_unet2d():
    """UNet2DModel() without arguments has our tensors under its names, at its full size."""
    with torch.device("meta"):
        theirs = UNet2DModel()
        ours = ADMUNet(224, [1, 2, 3, 4], 2, [1, 2, 3], head_channels=8, scale_shift=False)
    shapes = {name: tensor.shape for name, tensor in diffusers_names(ours.state_dict(), 4).items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {m.heads for m in ours.modules() if isinstance(m, Attention)} == {56, 84, 112}
