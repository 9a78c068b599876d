"""DDIM's PyTorch checkpoints in our UNet: names, lists and prefixes, messages; outputs and
gradients against formulas on their names."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from models.adm import ADMUNet
from models.formats.ddim import from_ddim, is_ddim, to_ddim, weights_of
from models.formats.openai import is_openai
from models.unet import UNet
from runtime.errors import UserError
from tests.helpers.adm_reference import Once
from tests.helpers.networks import GOLDEN, configured
from tests.helpers.openai_files import CONFIGURATIONS, published, worst

# their configs/celeba.yml
CELEBA = {
    "channels": 128,
    "multipliers": [1, 2, 2, 2, 4],
    "blocks": 2,
    "attention_levels": [2],
}
# no group of one channel, which hides biases
SMALL = {
    "channels": 64,
    "multipliers": [1, 1, 2],
    "blocks": 2,
    "attention_levels": [1],
}


def shapes(channels, multipliers, blocks, attention_levels):
    """Their names -> shapes, for RGB."""
    found, time, widths = {}, 4 * channels, [m * channels for m in multipliers]

    def layer(name, *shape):
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    def residual(name, width_in, width):
        layer(f"{name}.norm1", width_in)
        layer(f"{name}.conv1", width, width_in, 3, 3)
        layer(f"{name}.temb_proj", width, time)
        layer(f"{name}.norm2", width)
        layer(f"{name}.conv2", width, width, 3, 3)
        if width_in != width:
            layer(f"{name}.nin_shortcut", width, width_in, 1, 1)

    def attention(name, width):
        layer(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{name}.{part}", width, width, 1, 1)

    layer("temb.dense.0", time, channels)
    layer("temb.dense.1", time, time)
    layer("conv_in", channels, 3, 3, 3)
    before = [channels, *widths]
    for level, width in enumerate(widths):
        for k in range(blocks):
            residual(f"down.{level}.block.{k}", before[level] if k == 0 else width, width)
            if level in attention_levels:
                attention(f"down.{level}.attn.{k}", width)
        if level < len(widths) - 1:
            layer(f"down.{level}.downsample.conv", width, width, 3, 3)
    residual("mid.block_1", widths[-1], widths[-1])
    attention("mid.attn_1", widths[-1])
    residual("mid.block_2", widths[-1], widths[-1])
    below = [*widths[1:], widths[-1]]
    for level, width in enumerate(widths):
        for k in range(blocks + 1):
            residual(
                f"up.{level}.block.{k}",
                (below[level] if k == 0 else width) + (before[level] if k == blocks else width),
                width,
            )
            if level in attention_levels:
                attention(f"up.{level}.attn.{k}", width)
        if level:
            layer(f"up.{level}.upsample.conv", width, width, 3, 3)
    layer("norm_out", widths[0])
    layer("conv_out", 3, widths[0], 3, 3)
    return found


def random_state(configuration):
    """Weights that keep the signal's size, norms about 1, biases 0.3."""
    generator, state = torch.Generator().manual_seed(0), {}
    for name, shape in shapes(**configuration).items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        is_scale = ".norm" in f".{name}" and name.endswith("weight")
        state[name] = (
            noise * noise[0].numel() ** -0.5 if noise.ndim > 1 else 0.3 * noise + float(is_scale)
        )
    return state


