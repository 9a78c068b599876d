"""What the paragraph says of made-up losses."""

from __future__ import annotations

import shlex

import numpy as np
import pytest

from config.overrides import composed
from studies.which_layers.answer import answer, times_as_many
from studies.which_layers.judge import differences
from tests.helpers.made_up_studies import compared
from training.config_checks import check_run_config

ARGUMENTS = ["+experiment=which_layers", "data.path=my images", "budget=60m", "study.folds=5"]
IMAGES = 20


def losses(level: float, k: int, noise: float = 0.003, name: str = "") -> np.ndarray:
    """Of the images of fold k, which are as hard for one strategy as for another."""
    hard = np.random.default_rng(k).normal(0, 0.01, IMAGES)
    own = np.random.default_rng([k, *name.encode()]).normal(0, noise, IMAGES)
    return level + hard + own


def told(level_of, **given):
    """level_of: (strategy, size) -> loss."""

    def loss_of(name, k, size, rate):
        return losses(level_of(name, size), k, name=name), 13

    return answer(compared(loss_of, **given), {}, ARGUMENTS)


def test_the_best_the_worse_and_the_command():
    levels = {"full": 0.080, "freeze_decoder": 0.073, "zero_shot": 0.12}
    found = told(lambda name, size: levels[name])
    assert found.advised == "freeze_decoder" and found.steps == 13 and not found.tied
    text = found.text
    assert "With your 100 images train freeze_decoder, 13 steps at 0.001: test loss 0.07" in text
    assert "by runs that trained on 64 of them, and the advised run trains on all 100" in text
    assert (
        text.index("full is +0.00") < text.index("zero_shot is +0.04") if "+0.0" in text else True
    )
    assert "worse" in text and "Not distinguished" not in text and "too short" not in text
    words = shlex.split(found.command)
    assert words[:2] == ["python", "train.py"] and "data.path=my images" in words
    assert not any(word.startswith(("budget", "study", "-m")) for word in words)
    config = composed(
        "train", ["data.path='my images'" if "my images" in w else w for w in words[2:]]
    )
    assert check_run_config(config).train.steps == 13
    assert config["transfer"]["name"] == "freeze_decoder" and config["optimizer"]["lr"] == 1e-3


def test_what_is_alike_is_not_told_apart():
    found = told(lambda name, size: {"zero_shot": 0.12}.get(name, 0.075))
    assert len(found.tied) == 1 and "Not distinguished from it" in found.text
    alike = told(lambda name, size: 0.08)
    assert len(alike.tied) == 2 and "Nothing is distinguished" in alike.text


def test_of_strategies_that_are_none_one_in_twenty_is_called_worse_at_most():
    wrong = 0
    for trial in range(100):

        def loss_of(name, k, size, rate, trial=trial):
            return losses(0.08, 1000 * trial + k, 0.004, name), 13

        found = answer(compared(loss_of, ["full", "again"]), {}, ARGUMENTS)
        wrong += len(found.tied) == 0
    assert wrong <= 10  # of a probability of 5% more than 10 of 100 come in 1 of 100 cases


def test_still_falling_is_said_first():
    def loss_of(name, k, size, rate):
        level = {"full": 0.08, "freeze_decoder": 0.073, "zero_shot": 0.12}[name]
        return losses(level, k, name=name), 40 if name == "full" else 13

    text = answer(compared(loss_of), {}, ARGUMENTS).text
    assert text.startswith("Training was too short for full: the loss still fell at the last step")


@pytest.mark.parametrize(
    ("behind", "said"),
    [
        ({None: -0.004, 30: -0.01}, "full overtakes freeze_decoder above 64 images"),
        ({None: -0.004, 30: -0.01, 10: 0.02}, ""),
        ({None: 0.004, 30: -0.004}, ""),
    ],
)
def test_a_crossing_beyond_what_was_tried_is_not_extrapolated(behind, said):
    def level(name, size):
        return 0.08 + (behind[size] if name == "freeze_decoder" else 0)

    found = told(level, strategies=["full", "freeze_decoder"], sizes=[s for s in behind if s])
    if said:
        assert said in found.text and found.text.count("if at all") == 1
    else:
        assert "if at all" not in found.text


def test_a_crossing_between_sizes_is_interpolated_in_their_logarithm():
    def level(name, size):
        return 0.08 + ({None: 0.003, 16: -0.003}[size] if name == "full" else 0)

    found = told(level, strategies=["full", "freeze_decoder"], sizes=[16])
    assert found.advised == "freeze_decoder"
    points = {(p.strategy, p.size): p for p in found.points}
    assert points["freeze_decoder", 16].trained_on == 16
    assert "overtakes" not in found.text, "at more images the advised one is ahead again"


def test_racing_leaves_out_what_is_worse_and_keeps_the_reference():
    def loss_of(name, k, size, rate):
        level = {"full": 0.1, "freeze_decoder": 0.07, "zero_shot": 0.3}[name]
        return losses(level, k, name=name), 13

    comparison = compared(loss_of, race=True)
    assert list(comparison.left_out) == ["zero_shot"]
    assert "worse than freeze_decoder by 0.2" in comparison.left_out["zero_shot"]
    assert len(comparison.found["zero_shot"][None]) == 2
    assert len(comparison.found["full"][None]) == 5
    found = answer(comparison, {}, ARGUMENTS)
    assert "zero_shot is" in found.text and "worse" in found.text


def test_the_rate_of_lowest_validation_loss_is_taken_by_halving():
    def loss_of(name, k, size, rate):
        return losses(0.08 + abs(np.log(rate / 3e-3)) * 0.01, k, name=name), 13

    comparison = compared(loss_of, ["full", "freeze_decoder"], rates=[1 / 3, 1, 3])
    rates = {j.rate for sizes in comparison.found.values() for j in sizes[None].values()}
    assert rates == {3e-3}
    first, second, steps = comparison.plan.stages(3)
    each = 3 * first + 2 * (second - first) + (steps - second)
    assert comparison.work.steps == 2 * 5 * each, "three rates, then two, then one to the end"


def test_how_many_images_would_tell():
    def loss_of(name, k, size, rate):
        return losses(0.08 + 0.0005 * (name == "again"), k, 0.01, name), 13

    runs = {n: s[None] for n, s in compared(loss_of, ["full", "again"]).found.items()}
    d = differences(runs, "full", True)["again"]
    n = times_as_many(d, 0.95)
    assert n > 1 and n == pytest.approx(((d.interval()[1] - d.value) / d.value) ** 2)
