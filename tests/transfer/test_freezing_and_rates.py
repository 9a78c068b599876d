"""What trains when: the rules, and that a frozen weight does not move."""

from fnmatch import fnmatchcase

import pytest
import torch

from config.sections import RuleSettings
from models.layers import output_of
from models.unet import UNet
from runtime.errors import UserError
from training.ema import Ema, ema_decay, share_of_start
from transfer.adapters import inject
from transfer.difffit import BranchScale
from transfer.freezing_and_rates import ParameterPlan, Rule, rule_at
from transfer.lora import LoRA


def tiny(**more) -> UNet:
    return UNet(8, [1, 2], 1, [1], groups=4, **more)


def trained(plan: ParameterPlan, step: int) -> set[str]:
    plan.apply(step)
    return {name for name, p in plan.parameters.items() if p.requires_grad}


def test_the_last_match_wins():
    plan = ParameterPlan(
        tiny(), [Rule("*"), Rule("down.*", 0.0), Rule("down.0.block.0.conv1.weight", 0.5)]
    )
    assert trained(plan, 0) == {
        n
        for n in plan.parameters
        if not n.startswith("down.") or n == "down.0.block.0.conv1.weight"
    }
    assert sorted(plan.rates(0)) == [0.0, 0.5, 1.0] or sorted(plan.rates(0)) == [0.5, 1.0]


def test_what_no_rule_names_is_frozen():
    assert trained(ParameterPlan(tiny(), [Rule("mid.*")]), 0) == {
        n for n in tiny().state_dict() if n.startswith("mid.")
    }


def test_rules_come_and_go_with_the_step():
    """linear_probe, then everything at a lower rate (Kumar et al. 2022): two rates for one
    parameter over time."""
    plan = ParameterPlan(tiny(), [Rule("*", 0.1, from_=5), Rule("conv_out.*", 1.0, until=5)])
    assert trained(plan, 0) == trained(plan, 4) == {"conv_out.weight", "conv_out.bias"}
    assert trained(plan, 5) == set(plan.parameters)
    by_name = dict(zip([tuple(n) for n in plan.trained.values()], plan.rates(7), strict=True))
    assert set(by_name.values()) == {0.1}


def test_apply_tells_when_the_trained_set_changes():
    plan = ParameterPlan(tiny(), [Rule("conv_out.*"), Rule("*", from_=3)])
    assert [plan.apply(step) for step in range(6)] == [True, False, False, True, False, False]
    assert [plan.at_change(step) for step in range(6)] == [True, False, False, True, False, False]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([Rule("dwon.*")], "did you mean down"),
        ([Rule("*", 0.0)], "train nothing"),
        ([Rule("*", 1.0), Rule("*", 0.0)], "train nothing"),
        ([Rule("up.9.*")], "matches no parameter"),
    ],
)
def test_mistakes(rules, message):
    with pytest.raises(UserError, match=message):
        ParameterPlan(tiny(), rules).must_train(100)


def test_a_rule_that_ends_before_it_begins():
    with pytest.raises(UserError, match="until"):
        rule_at(RuleSettings("*", from_=5, until=5), 10)


@pytest.mark.parametrize(
    ("moment", "step"), [("30%", 60), ("0%", 0), ("100%", 200), ("12.5%", 25), (7, 7)]
)
def test_a_share_of_the_run_is_a_step(moment, step):
    assert rule_at(RuleSettings("*", from_=moment), 200).from_ == step


@pytest.mark.parametrize(
    ("moment", "share"),
    [("30", 30), ("-3%", 30), ("101%", 30), ("half", 30), ("%", 30), (0.6, 60), (1.5, 30)],
)
def test_what_is_neither_a_step_nor_a_share(moment, share):
    with pytest.raises(UserError) as raised:
        rule_at(RuleSettings("up.*", until=moment), 200)
    assert str(raised.value) == (
        f"transfer.rules, pattern up.*: {moment} is neither a step, which is a whole number, nor a "
        f"share of the run, which is written {share}%."
    )


def test_an_optional_pattern_may_match_nothing():
    plan = ParameterPlan(tiny(), [Rule("conv_out.*"), Rule("class_embedding.*", optional=True)])
    assert trained(plan, 0) == {"conv_out.weight", "conv_out.bias"}
    with pytest.raises(UserError, match="class_embedding"):
        ParameterPlan(tiny(), [Rule("class_embedding.*")])


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_a_frozen_weight_does_not_move_by_a_bit_nor_its_average(optimizer):
    """Also with weight decay, with moments from a time when it trained, and after it was frozen
    again."""
    torch.manual_seed(0)
    network = tiny()
    plan = ParameterPlan(network, [Rule("*", from_=2, until=4), Rule("up.*")])
    options = {"weight_decay": 0.1} if optimizer is torch.optim.AdamW else {}
    stepper, ema = optimizer(plan.groups(), lr=1e-2, **options), Ema(network, 0.9)
    snapshots = []
    for step in range(6):
        plan.apply(step)
        for group, rate in zip(stepper.param_groups, plan.rates(step), strict=True):
            group["lr"] = 1e-2 * rate
        network(torch.randn(2, 3, 8, 8), torch.tensor([1, 5]), {}).square().sum().backward()
        stepper.step()
        stepper.zero_grad(set_to_none=True)
        ema.update(step)
        snapshots.append({n: p.detach().clone() for n, p in network.named_parameters()})
    still = {n for n in snapshots[0] if not fnmatchcase(n, "up.*")}
    for name in still:
        assert torch.equal(snapshots[0][name], snapshots[1][name]), name
        assert torch.equal(snapshots[3][name], snapshots[5][name]), name
    moved = [
        n for n in snapshots[0] if n in still and not torch.equal(snapshots[1][n], snapshots[3][n])
    ]
    assert len(moved) == len(still)
    assert all(
        not torch.equal(snapshots[4][n], snapshots[5][n]) for n in snapshots[0] if n not in still
    )