def reference(state, x, timestep, blocks):
    """Ho et al. 2020 on their names. Every tensor is used, and none twice."""
    state = Once(state)
    half = state["temb.dense.0.weight"].shape[1] // 2
    angle = timestep.float()[:, None] * torch.exp(
        torch.arange(half, dtype=torch.float32) * -(math.log(10000) / (half - 1))
    )
    time = F.linear(
        torch.cat([angle.sin(), angle.cos()], 1).to(x.dtype), *state.take("temb.dense.0")
    )
    time = F.linear(F.silu(time), *state.take("temb.dense.1"))

    def norm(name, h):
        return F.group_norm(h, 32, *state.take(name), eps=1e-6)

    def residual(name, h):
        skip = (
            F.conv2d(h, *state.take(f"{name}.nin_shortcut"))
            if state.has(f"{name}.nin_shortcut")
            else h
        )
        h = F.conv2d(F.silu(norm(f"{name}.norm1", h)), *state.take(f"{name}.conv1"), padding=1)
        h = h + F.linear(F.silu(time), *state.take(f"{name}.temb_proj"))[:, :, None, None]
        return skip + F.conv2d(
            F.silu(norm(f"{name}.norm2", h)), *state.take(f"{name}.conv2"), padding=1
        )

    def attention(name, h):
        if not state.has(f"{name}.q"):
            return h
        normed = norm(f"{name}.norm", h)
        q, k, v = (F.conv2d(normed, *state.take(f"{name}.{part}")).flatten(2) for part in "qkv")
        weight = (torch.einsum("bdi,bdj->bij", q, k) / math.sqrt(q.shape[1])).softmax(-1)
        return h + F.conv2d(
            torch.einsum("bij,bdj->bdi", weight, v).reshape(h.shape),
            *state.take(f"{name}.proj_out"),
        )

    h = F.conv2d(x, *state.take("conv_in"), padding=1)
    skips, levels = [h], len({name.split(".")[1] for name in state if name.startswith("down.")})
    for level in range(levels):
        for k in range(blocks):
            h = attention(f"down.{level}.attn.{k}", residual(f"down.{level}.block.{k}", h))
            skips.append(h)
        if level < levels - 1:
            h = F.conv2d(
                F.pad(h, (0, 1, 0, 1)), *state.take(f"down.{level}.downsample.conv"), stride=2
            )
            skips.append(h)
    h = residual("mid.block_2", attention("mid.attn_1", residual("mid.block_1", h)))
    for level in reversed(range(levels)):
        for k in range(blocks + 1):
            h = attention(
                f"up.{level}.attn.{k}",
                residual(f"up.{level}.block.{k}", torch.cat([h, skips.pop()], 1)),
            )
        if level:
            h = h.repeat_interleave(2, -1).repeat_interleave(2, -2)
            h = F.conv2d(h, *state.take(f"up.{level}.upsample.conv"), padding=1)
    h = F.conv2d(F.silu(norm("norm_out", h)), *state.take("conv_out"), padding=1)
    assert not state, f"not used: {list(state)}"
    return h


