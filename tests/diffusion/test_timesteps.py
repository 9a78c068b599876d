"""Which t a step sees. Importance sampling: its probabilities, weights and history against plain
Python, and its unbiasedness. Fixed distributions: against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from config.overrides import composed
from config.run_config import NODES
from diffusion.timesteps import Importance, MirroredPower, Power, Range, Uniform
from runtime.config_schema import build
from runtime.errors import UserError
from tests.helpers import runs
from training.config_checks import check_run_config


class Slow:
    """The same history with lists, one loss after the other; eq. 18 of Nichol and Dhariwal 2021."""

    def __init__(self, steps, history, uniform):
        self.losses = {t: [] for t in range(1, steps + 1)}
        self.steps, self.history, self.uniform = steps, history, uniform

    def update(self, t, loss):
        for at, value in zip(t.tolist(), loss.tolist(), strict=True):
            self.losses[at] = [*self.losses[at], value][-self.history :]

    def probabilities(self):
        if any(len(v) < self.history for v in self.losses.values()):
            return np.full(self.steps, 1 / self.steps)
        root = np.array([np.mean(np.square(v)) ** 0.5 for v in self.losses.values()])
        return (1 - self.uniform) * root / root.sum() + self.uniform / self.steps


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("history", [1, 3, 10])
def test_the_history_is_the_last_losses_of_each_t(history, batch):
    """Also where a batch has the same t more often than the history is long."""
    ours, slow = Importance(5, history, 0.01), Slow(5, history, 0.01)
    generator = torch.Generator().manual_seed(0)
    for k in range(600 // batch + 20):
        t = torch.randint(1, 6, (batch,), generator=generator)
        loss = torch.rand(batch, generator=generator, dtype=torch.float64) * t**2
        ours.update(t, loss)
        slow.update(t, loss)
        np.testing.assert_allclose(
            ours.probabilities().numpy(), slow.probabilities(), rtol=1e-12, err_msg=f"update {k}"
        )
    assert len({round(p, 6) for p in slow.probabilities()}) == 5  # it was past its start


def test_an_update_does_not_wait_for_the_device():
    """On the meta device whatever asks for a value raises."""
    t = torch.ones(4, dtype=torch.int64, device="meta")
    Importance(5).to("meta").update(t, t.float())


def warmed(uniform=0.01):
    ours = Importance(5, 2, uniform)
    for t, loss in enumerate([1.0, 2.0, 4.0, 8.0, 16.0], 1):
        ours.update(torch.full((2,), t), torch.full((2,), loss, dtype=torch.float64))
    return ours


def test_t_is_drawn_with_its_probability():
    expected = (1 - 0.01) * np.array([1, 2, 4, 8, 16]) / 31 + 0.01 / 5
    np.testing.assert_allclose(warmed().probabilities().numpy(), expected, rtol=1e-12)
    t, _ = warmed().draw(100_000, torch.Generator().manual_seed(0))
    counts = np.bincount(t.numpy(), minlength=6)[1:]
    assert counts.sum() == 100_000 and stats.chisquare(counts, 100_000 * expected).pvalue > 1e-3


def test_the_weight_leaves_the_mean():
    """E_p[weight f(t)] = mean of f over t, for the weight 1 / (T p)."""
    ours = warmed()
    t, weight = ours.draw(1000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        weight.double(), 1 / (5 * ours.probabilities()[t - 1]), rtol=1e-6, atol=0
    )
    f = torch.tensor([0.3, -1.0, 5.0, 2.0, 1.0], dtype=torch.float64)
    p = ours.probabilities()
    assert (p * f / (5 * p)).sum().item() == pytest.approx(f.mean().item())


def test_before_the_history_is_full_it_is_the_uniform_one():
    ours = Importance(5, 3, 0.01)
    ours.update(torch.tensor([1, 2, 3, 4, 5] * 2), torch.arange(10.0))
    t, weight = ours.draw(1000, torch.Generator().manual_seed(0))
    assert (weight == 1).all() and set(t.tolist()) == {1, 2, 3, 4, 5}


def test_a_loss_that_is_not_finite_does_not_reach_the_probabilities():
    """The loop reports it; drawing from NaN would end a process on a GPU without a word."""
    ours = warmed()
    ours.update(torch.tensor([2, 3]), torch.tensor([float("nan"), float("inf")]))
    assert ours.probabilities().isfinite().all()
    ours.draw(10, torch.Generator().manual_seed(0))


def test_the_history_is_kept_by_state_dict():
    ours, again = warmed(), Importance(5, 2, 0.01)
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again.probabilities(), ours.probabilities())
    assert not Uniform(5).state_dict()


@pytest.mark.parametrize(("history", "uniform"), [(0, 0.1), (2, -0.1), (2, 1.1)])
def test_settings_that_cannot_be(history, uniform):
    with pytest.raises(ValueError, match="history must be at least 1"):
        Importance(5, history, uniform)


IMPORTANCE = [
    "schedule.steps=6",
    "sampler.steps=2",
    "timesteps=importance",
    "timesteps.history=2",
    "loss=bound",
    "variance=learned_range",
    "train.clip=null",
]


def test_a_run_with_importance_sampling_resumes_to_the_bit(tmp_path, undisturbed):
    """Killed after its first checkpoint, when the history is full: the probabilities continue where
    they were."""
    whole = undisturbed(*IMPORTANCE)
    code, _ = runs.train(tmp_path, [*IMPORTANCE, "train.steps=8"])
    assert code == 0
    directory = runs.finish(tmp_path, IMPORTANCE)
    runs.assert_same_weights(directory, whole, 12)
    saved = torch.load(directory / "checkpoints/step_8" / runs.OPTIMIZER, weights_only=True)[
        "timesteps"
    ]
    assert (saved["seen"][1:] >= 2).all() and saved["losses"][1:].std() > 0


# --- fixed distributions --------------------------------------------------------------------------

FIXED = [
    (Power(6, 1), [1 / 21, 2 / 21, 3 / 21, 4 / 21, 5 / 21, 6 / 21]),
    (Power(4, 2.5), np.array([1.0, 2.0, 3.0, 4.0]) ** 2.5 / sum(k**2.5 for k in (1, 2, 3, 4))),
    (Power(3, 0), [1 / 3, 1 / 3, 1 / 3]),
    (MirroredPower(6, 1), [6 / 21, 5 / 21, 4 / 21, 3 / 21, 2 / 21, 1 / 21]),
    (
        MirroredPower(4, 2.5),
        np.array([4.0, 3.0, 2.0, 1.0]) ** 2.5 / sum(k**2.5 for k in (1, 2, 3, 4)),
    ),
    (Range(8, 0.25, 0.75), [0, 0, 0.25, 0.25, 0.25, 0.25, 0, 0]),  # t / T = 0.25 is out, 0.75 is in
    (Range(5, 0.0, 1.0), [0.2] * 5),
    (Range(7, 0.9, 1.0), [0, 0, 0, 0, 0, 0, 1]),
]


@pytest.mark.parametrize(("timesteps", "expected"), FIXED)
def test_a_fixed_distribution_is_its_formula(timesteps, expected):
    """By chi-square over 100,000 draws; a t without probability is never drawn. Each loss counts as
    it is."""
    t, weight = timesteps.draw(100_000, torch.Generator().manual_seed(1))
    assert t.dtype == torch.int64 and weight.dtype == torch.float32 and (weight == 1).all()
    counts, expected = np.bincount(t.numpy(), minlength=len(expected) + 1), np.asarray(expected)
    assert counts.sum() == 100_000 and counts[0] == 0 and len(counts) == len(expected) + 1
    possible = expected > 0
    assert (counts[1:][~possible] == 0).all()
    if possible.sum() > 1:
        assert stats.chisquare(counts[1:][possible], 100_000 * expected[possible]).pvalue > 1e-3


def test_a_thousand_steps_have_their_probabilities_to_rounding():
    """What 100,000 draws could not tell: the differences of the table are t / (1 + .. + T), and the
    other way round."""
    t = np.arange(1, 1001)
    for timesteps, expected in (
        (Power(1000, 1), t / 500_500),
        (MirroredPower(1000, 1), t[::-1] / 500_500),
    ):
        np.testing.assert_allclose(
            np.diff(timesteps.cumulative.numpy(), prepend=0), expected, rtol=1e-9
        )
        assert timesteps.cumulative[-1] == 1


class Dial:
    """Stands in for torch.rand: these numbers."""

    def __init__(self, *values):
        self.values = torch.tensor(values, dtype=torch.float64)

    def __call__(self, *_, **__):
        return self.values


def test_the_ends_of_the_uniform_numbers(monkeypatch):
    """0 and the largest number below 1 are the first and the last t that can be; an edge belongs to
    the t above it."""
    monkeypatch.setattr(torch, "rand", Dial(0.0, 0.25, 0.49, 0.75, 1 - 2**-53))
    generator = torch.Generator()
    assert Range(8, 0.25, 0.75).draw(5, generator)[0].tolist() == [3, 4, 4, 6, 6]
    assert Power(3, 1).draw(5, generator)[0].tolist() == [1, 2, 2, 3, 3]  # cumulative 1/6, 1/2, 1
    assert MirroredPower(3, 1).draw(5, generator)[0].tolist() == [1, 1, 1, 2, 3]  # 1/2, 5/6, 1


@pytest.mark.parametrize(
    ("steps", "low", "high"),
    [(100, 0.29, 0.57), (1000, 0.3, 0.7), (10, 0.1, 0.7), (7, 1 / 7, 3 / 7)],
)
def test_a_range_is_exact_where_shares_round(steps, low, high):
    """0.29 * 100 is 28.999...; t / T = 0.29 is out all the same, and 0.57 in."""
    t, _ = Range(steps, low, high).draw(20_000, torch.Generator().manual_seed(0))
    assert t.min() == round(low * steps) + 1 and t.max() == round(high * steps)


@pytest.mark.parametrize("timesteps", [Power(50, 2), MirroredPower(50, 2), Range(50, 0.2, 0.4)])
def test_the_same_generator_draws_the_same_t_and_nothing_is_kept(timesteps):
    first, again = (timesteps.draw(64, torch.Generator().manual_seed(5))[0] for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(
        first, timesteps.draw(64, torch.Generator().manual_seed(6))[0]
    )
    timesteps.update(first, torch.rand(64))
    assert torch.equal(first, timesteps.draw(64, torch.Generator().manual_seed(5))[0])
    assert not timesteps.state_dict()  # a checkpoint of any T would load
    timesteps.load_state_dict({})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Power(5, -1),
        lambda: Power(5, float("nan")),
        lambda: MirroredPower(5, float("inf")),
        lambda: MirroredPower(5, -0.5),
        lambda: Range(5, -0.1, 0.5),
        lambda: Range(5, 0.5, 1.1),
        lambda: Range(5, 0.5, 0.5),
        lambda: Range(5, 0.6, 0.5),
        lambda: Range(5, float("nan"), 0.5),
        lambda: Range(5, 0.61, 0.79),
    ],
)
def test_distributions_that_cannot_be(make):
    with pytest.raises(ValueError, match="exponent must be|shares of T|farther apart"):
        make()


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        (["timesteps=power", "timesteps.exponent=2"], Power),
        (["timesteps=mirrored_power"], MirroredPower),
        (["timesteps=range", "timesteps.low=0.1", "timesteps.high=0.3"], Range),
    ],
)
def test_a_config_picks_them(overrides, kind):
    config = composed("train", overrides)
    check_run_config(config)
    built = build(config["timesteps"], NODES["timesteps"], "timesteps", steps=10)
    assert type(built) is kind and len(built.cumulative) == 10


def test_a_range_that_cannot_be_is_said_as_a_setting():
    config = composed("train", ["timesteps=range", "timesteps.low=0.9", "timesteps.high=0.3"])
    with pytest.raises(UserError, match="timesteps: low and high"):
        build(config["timesteps"], NODES["timesteps"], "timesteps", steps=10)
