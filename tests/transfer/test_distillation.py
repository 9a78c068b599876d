"""Feature distillation against features taken by hand, pass by pass."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from models.layers import Sum, output_of
from runtime.errors import UserError
from tests.helpers.terms import batch, seen_by, start_of, unet
from transfer.distillation import FeatureDistillation, matching

LAYERS = ["down.*.block.*", "mid.attention.0", "mid.block.1"]
# those that are whole blocks
NAMES = [
    "down.0.block.0",
    "down.1.block.0",
    "mid.attention.0",
    "mid.block.1",
]


def blocks_of(network):
    """Every module that LAYERS mean, listed here by another rule: what lies in the blocks of the
    way down, and two of the middle."""
    return [
        name
        for name, module in network.named_modules()
        if ((name.startswith("down.") and ".block." in name) or name in NAMES)
        and not isinstance(module, nn.ModuleList)
    ]


def features_by_hand(network, names, x_t, t, condition=None):
    """From a pass of their own through a copy that nothing else has hooked."""
    network, found = copy.deepcopy(network).eval(), {}
    for name, module in network.named_modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        if name in names:
            module.register_forward_hook(
                lambda module, inputs, output, name=name: found.__setitem__(name, output_of(output))
            )
    network(x_t, t - 1, condition or {})
    return found


def changed(network, seed=1, by=0.1):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += by * torch.randn(parameter.shape, generator=draw)


def penalty_by_hand(source, student, seen, names):
    a = features_by_hand(student, names, seen.x_t, seen.t, seen.condition)
    b = features_by_hand(source, names, seen.x_t, seen.t, seen.condition)
    assert a.keys() == b.keys() == set(names)
    return sum((a[name] - b[name]).square().mean() for name in names) / len(names)


def test_the_penalty_is_the_mean_squared_difference_of_the_features_times_its_weight():
    start = start_of(unet().double())
    source = copy.deepcopy(start.denoiser.network)
    penalty = FeatureDistillation(start, weight=3.0, layers=LAYERS)
    changed(start.denoiser.network)
    seen = seen_by(start.denoiser, dtype=torch.float64)
    expected = 3 * penalty_by_hand(source, start.denoiser.network, seen, blocks_of(source))
    assert expected > 0.01
    torch.testing.assert_close(penalty(seen), expected)


def test_a_glob_means_modules_that_run_and_each_of_them_once():
    network = unet()
    assert matching(network, ["mid.*"]) == [
        name
        for name, _ in network.named_modules()
        if name.startswith("mid.") and name not in ("mid.block", "mid.attention")
    ]
    assert matching(network, ["down.0.block.0", "down.?.block.0"]) == [
        "down.0.block.0",
        "down.1.block.0",
    ]


def test_one_layer_of_one_linear_network_in_closed_form():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 8, bias=False)
            nn.init.eye_(self.first.weight)

        def forward(self, x, timestep, condition):
            return 2 * self.first(x)

    start = start_of(Doubled().double())
    penalty = FeatureDistillation(start, weight=0.5, layers=["first"])
    with torch.no_grad():
        start.denoiser.network.first.weight *= 1.25
    seen = seen_by(start.denoiser, dtype=torch.float64)
    value = penalty(seen)
    torch.testing.assert_close(value, 0.5 * (0.25 * seen.x_t).square().mean())
    value.backward()
    # d/dW of 0.5 mean (x W^T - x)^2, with W - 1 = 0.25
    x = seen.x_t.reshape(-1, 8)
    torch.testing.assert_close(
        start.denoiser.network.first.weight.grad, 0.25 * (x.T @ x) / x.numel()
    )


def test_nothing_at_the_start_and_less_after_a_step_along_the_gradient():
    start = start_of(unet().double())
    penalty = FeatureDistillation(start, weight=1.0, layers=LAYERS)
    assert penalty(seen_by(start.denoiser, dtype=torch.float64)) == 0
    changed(start.denoiser.network)
    before = penalty(seen_by(start.denoiser, dtype=torch.float64))
    before.backward()
    with torch.no_grad():
        for parameter in start.denoiser.network.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    assert 0 < penalty(seen_by(start.denoiser, dtype=torch.float64)) < before
    assert all(parameter.grad is None for parameter in penalty.source.parameters())


@pytest.mark.parametrize("disturb", ["replay before", "replay after", "evaluation", "copy", "both"])
def test_the_features_are_those_of_what_was_seen(disturb):
    start = start_of(unet().double())
    source = copy.deepcopy(start.denoiser.network)
    penalty = FeatureDistillation(start, weight=1.0, layers=LAYERS)
    changed(start.denoiser.network)
    average = copy.deepcopy(start.denoiser)
    x0, t, noise = batch(seed=5, dtype=torch.float64)
    if disturb in ("replay before", "both"):
        start.denoiser(x0, t)
    seen = seen_by(start.denoiser, dtype=torch.float64)
    if disturb in ("replay after", "both"):
        start.denoiser(noise, t)
    if disturb == "evaluation":
        with torch.no_grad():
            start.denoiser(seen.x_t, seen.t + 0 * t)
    if disturb == "copy":
        changed(average, seed=3)
        with torch.no_grad():
            average.eval()(seen.x_t, seen.t)
    expected = penalty_by_hand(source, start.denoiser.network, seen, blocks_of(source))
    torch.testing.assert_close(penalty(seen), expected)


def test_micro_batches_accumulate_the_gradient_of_their_sum():
    start = start_of(unet().double())
    penalty = FeatureDistillation(start, weight=1.0, layers=LAYERS)
    source, network = copy.deepcopy(start.denoiser.network), start.denoiser.network
    changed(network)
    for seed in (0, 1):
        penalty(seen_by(start.denoiser, seed=seed, dtype=torch.float64)).backward()
    by_accumulation = {
        name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None
    }
    network.zero_grad()
    names = blocks_of(source)
    for seed in (0, 1):  # the same by hand, with hooks of its own
        seen, found = seen_by(start.denoiser, seed=seed, dtype=torch.float64), {}
        hooks = [
            network.get_submodule(n).register_forward_hook(
                lambda m, i, o, n=n, found=found: found.__setitem__(n, output_of(o))
            )
            for n in names
        ]
        network(seen.x_t, seen.t - 1, {})
        for hook in hooks:
            hook.remove()
        kept = features_by_hand(source, names, seen.x_t, seen.t)
        (sum((found[n] - kept[n].detach()).square().mean() for n in names) / len(names)).backward()
    expected = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert len(expected) > 20
    torch.testing.assert_close(by_accumulation, expected)


def test_gradient_checkpointing_changes_nothing():
    values, gradients = [], []
    for checkpointing in (False, True):
        start = start_of(unet(gradient_checkpointing=checkpointing).double())
        penalty = FeatureDistillation(start, weight=1.0, layers=LAYERS)
        changed(start.denoiser.network)
        # twice: the second pass comes after a backward in which blocks ran again
        for seed in (
            0,
            1,
        ):
            seen = seen_by(start.denoiser, seed=seed, dtype=torch.float64)
            value = penalty(seen)
            (value + seen.prediction.noise.square().mean()).backward()
        values.append(value.detach())
        gradients.append([parameter.grad for parameter in start.denoiser.network.parameters()])
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_what_is_recorded_is_not_kept_beyond_its_step():
    start = start_of(unet())
    penalty = FeatureDistillation(start, weight=1.0, layers=LAYERS)
    for seed in range(3):
        seen = seen_by(start.denoiser, seed=seed)
        start.denoiser(
            seen.x0, seen.t
        ).noise.sum().backward()  # replay, whose features nobody reads
        penalty(seen).backward()
    assert len(penalty.of_student) == len(penalty.of_source) == 0
    x0, t, noise = batch(seed=7)
    start.denoiser(noise, t).noise.sum().backward()
    (features,) = penalty.of_student.values()
    feature = weakref.ref(features["mid.block.1"])
    del noise, features
    gc.collect()
    assert len(penalty.of_student) == 0 and feature() is None
    with torch.no_grad():
        start.denoiser(x0, t)
    start.denoiser.eval()(x0, t)
    assert len(penalty.of_student) == 0


def test_a_pass_that_fails_leaves_nothing_under_way():
    start = start_of(unet().double())
    source = copy.deepcopy(start.denoiser.network)
    penalty = FeatureDistillation(start, weight=1.0, layers=LAYERS)
    changed(start.denoiser.network)
    x0, t, _ = batch(dtype=torch.float64)
    with pytest.raises(RuntimeError):
        start.denoiser(x0.float(), t)
    start.denoiser.network.mid.block[1](
        Sum(torch.zeros(4, 16, 4, 4, dtype=torch.float64)), torch.zeros(4, 16, dtype=torch.float64)
    )
    seen = seen_by(start.denoiser, dtype=torch.float64)
    torch.testing.assert_close(
        penalty(seen), penalty_by_hand(source, start.denoiser.network, seen, blocks_of(source))
    )


def test_a_class_condition_reaches_the_source():
    start = start_of(unet(classes=3).double())
    source = copy.deepcopy(start.denoiser.network)
    penalty = FeatureDistillation(start, weight=1.0, layers=LAYERS)
    changed(start.denoiser.network)
    seen = seen_by(
        start.denoiser, dtype=torch.float64, condition={"label": torch.tensor([0, 1, 2, 3])}
    )
    torch.testing.assert_close(
        penalty(seen), penalty_by_hand(source, start.denoiser.network, seen, blocks_of(source))
    )


def test_features_in_bfloat16_are_compared_in_float32():
    start = start_of(unet())
    penalty = FeatureDistillation(start, weight=1.0, layers=LAYERS)
    with torch.autocast("cpu", torch.bfloat16):
        seen = seen_by(start.denoiser)
        value = penalty(seen)
    assert value.dtype == torch.float32 and value == 0


def test_the_source_costs_no_gradient_where_most_of_the_student_is_frozen():
    start = start_of(unet().to(memory_format=torch.channels_last))
    for name, parameter in start.denoiser.network.named_parameters():
        parameter.requires_grad_(name.startswith("mid."))
    penalty = FeatureDistillation(start, weight=1.0, layers=["mid.block.1"])
    changed(start.denoiser.network.mid)
    penalty(seen_by(start.denoiser)).backward()
    trained = {
        name
        for name, parameter in start.denoiser.network.named_parameters()
        if parameter.grad is not None
    }
    assert trained == {
        name for name, _ in start.denoiser.network.named_parameters() if name.startswith("mid.")
    }


def test_no_step_waits_for_the_device():
    """On the meta device, where there is no value to read."""
    start = start_of(unet())
    start.denoiser.to("meta")
    penalty = FeatureDistillation(start, weight=1.0, layers=LAYERS)
    x0, t, _ = (x.to("meta") for x in batch())
    penalty(start.denoiser.forward_pass(x0, t, torch.zeros_like(x0))).backward()


def test_a_glob_that_matches_no_module_names_near_ones():
    with pytest.raises(
        UserError, match=r"mid\.blok\.1 matches no module; did you mean mid\.block\.1"
    ):
        FeatureDistillation(start_of(unet()), weight=1.0, layers=["mid.block.0", "mid.blok.1"])
    with pytest.raises(UserError, match="matches no module"):  # a level is no module that runs
        FeatureDistillation(start_of(unet()), weight=1.0, layers=["down.0"])
