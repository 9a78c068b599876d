"""The UNet: golden sizes and names, shapes, initialization, checkpointing, classes and memory
formats."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from models.adm import ADMUNet
from models.layers import Attention, Sum, output_of, timestep_embedding
from models.unet import UNet
from tests.helpers.networks import GOLDEN, batch, configured, gradients, randomize

NAMES = {
    "ddpm_cifar10": [
        "up.3.block.2.conv2",
        "up.1.attention.2.out",
        "up.1.upsample.conv",
        "down.2.downsample.conv",
    ],
    "ddpm_celeba64": ["down.2.attention.1.qkv", "up.4.block.2.conv2", "up.2.attention.2.norm"],
    "ddpm_256": ["down.4.attention.0.qkv", "up.5.block.2.shortcut", "up.4.attention.1.out"],
}
COMMON = [
    "conv_in",
    "time_mlp.0",
    "time_mlp.2",
    "down.0.block.1.norm1",
    "down.0.block.0.time_proj",
    "down.1.block.0.norm2",
    "down.0.downsample.conv",
    "mid.block.0.conv1",
    "mid.block.1.conv2",
    "mid.attention.0.qkv",
    "up.0.block.0.shortcut",
    "up.1.upsample.conv",
    "norm_out",
    "conv_out",
]


def small(seed=0, **options):
    """A UNet with all there is in it, every weight away from its start, so that nothing is hidden
    behind a near-zero layer."""
    arguments = {
        "channels": 16,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention_levels": [1],
        "groups": 4,
    } | options
    network, generator = UNet(**arguments), torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(
            parameter,
            std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3,
            generator=generator,
        )
    return network


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_parameter_counts_and_names(name):
    """The papers' sizes to the parameter, and the names that transfer's patterns mean."""
    with torch.device("meta"):
        network = UNet(**configured(name))
    assert sum(p.numel() for p in network.parameters()) == GOLDEN[name]
    modules = dict(network.named_modules())
    for module in COMMON + NAMES[name]:
        assert any(True for _ in modules[module].parameters(recurse=False)), module
    assert not list(network.buffers())


def test_attention_is_where_the_papers_have_it():
    """CIFAR-10: after both blocks of level 1 (16x16) down, all three up, and in the middle; nowhere
    else."""
    with torch.device("meta"):
        network = UNet(**configured("ddpm_cifar10"))
    found = {name for name, module in network.named_modules() if isinstance(module, Attention)}
    assert found == {
        "down.1.attention.0",
        "down.1.attention.1",
        "mid.attention.0",
        *(f"up.1.attention.{k}" for k in range(3)),
    }


def test_level_0_is_the_full_resolution_both_ways():
    """down.k and up.k see the same image size: 16, 8, 4 for k = 0, 1, 2."""
    network, sizes = small(multipliers=[1, 1, 2], attention_levels=[]), {}
    for way in ("down", "up"):
        for level, module in enumerate(getattr(network, way)):
            module.block[0].register_forward_hook(
                lambda m, i, out, key=(way, level): sizes.update({key: output_of(out).shape[-1]})
            )
    network(*batch((16, 16)), {})
    assert sizes == {(way, level): 16 // 2**level for way in ("down", "up") for level in range(3)}


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("size", [(8, 8), (4, 12), (16, 2)])
def test_channels_and_sizes(channels, size):
    """Non-square images and any number of channels in and out, which need not agree."""
    for out in (channels, 3):
        network = small(in_channels=channels, out_channels=out)
        assert network(*batch(size, channels), {}).shape == (2, out, *size)


def test_height_and_width_keep_their_roles():
    """An image on its side is not mixed up: with kernels that treat both axes alike, the output
    lies on its side too."""
    network = small().eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = (module.weight.data + module.weight.data.transpose(-1, -2)) / 2
    x, timestep = batch((4, 12))
    torch.testing.assert_close(
        network(x.mT, timestep, {}), network(x, timestep, {}).mT, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("size", [(9, 8), (8, 9), (6, 8), (8, 2)])
def test_sizes_that_do_not_divide_are_refused(size):
    """3 levels need multiples of 4; the message says so."""
    with pytest.raises(ValueError, match="divisible by 4"):
        small(multipliers=[1, 1, 1])(*batch(size), {})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"channels": 20, "groups": 8}, "groups=8"),
        ({"heads": 3}, "heads=3"),
        ({"attention_levels": [2]}, "no level 2"),
        ({"attention_levels": [-1]}, "no level -1"),
        ({"channels": 3, "groups": 1}, "even"),
        ({"channels": 2, "groups": 1}, "even"),
        ({"multipliers": []}, "at least one level"),
        ({"blocks": 0}, "at least one block"),
    ],
)
def test_impossible_networks_are_refused(options, match):
    """Each constructor mistake has its own message."""
    with pytest.raises(ValueError, match=match):
        UNet(
            **(
                {
                    "channels": 16,
                    "multipliers": [1, 2],
                    "blocks": 1,
                    "attention_levels": [1],
                    "groups": 4,
                }
                | options
            )
        )


@pytest.mark.parametrize("channels", [32, 128])
def test_timestep_embedding_is_hos(channels):
    """sin(t w_k) then cos(t w_k), w_k = 10000^(-k / (channels/2 - 1)), in float64; float32 angles
    near 1000 are good to 1e-4."""
    t, half = np.array([0, 1, 17, 500, 999]), channels // 2
    angle = t[:, None] * 10000.0 ** (-np.arange(half) / (half - 1))
    expected = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    ours = timestep_embedding(torch.from_numpy(t), channels)
    assert ours.shape == (5, channels)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    np.testing.assert_allclose(ours[:2], expected[:2], atol=3e-7)


def test_downsample_pads_right_and_bottom():
    """TensorFlow's SAME at stride 2 on even sizes: output (i, j) is the 3x3 window that starts at
    (2i, 2j), zeros beyond the end."""
    layer = UNet(4, [1, 1], 1, [], groups=1).downsample(1).double()
    x, weight = torch.randn(1, 1, 4, 6, dtype=torch.float64), layer.conv.weight[0, 0]
    out = output_of(layer(Sum(x)))
    assert out.shape == (1, 1, 2, 3)
    for i in range(2):
        for j in range(3):
            window = x[0, 0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            expected = (
                window * weight[: window.shape[0], : window.shape[1]]
            ).sum() + layer.conv.bias[0]
            torch.testing.assert_close(out[0, 0, i, j], expected)


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_is_its_formula(heads):
    """x + out(softmax(q k^T / sqrt(d)) v) over all pixels, head by head, in float64; q, k and v are
    qkv's thirds."""
    layer, channels = Attention(8, 4, heads).double(), 8
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    normed = nn.functional.group_norm(x, 4, layer.norm.weight, layer.norm.bias, 1e-6)
    pixels = normed.flatten(2).mT  # [B, HW, C]
    q, k, v = (
        pixels @ w.T + b
        for w, b in zip(
            layer.qkv.weight.split(channels), layer.qkv.bias.split(channels), strict=True
        )
    )
    width, parts = channels // heads, []
    for cut in (slice(h * width, (h + 1) * width) for h in range(heads)):
        parts.append((q[..., cut] @ k[..., cut].mT / math.sqrt(width)).softmax(-1) @ v[..., cut])
    expected = x + (torch.cat(parts, -1) @ layer.out.weight.T + layer.out.bias).mT.reshape(x.shape)
    torch.testing.assert_close(layer(Sum(x)).total(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_nothing(dropout):
    """Equal outputs and gradients, dropout drawn from the same seed, with less kept in between."""
    networks = [
        small(dropout=dropout, blocks=2, gradient_checkpointing=on).train() for on in (False, True)
    ]
    plain, saved = (gradients(network, *batch()) for network in networks)
    for a, b in zip(plain, saved, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    kept = []
    for network in networks:
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (kept.__setitem__(-1, kept[-1] + t.numel()), t)[1], lambda t: t
        ):
            network(*batch(), {})
    assert kept[1] < kept[0] / 2
    if dropout:
        other = small(blocks=2).train()
        assert not torch.allclose(gradients(other, *batch())[0], plain[0])


def test_dropout_is_off_in_eval():
    """eval() is a function of its input; train() with dropout is not."""
    network = small(dropout=0.5)
    x, timestep = batch()
    assert not torch.equal(network.train()(x, timestep, {}), network(x, timestep, {}))
    assert torch.equal(network.eval()(x, timestep, {}), network(x, timestep, {}))


def test_class_conditioning():
    """classes + 1 rows: the last is the null class and what a missing label means; other labels
    change their own image only."""
    network = small(classes=3).eval()
    assert network.class_embedding.weight.shape == (4, 64)
    x, timestep = batch(count=3)
    null = network(x, timestep, {"label": torch.tensor([3, 3, 3])})
    assert torch.equal(network(x, timestep, {}), null)
    labelled = network(x, timestep, {"label": torch.tensor([3, 1, 0])})
    torch.testing.assert_close(labelled[0], null[0])
    assert all((labelled[k] - null[k]).abs().max() > 1e-3 for k in (1, 2))
    assert not hasattr(small(), "class_embedding")


def test_time_changes_its_own_image_only():
    """Images of a batch do not see each other, and each sees its timestep."""
    network = small().eval()
    x, timestep = batch(count=3)
    together, moved = network(x, timestep, {}), network(x, timestep + torch.tensor([0, 50, 0]), {})
    torch.testing.assert_close(moved[[0, 2]], together[[0, 2]])
    assert (moved[1] - together[1]).abs().max() > 1e-2
    torch.testing.assert_close(
        network(x[1:2], timestep[1:2], {}), together[1:2], rtol=1e-4, atol=1e-5
    )


def test_channels_last_is_only_a_layout():
    """channels_last out, whatever comes in, with the values and gradients of a contiguous input;
    also for channels_last weights."""
    network, (x, timestep) = small(attention_levels=[0, 1]), batch()
    plain = gradients(network, x, timestep)
    out = network(x.contiguous(memory_format=torch.channels_last), timestep, {})
    torch.testing.assert_close(out, plain[0])
    assert out.is_contiguous(memory_format=torch.channels_last) and plain[0].is_contiguous(
        memory_format=torch.channels_last
    )
    for weights in (torch.contiguous_format, torch.channels_last):
        network = small(attention_levels=[0, 1]).to(memory_format=weights)
        for a, b in zip(
            gradients(network, x.to(memory_format=torch.channels_last), timestep),
            plain,
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_runs_in_other_types(dtype):
    """The whole network cast to a type computes in it, near float32's result."""
    network, (x, timestep) = small().eval(), batch()
    plain, cast = network(x, timestep, {}), network.to(dtype)(x.to(dtype), timestep, {})
    assert cast.dtype == dtype
    assert (cast.float() - plain).abs().max() < (
        1e-4 if dtype == torch.float64 else 0.2
    ) * plain.abs().max()


def branches(network):
    """(name, weight, scale): every weight with Ho's scale of it, qkv as its three square
    matrices."""
    for name, parameter in network.named_parameters():
        if not name.endswith("weight") or "norm" in name or "class_embedding" in name:
            continue
        near_zero = name.endswith(("conv2.weight", "out.weight")) and "norm" not in name
        for k, weight in enumerate(parameter.chunk(3 if "qkv" in name else 1)):
            yield f"{name}[{k}]", weight.detach(), 1e-10 if near_zero else 1.0


def test_initialization_is_hos():
    """Uniform in +- sqrt(3 scale / mean(fan in, fan out)); scale 1e-10 in the last layer of each
    block, attention and of the network; biases 0, norms the identity. Variance within 5 standard
    errors, the largest value just below the limit."""
    torch.manual_seed(0)
    network, seen = UNet(32, [1, 2], 2, [1], groups=8), {1.0: 0, 1e-10: 0}
    for name, weight, scale in branches(network):
        fans = (weight.shape[0] + weight.shape[1]) * weight[0, 0].numel() / 2
        limit, count = math.sqrt(3 * scale / fans), weight.numel()
        assert weight.abs().max() <= limit * (1 + 1e-6), name
        assert weight.abs().max() > limit * (1 - 20 / count), name
        relative_error = math.sqrt(0.8 / count)  # of the variance of a uniform draw
        assert abs(weight.double().square().mean() * fans / scale - 1) < 5 * relative_error, name
        seen[scale] += 1
    blocks, attentions = 12, 6  # 2 + 2 down, 2 in the middle, 3 + 3 up; 2 + 1 + 3
    assert seen[1e-10] == blocks + attentions + 1
    # time, in, conv1 and time_proj, shortcuts, q k v, resampling
    assert seen[1.0] == 2 + 1 + 2 * blocks + 7 + 3 * attentions + 2
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        if name.split(".")[-2].startswith("norm") and name.endswith("weight"):
            assert (parameter == 1).all(), name


def test_starts_as_nearly_zero():
    """The near-zero layers make the new network's output about 0 and each block and attention about
    its shortcut."""
    torch.manual_seed(0)
    network, (x, timestep) = UNet(32, [1, 2], 1, [1], groups=8), batch()
    assert network(x, timestep, {}).abs().max() < 1e-3
    h, time = torch.randn(2, 32, 4, 4), torch.randn(2, 32)
    torch.testing.assert_close(
        output_of(network.down[0].block[0](Sum(h), time)), h, rtol=0, atol=1e-3
    )
    h = torch.randn(2, 64, 4, 4)
    torch.testing.assert_close(network.mid.attention[0](Sum(h)).total(), h, rtol=0, atol=1e-3)


@pytest.mark.parametrize("adm", [False, True])
def test_told_of_augmentations(adm):
    """Of nothing done, to the bit what the network without the map is, whatever the map; other
    weights are drawn as without it; what is told changes its own image only."""
    kinds = {True: partial(ADMUNet, heads=1), False: UNet}
    size = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention_levels": (1,)}
    networks = []
    for augmentations in (0, 12):
        torch.manual_seed(0)
        networks.append(kinds[adm](**size, groups=4, augmentations=augmentations).eval())
    plain, told = networks
    own = told.state_dict()
    table = own.pop("augmentation_embedding.weight")
    assert table.shape == (16, 12) and not table.any()
    assert all(torch.equal(w, own[name]) for name, w in plain.state_dict().items())
    randomize(told)
    plain.load_state_dict({n: w for n, w in told.state_dict().items() if n in own})
    assert told.augmentation_embedding.weight.any()
    (x, timestep), zeros = batch(count=3), torch.zeros(3, 12)
    expected = plain(x, timestep, {})
    assert torch.equal(told(x, timestep, {}), expected)
    assert torch.equal(told(x, timestep, {"augmentation": zeros}), expected)
    zeros[1, 4] = 0.5
    assert torch.equal(plain(x, timestep, {"augmentation": zeros}), expected)
    found = told(x, timestep, {"augmentation": zeros})
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])
    assert (found[1] - expected[1]).abs().max() > 1e-3
