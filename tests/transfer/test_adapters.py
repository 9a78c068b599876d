"""Injected parameters: each kind against its formula worked another way, the start to the bit, and
that they come out again."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from config.overrides import composed
from config.run_config import RunConfig
from models.adm import ADMUNet
from models.layers import Attention, ResBlock, Sum, output_of
from models.unet import UNet
from runtime.config_schema import build
from runtime.errors import UserError
from training.ema import Ema
from transfer.adapters import check, inject, load, parameters
from transfer.difffit import BranchScale
from transfer.lora import LoRA
from transfer.merge_adapters import merge
from transfer.svdiff import SpectralShift
from transfer.textual_inversion import NewRows

CONVOLUTIONS = ["*.conv*.weight", "*.shortcut.weight"]  # not conv_in and conv_out
LAST = ["*.conv2", "*.attention.*.out"]
QKV, OUT = ["*.attention.*.qkv.weight"], ["*.attention.*.out.weight"]
KINDS = {
    "lora": [LoRA(QKV, 2, branches=3), LoRA(OUT, 2, alpha=3)],
    "locon": [LoRA([*CONVOLUTIONS, "*.time_proj.weight"], 2)],
    "scale": [BranchScale(LAST)],
    "spectral": [
        SpectralShift(
            ["*conv*.weight", "*.shortcut.weight", "*.time_proj.weight", "time_mlp.*.weight", *OUT]
        ),
        SpectralShift(QKV, branches=3),
    ],
    "rows": [NewRows(2)],
    "several on one weight": [
        SpectralShift(["*.conv2.weight"]),
        LoRA(["*.conv2.weight"], 2),
        BranchScale(LAST),
    ],
}
NETWORKS = {
    "ho": lambda **more: UNet(8, [1, 2], 1, [1], groups=4, classes=3, **more),
    "adm": lambda **more: ADMUNet(
        8, [1, 2], 1, [1], groups=4, classes=3, heads=2, resample_blocks=True, **more
    ),
}
INJECTED = (".lora.", ".scale.", ".spectral.", ".rows.")


def random_values(*tensors, seed: int = 0) -> None:
    """Fills them, in place: no output is then zero by initialization."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))


def tiny(kind: str = "ho", **more) -> UNet:
    network = NETWORKS[kind](**more).to(memory_format=torch.channels_last)
    random_values(*network.parameters())
    return network


def changed(network: nn.Module) -> nn.Module:
    """Random values for all that was injected."""
    random_values(*(p for name, p in parameters(network).items() if injected(name)), seed=1)
    return network


def injected(name: str) -> bool:
    return any(part in name for part in INJECTED)


def layer(module: nn.Module, *injections) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """One layer in float64, called `layer`, with what is injected at random values."""
    network = nn.ModuleDict({"layer": module}).double()
    random_values(*network.parameters())
    inject(network, injections)
    return network["layer"], parameters(changed(network))


def output(network: UNet, size: int = 8) -> torch.Tensor:
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    return network(x, torch.tensor([3, 700]), {"label": torch.tensor([0, 3])})


# --- the kinds, by their formulas -----------------------------------------------------------------


