"""OpenAI's checkpoints in our ADMUNet: names, shapes, both attention orders and the messages where
something does not fit. Outputs and gradients against tests/helpers/adm_reference.py, which computes
on the published names by its own formulas.
"""

from __future__ import annotations

import pytest
import torch

from models.adm import ADMUNet
from models.formats.openai import from_openai, is_openai, settings, to_openai
from models.unet import UNet
from runtime.errors import UserError
from tests.helpers import adm_reference
from tests.helpers.networks import PUBLISHED, configured
from tests.helpers.openai_files import CONFIGURATIONS, NOT_IN_SHAPES, published, worst


def network_of(configuration, **options):
    return ADMUNet(**{"groups": 4, "out_channels": 6} | configuration | options)


@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_is_the_published_network(name, new_order):
    """Outputs and the gradients of the input and of every published tensor, in float64, within
    1e-12; every tensor is used once."""
    configuration = CONFIGURATIONS[name]
    network, state = network_of(configuration).double(), published(configuration)
    network.load_state_dict(from_openai(state, network, new_order))  # strict
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(2, 6, 8, 8, generator=generator, dtype=torch.float64)
    timestep, label = torch.tensor([13, 998]), torch.tensor([1, 0]) if network.classes else None

    ours_x, theirs_x = (x.clone().requires_grad_() for _ in range(2))
    ours = network(ours_x, timestep, {} if label is None else {"label": label})
    (ours * weight).sum().backward()
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    more = {
        key: configuration[key]
        for key in ("blocks", "heads", "head_channels", "timestep_scale")
        if key in configuration
    }
    theirs = adm_reference.unet(
        leaves, theirs_x, timestep, label, new_order=new_order, groups=4, **more
    )
    (theirs * weight).sum().backward()

    grads = to_openai({name: p.grad for name, p in network.named_parameters()}, network, new_order)
    their_grads = {name: leaf.grad for name, leaf in leaves.items()}
    assert grads.keys() == their_grads.keys() and all(
        g.abs().max() > 0 for g in their_grads.values()
    )
    out = worst({"out": ours, "x": ours_x.grad}, {"out": theirs, "x": theirs_x.grad})
    print(
        f"\n{name}, {'new' if new_order else 'legacy'} order: output and input's gradient "
        f"{out[0]:.1e}, parameters' gradients at most {worst(grads, their_grads)}"
    )
    assert out[0] < 1e-12 and worst(grads, their_grads)[0] < 1e-12


def test_the_attention_orders_differ():
    """With several heads the wrong order is another network; with one head there is only one
    order."""
    for heads, same in ((2, False), (1, True)):
        configuration = CONFIGURATIONS["no scale shift"] | {"heads": heads}
        network, state = network_of(configuration).double(), published(configuration)
        ours = [from_openai(state, network, order) for order in (False, True)]
        assert all(torch.equal(ours[0][name], ours[1][name]) for name in ours[0]) == same


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_by_name_and_shape(name):
    """On the meta device: every tensor of the published file, and no other, with its shape; and
    back."""
    arguments = configured(name)
    with torch.device("meta"):
        network = ADMUNet(**arguments, out_channels=6)
    shapes = adm_reference.shapes(
        out_channels=6, **{k: v for k, v in arguments.items() if k not in NOT_IN_SHAPES}
    )
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert is_openai(state) and sum(tensor.numel() for tensor in state.values()) == PUBLISHED[name]
    loaded = from_openai(state, network)
    assert {key: t.shape for key, t in loaded.items()} == {
        key: t.shape for key, t in network.state_dict().items()
    }
    back = to_openai(loaded, network)
    assert {key: tuple(t.shape) for key, t in back.items()} == shapes
    found = settings(state)
    assert found["out_channels"] == 6 and all(
        arguments[key] == value for key, value in found.items() if key in arguments
    )


@pytest.mark.parametrize("new_order", [False, True])
def test_there_and_back(new_order):
    """to_openai undoes from_openai to the bit; the null class is the mean of the others."""
    configuration = CONFIGURATIONS["adm"]
    network, state = network_of(configuration), published(configuration)
    ours = from_openai(state, network, new_order)
    back = to_openai(ours, network, new_order)
    assert back.keys() == state.keys() and all(
        torch.equal(back[name], state[name]) for name in state
    )
    table = ours["class_embedding.weight"]
    assert table.shape[0] == 6
    torch.testing.assert_close(table[-1], state["label_emb.weight"].mean(0))


