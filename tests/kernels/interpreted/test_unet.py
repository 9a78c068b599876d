"""The UNet really runs on the kernels: every norm and every attention of a training step and of a
step of sampling, none through the reference; and it says and learns what it does on the
reference."""

import copy
from collections import Counter

import kernels.attention
import kernels.group_norm  # noqa: F401  reads signatures that are forbidden below

# isort: split
import pytest
import torch
import torch.nn.functional as F

from diffusion.denoiser import Denoiser
from diffusion.losses import simple_loss
from diffusion.parameterization import PredictNoise
from diffusion.schedule import linear
from kernels import dispatch, reference
from kernels.launch import watched
from models.adm import ADMUNet
from models.layers import Attention, GroupNorm
from models.unet import UNet
from sampling.cuda_graph import prepared
from transfer.adapters import inject, parameters
from transfer.lora import LoRA

OPERATIONS = ("group_norm_act", "add_group_norm_act", "group_norm_act_cat", "attention")
SIZE = (8, 4)


@pytest.fixture(autouse=True)
def chosen():
    """Triton, as kernels=triton chooses it; the process's own choice comes back."""
    before = dispatch._chosen
    dispatch.select("triton", torch.get_default_device())
    yield
    dispatch._chosen = before


def forbid_the_reference(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("through the reference")

    for name in OPERATIONS:
        monkeypatch.setattr(reference, name, refused)
    monkeypatch.setattr(F, "group_norm", refused)
    monkeypatch.setattr(F, "scaled_dot_product_attention", refused)


def network(kind, **options):
    torch.manual_seed(0)
    more = {"heads": 2, "resample_blocks": True} if kind is ADMUNet else {}
    made = kind(16, [1, 2], 1, [1], groups=4, dropout=0.2, **more, **options)
    for parameter in made.parameters():
        torch.nn.init.normal_(
            parameter, std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
        )
    return made.to(memory_format=torch.channels_last)


def norms_and_attentions(made):
    modules = list(made.modules())
    return sum(isinstance(m, GroupNorm) for m in modules), sum(
        isinstance(m, Attention) for m in modules
    )


def calls(launches):
    """How often each operation ran: of a norm in two kernels, the first."""
    return Counter(each.kernel.__name__ for each in launches if each.constants.get("STAGE") != 2)


def one_step(made):
    """Loss and all gradients of a training step, with dropout."""
    torch.manual_seed(5)
    x0, t, noise = torch.randn(2, 3, *SIZE), torch.tensor([3, 30]), torch.randn(2, 3, *SIZE)
    loss = simple_loss(
        Denoiser(made, linear(40), PredictNoise()).train().forward_pass(x0, t, noise)
    ).mean()
    loss.backward()
    return {
        "loss": loss.detach(),
        **{name: p.grad for name, p in parameters(made).items() if p.requires_grad},
    }


def test_every_norm_and_attention_of_a_sampling_step_is_a_kernel(monkeypatch):
    forbid_the_reference(monkeypatch)
    made = network(UNet).eval().requires_grad_(False)
    denoise = prepared(Denoiser(made, linear(40), PredictNoise()), [21, 1])(None)
    with watched() as launches:
        denoise(torch.randn(2, 3, *SIZE), 21)
    norms, attentions = norms_and_attentions(made)
    assert calls(launches) == {
        "group_norm_forward_kernel": norms,
        "attention_forward_kernel": attentions,
    }


def compared(ours, theirs):
    assert ours.keys() == theirs.keys() and len(ours) > 50
    largest = max(value.abs().max() for value in theirs.values())
    for name, expected in theirs.items():
        torch.testing.assert_close(
            ours[name],
            expected,
            rtol=1e-3,
            atol=2e-5 * float(largest),
            msg=lambda m, name=name: f"{name}: {m}",
        )


@pytest.mark.parametrize(
    ("kind", "checkpointing"),
    [
        (UNet, False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(ADMUNet, False), (UNet, True)]),
    ],
)
def test_a_training_step_is_the_references(kind, checkpointing, monkeypatch):
    """Every norm and every attention is a kernel (those inside a checkpoint run forward twice);
    biases left to the norms, sums to the next norm, and the same masks of dropout."""
    made = network(kind, gradient_checkpointing=checkpointing)
    norms, attentions = norms_and_attentions(made)
    assert norms > 10 and attentions > 1
    with monkeypatch.context() as without, watched() as launches:
        forbid_the_reference(without)
        ours = one_step(copy.deepcopy(made))
    ran = calls(launches)
    forward = ran.pop("group_norm_forward_kernel"), ran.pop("attention_forward_kernel")
    assert (
        norms < forward[0] <= 2 * norms and forward[1] == 2 * attentions
        if checkpointing
        else forward == (norms, attentions)
    )
    assert ran == {
        "group_norm_backward_kernel": norms,
        "attention_backward_q_kernel": attentions,
        "attention_backward_kv_kernel": attentions,
    }
    dispatch.select("reference", torch.get_default_device())
    compared(ours, one_step(made))


def test_injected_parameters_of_a_convolution_whose_bias_is_left_to_the_norm():
    """LoRA beside frozen weights, with trained biases: each gradient is the reference's, and
    nothing frozen has one."""
    made = network(UNet)
    made.requires_grad_(False)
    inject(
        made, [LoRA(["*.conv1.weight", "*.conv2.weight", "*.shortcut.weight", "*.qkv.weight"], 2)]
    )
    draw = torch.Generator().manual_seed(3)
    for name, parameter in parameters(made).items():
        if "lora" in name:
            parameter.data.normal_(std=0.3, generator=draw)
        parameter.requires_grad_("lora" in name or name.endswith("bias"))
    ours = one_step(copy.deepcopy(made))
    dispatch.select("reference", torch.get_default_device())
    compared(ours, one_step(made))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_whole_network_compiles_in_one_graph(backend):
    """inductor: also with the code and the layouts that it makes of what lies between the
    kernels."""
    made = network(UNet)
    x, t = torch.randn(2, 3, *SIZE), torch.tensor([3, 30])
    compiled = torch.compile(copy.deepcopy(made), fullgraph=True, backend=backend)
    outputs, gradients = [], []
    for each in (made, compiled):
        outputs.append(each.eval()(x, t, {}))  # inductor draws other seeds of dropout
        outputs[-1].square().sum().backward()
        gradients.append([p.grad for p in each.parameters()])
    assert outputs[1].stride() == outputs[0].stride()
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