def test_lora_on_a_linear_layer_is_a_second_path():
    plain = nn.Linear(6, 4)
    lora, values = layer(copy.deepcopy(plain), LoRA(["*.weight"], 2, alpha=3))
    x = torch.randn(5, 6, dtype=torch.float64)
    A, B = values["layer.weight.lora.down"], values["layer.weight.lora.up"]
    assert A.shape == (2, 6) and B.shape == (4, 2)
    expected = F.linear(x, values["layer.weight"], values["layer.bias"]) + 3 / 2 * F.linear(
        F.linear(x, A), B
    )
    torch.testing.assert_close(lora(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_lora_on_a_convolution_is_one_down_and_a_one_by_one_up(stride):
    lora, values = layer(nn.Conv2d(4, 6, 3, stride=stride, padding=1), LoRA(["*.weight"], 2))
    x = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    down, up = (
        values["layer.weight.lora.down"].view(2, 4, 3, 3),
        values["layer.weight.lora.up"].view(6, 2, 1, 1),
    )
    plain = F.conv2d(x, values["layer.weight"], values["layer.bias"], stride, 1)
    torch.testing.assert_close(
        lora(x), plain + F.conv2d(F.conv2d(x, down, None, stride, 1), up), rtol=0, atol=1e-12
    )


def test_three_branches_are_a_lora_each_for_q_k_and_v():
    packed, values = layer(nn.Linear(4, 12), LoRA(["*.weight"], 2, branches=3))
    x = torch.randn(5, 4, dtype=torch.float64)
    for n, part in enumerate(packed(x).chunk(3, dim=-1)):
        alone = nn.ModuleDict({"layer": nn.Linear(4, 4)}).double()
        inject(alone, [LoRA(["*.weight"], 2)])
        mine = slice(4 * n, 4 * n + 4)
        load(
            alone,
            {
                "layer.weight": values["layer.weight"][mine],
                "layer.bias": values["layer.bias"][mine],
                "layer.weight.lora.down": values["layer.weight.lora.down"][2 * n : 2 * n + 2],
                "layer.weight.lora.up": values["layer.weight.lora.up"][mine],
            },
        )
        torch.testing.assert_close(part, alone["layer"](x), rtol=0, atol=1e-12)


def test_lora_starts_uniform_within_one_over_the_root_of_the_inputs_and_by_the_seed():
    def start(seed):
        network = tiny()
        inject(network, [LoRA(["*.conv1.weight"], 2)], seed)
        return {name: p for name, p in parameters(network).items() if name.endswith("lora.down")}

    torch.manual_seed(1)
    first = start(0)
    torch.manual_seed(2)
    again, other = start(0), start(1)
    for name, down in first.items():
        bound = 1 / math.sqrt(down.shape[1])  # Kaiming with a = sqrt(5): sqrt(6 / (1 + 5) / fan_in)
        assert 0.9 * bound < down.abs().max() <= bound
        assert torch.equal(down, again[name]) and not torch.equal(down, other[name])
    assert not torch.equal(
        first["mid.block.0.conv1.weight.lora.down"], first["mid.block.1.conv1.weight.lora.down"]
    )


@pytest.mark.parametrize(
    "module, last, inputs",
    [
        (ResBlock(8, 8, 6, 4, 0.0), "conv2", (8, 8)),
        (ResBlock(4, 8, 6, 4, 0.0), "conv2", (4, 8)),
        (Attention(8, 4, 2), "out", (8,)),
    ],
)
def test_the_scale_is_of_the_whole_residual_branch(module, last, inputs):
    block = module.double()
    random_values(*block.parameters())
    x, *time = [
        torch.randn(2, c, *((3, 5) if k == 0 else ()), dtype=torch.float64)
        for k, c in enumerate(inputs)
    ]
    plain = output_of(block(Sum(x), *time))
    network = nn.ModuleDict({"block": block})
    inject(network, [BranchScale([f"*.{last}"])])
    assert [n for n in parameters(network) if injected(n)] == [f"block.{last}.weight.scale.g"]
    g = parameters(changed(network))[f"block.{last}.weight.scale.g"]
    skip = getattr(block, "shortcut", nn.Identity())(x)
    torch.testing.assert_close(
        output_of(block(Sum(x), *time)),
        skip + g[:, None, None] * (plain - skip),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize(
    "module, branches",
    [(nn.Linear(6, 4), 1), (nn.Linear(4, 6), 1), (nn.Conv2d(2, 5, 3), 1), (nn.Linear(4, 12), 3)],
)
def test_the_shift_is_of_the_singular_values_which_stay_at_least_zero(module, branches):
    shifted, values = layer(module, SpectralShift(["*.weight"], branches))
    weight, d = values["layer.weight"].detach(), values["layer.weight.spectral.shift"]
    with torch.no_grad():
        d[:, -1] = -100.0  # S + d < 0
    parts = []
    for part, shift in zip(weight.chunk(branches), d, strict=True):
        U, S, Vh = torch.linalg.svd(part.flatten(1), full_matrices=False)
        assert (S + shift).min() < 0 < (S + shift).max()
        parts.append((U @ torch.diag(F.relu(S + shift)) @ Vh).view(part.shape))
    torch.testing.assert_close(shifted.weight, torch.cat(parts), rtol=0, atol=1e-12)


def test_the_factors_are_those_of_float64():
    """float32 would lose the vectors of singular values that lie close."""
    linear = nn.Linear(64, 64)
    with torch.no_grad():
        turn = torch.linalg.qr(
            torch.randn(2, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        )[0]
        linear.weight.copy_(
            turn[0] * torch.linspace(1, 1 + 1e-3, 64, dtype=torch.float64) @ turn[1].T
        )
    U, _, Vh = torch.linalg.svd(linear.weight.detach().double())
    network = nn.ModuleDict({"layer": linear})
    inject(network, [SpectralShift(["*.weight"])])
    before = linear.weight.detach()
    with torch.no_grad():
        parameters(network)["layer.weight.spectral.shift"][0, 20] = 1.0
    torch.testing.assert_close(
        (linear.weight.detach() - before).double(), U[:, 20:21] @ Vh[20:21], rtol=0, atol=1e-6
    )


def test_new_rows_are_the_first_of_the_table_and_alone_have_the_gradient():
    table, values = layer(nn.Embedding(5, 3))
    old = values["layer.weight"].detach().clone()
    network = nn.ModuleDict({"class_embedding": table})
    inject(network, [NewRows(2)])
    new = parameters(network)["class_embedding.weight.rows.new"]
    assert torch.equal(new, old[:2])
    random_values(new, seed=3)
    out = table(torch.tensor([4, 1, 0, 2, 1]))
    assert torch.equal(out, torch.stack([old[4], new[1], new[0], old[2], new[1]]))
    out.sum().backward()
    assert new.grad.tolist() == [[1.0] * 3, [2.0] * 3]
    assert not parameters(network)["class_embedding.weight"].grad[:2].any()


# --- in a network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_in_and_out_again(network, kind):
    """The start to the bit; names; copies; and merged, the same bits under plain names."""
    network = tiny(network)
    plain, start = dict(network.named_parameters()), output(network)
    assert list(parameters(network)) == list(plain)
    inject(network, KINDS[kind])
    torch.testing.assert_close(output(network), start, rtol=0, atol=0)

    named = parameters(network)
    assert [*named.values()] == [*network.parameters()]
    assert {n: p for n, p in named.items() if not injected(n)} == plain  # the same objects
    assert plain.keys() != named.keys()
    for name in filter(injected, named):
        assert list(named).index(name.split(".weight.")[0] + ".weight") < list(named).index(name)

    before = output(changed(network))
    assert (before - start).abs().max() > 1e-3
    twin = copy.deepcopy(network)
    assert list(parameters(twin)) == list(named)
    merged = merge(twin)
    assert list(dict(merged.named_parameters())) == list(plain) and list(
        merged.state_dict()
    ) == list(plain)
    assert [type(m) for m in merged.modules()] == [
        type(m) for m in tiny("adm" if type(merged) is ADMUNet else "ho").modules()
    ]
    torch.testing.assert_close(output(merged), before, rtol=0, atol=0)
    # the copy's merge leaves the original alone
    torch.testing.assert_close(output(network), before, rtol=0, atol=0)
    assert all(
        p.is_contiguous(memory_format=torch.channels_last)
        for p in merged.parameters()
        if p.ndim == 4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_plain_names_goes_into_another_network(kind):
    network = tiny()
    inject(network, KINDS[kind])
    saved = {name: p.detach().clone() for name, p in parameters(changed(network)).items()}
    other = NETWORKS["ho"]().to(memory_format=torch.channels_last)
    inject(other, KINDS[kind], seed=5)
    with torch.device("meta"):
        waiting = NETWORKS["ho"]()
    inject(waiting, KINDS[kind])
    waiting.to_empty(device="cpu").to(memory_format=torch.channels_last)
    for second in (other, waiting):
        load(second, saved)
        torch.testing.assert_close(output(second), output(network), rtol=0, atol=0)


def test_factors_are_made_anew_only_for_another_weight(monkeypatch):
    network = tiny()
    inject(network, KINDS["spectral"])
    saved = {name: p.detach().clone() for name, p in parameters(network).items()}
    made, svd = [], torch.linalg.svd
    monkeypatch.setattr(
        torch.linalg, "svd", lambda *args, **more: made.append(1) or svd(*args, **more)
    )
    load(network, saved)
    assert not made
    saved["mid.block.0.conv1.weight"][0, 0, 0, 0] += 1e-6
    load(network, saved)
    assert len(made) == 1


def test_what_does_not_fit_is_named_and_nothing_is_loaded():
    network = tiny()
    inject(network, KINDS["lora"])
    name = "mid.attention.0.qkv.weight.lora.up"
    own = {n: p.detach() + 1 for n, p in parameters(network).items()}
    before = output(network)
    for wrong, message in [
        ({n: p for n, p in own.items() if n != name}, f"lacks 1 tensors of the network: {name}"),
        (own | {"mid.x": own[name]}, "no place for 1 tensors of the checkpoint: mid.x"),
        (own | {name: own[name][:1]}, rf"{name} \[1, 2\] for"),
    ]:
        with pytest.raises(UserError, match=message):
            load(network, wrong)
    assert torch.equal(output(network), before)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_was_injected_moves(kind):
    network = tiny()
    inject(network, KINDS[kind])
    start = {name: p.detach().clone() for name, p in parameters(changed(network)).items()}
    for name, p in parameters(network).items():
        p.requires_grad_(injected(name))
    ema = Ema(network, 0.9)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    output(network).square().mean().backward()
    optimizer.step()
    ema.update(10)
    moved = {name for name, p in parameters(network).items() if not torch.equal(p, start[name])}
    assert moved == set(filter(injected, start))
    average = parameters(ema.network)
    for name, p in parameters(network).items():
        d = 11 / 20
        torch.testing.assert_close(
            average[name], d * start[name] + (1 - d) * p, rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_gives_the_same_gradients(kind):
    gradients = []
    for checkpointing in (False, True):
        network = tiny(gradient_checkpointing=checkpointing)
        inject(network, KINDS[kind])
        output(changed(network)).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_the_parameters_keep_float32_and_train(kind):
    network = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        start = output(network)
        inject(network, KINDS[kind])
        assert torch.equal(output(network), start)
        loss = output(changed(network)).float().square().sum()
    loss.backward()
    for name, p in parameters(network).items():
        assert p.dtype == torch.float32 and (not injected(name) or p.grad.abs().sum() > 0), name


@pytest.mark.parametrize("network", NETWORKS)
def test_a_forward_computes_each_weight_once(network):
    network = tiny(network)
    inject(
        network,
        [
            SpectralShift(
                [
                    "*.block.*conv*.weight",
                    "*.time_proj.weight",
                    "*.shortcut.weight",
                    *QKV,
                    *OUT,
                    "conv_out.weight",
                ]
            ),
            NewRows(2),
        ],
    )
    calls = []
    for name, module in network.named_modules():
        if name.rpartition(".")[0].endswith(("weight", "bias")):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    output(network)
    assert len(calls) == len(set(calls)) > 20


def test_a_weight_that_was_factored_must_stay_frozen():
    network = tiny()
    inject(network, KINDS["spectral"])
    shifts = {name for name in parameters(network) if injected(name)}
    check(network, shifts | {"norm_out.weight", "conv_in.bias"})
    with pytest.raises(UserError, match=r"mid.block.0.conv1.weight trains.*learning_rate_scale: 0"):
        check(network, shifts | {"mid.block.0.conv1.weight"})
    lora = tiny()
    inject(lora, KINDS["lora"])
    check(lora, parameters(lora))  # both may train


@pytest.mark.parametrize(
    "injections, message",
    [
        (
            [LoRA(["*.qvk.weight"], 2)],
            r"transfer.inject: \*.qvk.weight matches no parameter; did you mean",
        ),
        (
            [BranchScale(["*.conv3"])],
            r"transfer.inject: \*.conv3 matches no parameter; did you mean",
        ),
        (
            [LoRA(["down.0.block.0.conv1.weight"], 9)],
            r"LoRA on down.0.block.0.conv1.weight: rank=9 must be 1 to 8",
        ),
        ([LoRA(["mid.attention.0.qkv.weight"], 17, branches=3)], "rank=17 must be 1 to 16"),
        ([LoRA(["mid.attention.0.qkv.weight"], 0)], "rank=0 must be 1 to 16"),
        ([LoRA(["mid.attention.0.qkv.weight"], 2, branches=0)], "48 outputs are not branches=0"),
        ([LoRA(["mid.attention.0.qkv.weight"], 2, branches=5)], "48 outputs are not branches=5"),
        (
            [SpectralShift(["mid.attention.0.qkv.weight"], branches=5)],
            "48 outputs are not branches=5",
        ),
        (
            [LoRA(["*.norm1.weight"], 2)],
            (
                r"LoRA on down.0.block.0.norm1.weight: only the weights of linear layers and "
                r"convolutions"
            ),
        ),
        (
            [SpectralShift(["*.conv1.*"])],
            r"SpectralShift on down.0.block.0.conv1.bias: it goes on a weight, not on a bias",
        ),
        ([BranchScale(["norm_out"])], "BranchScale on norm_out: only"),
        ([NewRows(4)], "count=4 must be auto or 1 to 3, the rows before that of the null class"),
        ([NewRows(0)], "count=0 must be auto or 1 to 3"),
        (
            [LoRA(["*.conv1.weight"], 2), LoRA(["mid.*.conv1.weight"], 2)],
            "mid.block.0.conv1.weight is named by two",
        ),
    ],
)
def test_mistakes_show_before_there_is_any_memory(injections, message):
    with torch.device("meta"):
        network = NETWORKS["ho"]()
    with pytest.raises(UserError, match=message):
        inject(network, injections)


def test_a_network_without_classes_has_no_rows():
    with torch.device("meta"):
        network = UNet(8, [1, 2], 1, [1], groups=4)
    with pytest.raises(UserError, match="class_embedding.weight matches no parameter"):
        inject(network, [NewRows(1)])


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"_target_": "transfer.lora.LoRA", "patterns": ["*"]},
            "transfer.inject.0.rank must be set",
        ),
        (
            {"_target_": "transfer.lora.LoRA", "patterns": "*", "rank": 2},
            "patterns='\\*' is not a list",
        ),
        (
            {"_target_": "transfer.textual_inversion.NewRows", "count": "all"},
            "count='all' is not a whole number or one of auto",
        ),
        (
            {"_target_": "transfer.textual_inversion.NewRows", "patterns": ["*"]},
            "patterns: no such setting",
        ),
    ],
)
def test_mistakes_in_a_config(settings, message):
    with pytest.raises(UserError, match=message):
        build(settings, ["transfer"], "transfer.inject.0")


def test_from_a_config():
    node = {"_target_": "transfer.lora.LoRA", "patterns": QKV, "rank": 8, "alpha": 4, "branches": 3}
    assert build(node, ["transfer"], "transfer.inject.0") == LoRA(QKV, 8, 4, 3)
    assert build(
        {"_target_": "transfer.textual_inversion.NewRows"}, ["transfer"], "transfer.inject.0"
    ) == NewRows("auto")


SPECTRAL = [
    SpectralShift(
        [
            "conv_in.weight",
            "conv_out.weight",
            "time_mlp.*.weight",
            *CONVOLUTIONS,
            "*.time_proj.weight",
            *OUT,
        ]
    ),
    SpectralShift(QKV, branches=3),
]
ATTENTION = [LoRA(QKV, 8, branches=3), LoRA(OUT, 8)]


@pytest.mark.parametrize(
    "model, injections, trains, share",
    [
        ("ddpm_cifar10", ATTENTION, [], 0.28),
        ("ddpm_celeba64", ATTENTION, [], 0.15),
        ("ddpm_cifar10", [BranchScale(LAST)], ["norm", "bias"], 0.172),
        ("ddpm_celeba64", [BranchScale(LAST)], ["norm", "bias"], 0.119),
        ("ddpm_celeba64", [*ATTENTION, LoRA([*CONVOLUTIONS, "*.time_proj.weight"], 8)], [], 2.7),
        ("ddpm_celeba64", SPECTRAL, ["norm"], 0.105),
    ],
)
def test_published_shares(model, injections, trains, share):
    """In percent of the plain network's count, to the last digit that is given."""
    network = RunConfig(
        composed("train", [f"model={model}", "data.channels=3", "model.classes=0"])
    ).shape_network()
    plain = sum(p.numel() for p in network.parameters())
    assert plain == {"ddpm_cifar10": 35_746_307, "ddpm_celeba64": 78_700_803}[model]
    inject(network, injections)
    trained = sum(
        p.numel()
        for name, p in parameters(network).items()
        if injected(name) or any(part in name for part in trains)
    )
    assert round(100 * trained / plain, len(f"{share}".partition(".")[2])) == share