def test_is_the_published_network():
    """Outputs and the gradients of the input and of every tensor, in float64, within 1e-12."""
    network, state = UNet(**SMALL).double(), random_state(SMALL)
    network.load_state_dict(from_ddim(state, network))  # strict
    generator = torch.Generator().manual_seed(1)
    x, weight = (
        torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    timestep = torch.tensor([13, 998])
    ours_x, theirs_x = (x.clone().requires_grad_() for _ in range(2))
    ours = network(ours_x, timestep, {})
    (ours * weight).sum().backward()
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    theirs = reference(leaves, theirs_x, timestep, blocks=2)
    (theirs * weight).sum().backward()
    grads, their_grads = (
        to_ddim({name: p.grad for name, p in network.named_parameters()}),
        {n: leaf.grad for n, leaf in leaves.items()},
    )
    assert grads.keys() == their_grads.keys()
    # softmax ignores what is added to every key
    true_zero = {name for name in their_grads if name.endswith(".k.bias")}
    assert all(
        grads[name].abs().max() < 1e-12 * max(g.abs().max() for g in their_grads.values())
        for name in true_zero
    )
    out = worst({"out": ours, "x": ours_x.grad}, {"out": theirs, "x": theirs_x.grad})
    rest = worst(grads, {name: g for name, g in their_grads.items() if name not in true_zero})
    print(f"\noutput and input's gradient {out[0]:.1e}, parameters' gradients at most {rest}")
    assert out[0] < 1e-12 and rest[0] < 1e-12


@pytest.mark.parametrize("name", GOLDEN)
def test_published_configurations_by_name_and_shape(name):
    """CelebA 64, and Ho's CIFAR-10 and 256 px as converted: every tensor and no other, and back; on
    the meta device."""
    arguments = configured(name) | {"out_channels": 3}
    with torch.device("meta"):
        network = UNet(**arguments)
    architecture = {key: arguments[key] for key in CELEBA}
    assert name != "ddpm_celeba64" or architecture == CELEBA
    state = {
        key: torch.empty(shape, device="meta") for key, shape in shapes(**architecture).items()
    }
    assert is_ddim(state) and sum(tensor.numel() for tensor in state.values()) == GOLDEN[name]
    loaded = from_ddim(state, network)
    assert {key: t.shape for key, t in loaded.items()} == {
        key: t.shape for key, t in network.state_dict().items()
    }
    assert {key: tuple(t.shape) for key, t in to_ddim(loaded).items()} == shapes(**architecture)


def test_a_training_checkpoint_has_weights_and_their_average():
    """[weights, optimizer, epoch, step, average], names with and without "module."; the average
    where it was kept, or what is asked."""
    network, state = UNet(**SMALL), random_state(SMALL)
    averaged = {name: 2 * tensor for name, tensor in state.items()}
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    checkpoint = [wrapped, {"state": {}, "param_groups": []}, 3, 1000, averaged]
    for loaded, factor in (
        (from_ddim(checkpoint, network), 2),
        (from_ddim(checkpoint, network, ema=False), 1),
        (from_ddim(checkpoint[:4], network), 1),
        (from_ddim(wrapped, network), 1),
    ):
        assert torch.equal(
            loaded["down.1.attention.0.qkv.weight"][:64],
            factor * state["down.1.attn.0.q.weight"][:, :, 0, 0],
        )
        assert torch.equal(loaded["time_mlp.2.bias"], factor * state["temb.dense.1.bias"])
    assert all(
        torch.equal(tensor, state[name])
        for name, tensor in to_ddim(from_ddim(wrapped, network)).items()
    )
    assert is_ddim(checkpoint) and is_ddim(wrapped) and is_ddim(state)


def test_other_files_are_told_apart():
    """Ours, OpenAI's, and what is no state dict at all."""
    openai = published(CONFIGURATIONS["improved"])
    for other in (UNet(**SMALL).state_dict(), openai, [1, 2], [], None, {"state_dict": {}}):
        assert not is_ddim(other)
    assert weights_of(None) == {} and not is_openai(random_state(SMALL))


@pytest.mark.parametrize(
    ("changed", "override"),
    [
        ({"channels": 96}, "model.channels=64 "),
        ({"multipliers": [1, 2, 3]}, "model.multipliers=[1,1,2] "),
        ({"multipliers": [1, 1]}, "model.multipliers=[1,1,2] "),
        ({"blocks": 1}, "model.blocks=2 "),
        ({"attention_levels": []}, "model.attention_levels=[1] "),
        ({"classes": 4}, "model.classes=0 "),
        ({"in_channels": 1}, "data.channels=3 "),
        ({"out_channels": 6}, "variance=fixed_large, or another that is fixed: 3 "),
    ],
)
def test_a_setting_that_differs_is_named(changed, override):
    """One message: the setting as an override with the checkpoint's value, and no setting that
    agrees."""
    with pytest.raises(UserError) as error:
        from_ddim(random_state(SMALL), UNet(**SMALL | changed))
    named = [line.strip() for line in str(error.value).splitlines() if "(now " in line]
    assert len(named) == 1 and named[0].startswith(override), error.value


def test_what_is_no_such_checkpoint():
    """Another file, another UNet, several heads, an incomplete file."""
    network, state = UNet(**SMALL), random_state(SMALL)
    with pytest.raises(UserError, match="neither a state dict nor"):
        from_ddim([3], network)
    for other in (UNet(**SMALL, heads=2), ADMUNet(**SMALL, heads=1, scale_shift=False)):
        with pytest.raises(UserError, match=r"models\.unet\.UNet with model\.heads=1"):
            from_ddim(state, other)
    for name in ("conv_in.weight", "mid.attn_1.k.bias"):
        with pytest.raises(UserError, match=rf"incomplete(.|\n)*lacks 1 tensors .*{name}"):
            from_ddim({key: tensor for key, tensor in state.items() if key != name}, network)