@pytest.mark.parametrize(
    ("changed", "override"),
    [
        ({"channels": 32}, "model.channels=16 "),
        ({"multipliers": [1, 2, 2]}, "model.multipliers=[1,2,3] "),
        ({"multipliers": [1, 2, 3, 3]}, "model.multipliers=[1,2,3] "),
        ({"blocks": 3}, "model.blocks=2 "),
        ({"attention_levels": [2]}, "model.attention_levels=[1,2] "),
        ({"scale_shift": False}, "model.scale_shift=true "),
        ({"resample_blocks": False}, "model.resample_blocks=true "),
        ({"classes": 0}, "model.classes=5 "),
        ({"classes": 7}, "model.classes=5 "),
        ({"out_channels": 3}, "variance=learned_range: 6 output channels"),
        ({"in_channels": 1}, "data.channels=3 "),
    ],
)
def test_a_setting_that_differs_is_named(changed, override):
    """One message: the setting as an override with the checkpoint's value, and no setting that
    agrees."""
    configuration = CONFIGURATIONS["adm"]
    with pytest.raises(UserError) as error:
        from_openai(published(configuration), network_of(configuration, **changed))
    lines = str(error.value).splitlines()
    named = [line for line in lines if "(now " in line]
    assert len(named) == 1 and named[0].strip().startswith(override), error.value
    assert "head_channels" in lines[3] and len(lines) > 4


def test_a_fixed_variance_and_an_upsampler_are_named():
    """A checkpoint of three channels out; one of six in."""
    configuration = CONFIGURATIONS["improved"]
    with pytest.raises(
        UserError, match=r"variance=fixed_large, .* 3 output channels for an image of 3   \(now 6\)"
    ):
        from_openai(published(configuration, out_channels=3), network_of(configuration))
    with pytest.raises(UserError, match="upsampler"):
        from_openai(published(configuration, in_channels=6), network_of(configuration))


def test_several_settings_are_named_together():
    """Flags of the 256 px model for a checkpoint of another family."""
    with pytest.raises(UserError) as error:
        from_openai(published(CONFIGURATIONS["improved"]), network_of(CONFIGURATIONS["adm"]))
    for line in (
        "model.multipliers=[1,2,2] ",
        "model.blocks=3 ",
        "model.resample_blocks=false ",
        "model.classes=0 ",
    ):
        assert line in str(error.value)
    assert "tensors of the network: " in str(error.value) and "input_blocks." in str(error.value)


def test_what_is_no_such_checkpoint():
    """A classifier, Ho's network, an incomplete file: a message of its own for each."""
    configuration = CONFIGURATIONS["improved"]
    network, state = network_of(configuration), published(configuration)
    with pytest.raises(UserError, match="classifier"):
        from_openai(
            {name: tensor for name, tensor in state.items() if "output_blocks" not in name}, network
        )
    with pytest.raises(UserError, match=r"ADMUNet"):
        from_openai(state, UNet(16, [1, 2, 2], 3, [1, 2], groups=4, out_channels=6))
    with pytest.raises(UserError, match=r"incomplete.*\n.*lacks 1 tensors .*out.2.bias"):
        from_openai(
            {name: tensor for name, tensor in state.items() if name != "out.2.bias"}, network
        )
    with pytest.raises(UserError, match=r"incomplete.*\n.*lacks 1 tensors .*out.2.weight"):
        from_openai(
            {name: tensor for name, tensor in state.items() if name != "out.2.weight"}, network
        )
    assert is_openai(state) and not is_openai(network.state_dict())


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_any_lost_tensor_is_named(name):
    """Also one that the settings are read from."""
    network, state = network_of(CONFIGURATIONS[name]), published(CONFIGURATIONS[name])
    for lost in state:
        with pytest.raises(UserError, match=lost):
            from_openai({key: tensor for key, tensor in state.items() if key != lost}, network)