def test_the_average_of_a_frozen_weight_is_the_weight():
    network = tiny()
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    ema = Ema(network, 0.9999)
    for step in range(50):
        with torch.no_grad():
            network.conv_out.weight.add_(0.01)
        ema.update(step)
    for name, p in ema.network.named_parameters():
        assert torch.equal(p, before[name]) == (name != "conv_out.weight")


def test_ema_against_its_formula_in_float64():
    """ema_n = d_n ema_{n-1} + (1 - d_n) w_n, d_n = min(decay, (1 + n) / (10 + n))."""
    network = torch.nn.Linear(1, 1, bias=False)
    ema, expected, start_weight = Ema(network, 0.7), network.weight.item(), 1.0
    for n in range(40):
        with torch.no_grad():
            network.weight.fill_(n / 7)
        ema.update(n)
        d = min(0.7, (1 + n) / (10 + n))
        expected, start_weight = d * expected + (1 - d) * n / 7, start_weight * d
    assert ema.network.weight.item() == pytest.approx(expected, rel=1e-5)
    assert share_of_start(0.7, 40) == pytest.approx(start_weight, abs=1e-12)
    assert ema_decay(0.9999, 0) == 0.1


def test_share_left_on_the_source_without_warm_up_is_known():
    """transfer literature: 0.9999 for 24k steps leaves 9%; with the warm-up next to nothing is
    left."""
    assert pytest.approx(0.09, abs=0.002) == 0.9999**24000
    assert share_of_start(0.9999, 300) < 1e-9


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_weight_decay_leaves_scales_alone(optimizer):
    """g of DiffFit is 1 where it does nothing. All else decays, biases and norms among it, as
    torch's optimizers do."""
    network = tiny()
    inject(network, [BranchScale(["*.conv2"]), LoRA(["*.qkv.weight"], 2)])
    plan = ParameterPlan(network, [Rule("*")])
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in plan.parameters.values():
            parameter.copy_(torch.rand_like(parameter) + 1)
    before = {name: p.detach().clone() for name, p in plan.parameters.items()}
    stepper = optimizer(plan.groups(), lr=1e-2, weight_decay=0.1)
    for _ in range(50):
        for parameter in plan.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        stepper.step()
    for name, parameter in plan.parameters.items():
        if name.endswith(".scale.g"):
            assert torch.equal(parameter, before[name])
        elif optimizer is torch.optim.AdamW:
            torch.testing.assert_close(parameter.detach(), before[name] * (1 - 1e-2 * 0.1) ** 50)
        else:
            assert (parameter < before[name]).all()


def test_groups_are_as_they_were_where_no_scale_is():
    """Their numbers are those of the optimizer's state in a checkpoint."""
    network = tiny()
    plan = ParameterPlan(network, [Rule("*"), Rule("down.*", 0.5)])
    assert [group.keys() for group in plan.groups()] == [{"params"}] * 2
    inject(network, [BranchScale(["*.conv2"])])
    groups = ParameterPlan(network, [Rule("*.bias"), Rule("*.scale.g")]).groups()
    assert [group.get("weight_decay") for group in groups] == [None, 0.0]


def test_dropout_acts_in_frozen_layers_too():
    """A choice: what is frozen trains nothing, and is still the network that the source was trained
    as. None in evaluation."""
    network = tiny(dropout=0.5)
    torch.nn.init.normal_(network.down[0].block[0].conv2.weight)
    ParameterPlan(network, [Rule("*"), Rule("down.*", 0.0)]).apply(0)
    seen = []
    network.down[0].block[0].register_forward_hook(
        lambda module, inputs, output: seen.append(output_of(output).detach())
    )
    for training in (True, False):
        network.train(training)
        for seed in (0, 1):
            torch.manual_seed(seed)
            network(torch.ones(1, 3, 8, 8), torch.tensor([3]), {})
    assert not torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ([Rule("*")], "100% of the parameters train"),
        ([], "0% of the parameters train"),
        # freeze_encoder, freeze_decoder
        (
            [Rule("*"), Rule("down.*", 0.0), Rule("conv_out.*", 0.0)],
            "% of the parameters train",
        ),
        (
            [Rule("*", 0.1, from_=72), Rule("conv_out.*")],
            "100% of the parameters train, all from step 72",
        ),
        (
            [Rule("*", from_=5), Rule("conv_out.*", until=5), Rule("conv_out.*", 0.0, from_=5)],
            ", never all at once",
        ),
    ],
)
def test_the_share_says_from_when_on_all_of_it_trains(rules, told):
    assert ParameterPlan(tiny(), rules).told().endswith(told)


def test_plan_rows_name_every_parameter_and_period():
    plan = ParameterPlan(tiny(), [Rule("*", 0.1, from_=5), Rule("conv_out.*", 1.0, until=5)])
    rows = plan.rows(2e-4)
    assert rows[0] == ["parameter", "shape", "group", "learning_rate", "from", "until"]
    assert {row[0] for row in rows[1:]} == set(plan.parameters)
    out = [row[3:] for row in rows if row[0] == "conv_out.bias"]
    assert out == [[2e-4, 0, 5], [pytest.approx(2e-5), 5, "end"]]
    assert [row[3:] for row in rows if row[0] == "conv_in.bias"] == [
        [0, 0, 5],
        [pytest.approx(2e-5), 5, "end"],
    ]
