"""DDIM's PyTorch checkpoints in our UNet: names, lists and prefixes, messages; outputs and
gradients against formulas on their names."""

from __future__ import annotations

import pytest
import torch

from models.adm import ADMUNet
from models.formats.ddim import from_ddim, is_ddim, to_ddim, weights_of
from models.formats.openai import is_openai
from models.unet import UNet
from runtime.errors import UserError
from tests.helpers.ddim_reference import random_state, reference, shapes
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
