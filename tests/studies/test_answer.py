"""What the paragraph says of made-up losses."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from config.overrides import composed
from metrics.over_seeds import Mean
from runtime.errors import UserError
from studies.which_layers.answer import answer
from studies.which_layers.images import Images
from studies.which_layers.judge import of_images, ranked, worse_than_best
from studies.which_layers.rounds import chosen_length, chosen_rate, chosen_step
from studies.which_layers.runs import Judged
from studies.which_layers.sentences import forgotten_sentence, times_as_many
from studies.which_layers.study import WhichLayers
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
    assert "With your 100 images train freeze_decoder, 13 steps at 0.001, and" in text
    assert "keep the average of length 0.1: test loss 0.07" in text
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
    assert list(comparison.outraced) == ["zero_shot"]
    assert "worse than freeze_decoder by 0.2" in comparison.outraced["zero_shot"]
    assert len(comparison.found["zero_shot"][None]) < 5
    assert len(comparison.found["full"][None]) == 5
    found = answer(comparison, {}, ARGUMENTS)
    assert "Left out on the way: zero_shot, worse than freeze_decoder by 0.2" in found.text


def test_the_rate_of_lowest_validation_loss_is_taken_by_halving():
    def loss_of(name, k, size, rate):
        return losses(0.08 + abs(np.log(rate / 3e-3)) * 0.01, k, name=name), 13

    comparison = compared(loss_of, ["full", "freeze_decoder"], rates=[1 / 3, 1, 3])
    rates = {j.rate for sizes in comparison.found.values() for j in sizes[None].values()}
    assert rates == {3e-3}
    first, second, steps = comparison.plan.stages(3)
    each = 3 * first + 2 * (second - first) + (steps - second)
    assert comparison.work.steps == 2 * 5 * each, "three rates, then two, then one to the end"


@pytest.mark.parametrize("training", [0.0, 3e-7])
def test_how_many_images_would_tell(training):
    """With so many times as many an interval misses 0 in POWER of cases: of a normal estimate with
    the variance that is said."""
    d = Mean(0.002, 5, 4e-6 + training, 40.0)
    r = times_as_many(d, 4e-6, 0.95)
    sd = np.sqrt(training + 4e-6 / r)
    shown = stats.norm.sf(stats.t.ppf(0.975, 40) * sd, 0.002, sd)
    assert r > 1 and shown == pytest.approx(0.8)


def test_where_trainings_differ_by_more_no_images_would_tell():
    assert times_as_many(Mean(0.002, 5, 9e-6, 4.0), 4e-6, 0.95) == np.inf
    said = r"About \d+ images would tell|More images alone would not tell|No number of images"
    assert re.search(said, told(lambda name, size: 0.08).text)


@pytest.mark.parametrize(
    ("images", "judging"),
    [
        (Images("", 284, 54, [], drawn=10), 54),
        (Images("", 284, 54, []), 54),
        (Images("", 1000, 0, ["validation", "test"], drawn=30), 200),
        (Images("", 1000, 0, ["validation", "test"], patients=100, judges=(200, 20)), 200),
    ],
)
def test_more_images_to_judge_by_are_test_images_where_one_set_judges(images, judging):
    """Of ten images to train on, judged by 54, three times as many are 162 and not 30."""

    def loss_of(name, k, size, rate):
        return 0.08 + apart[name] + 1e-5 * trainings[name][k], 13

    rng = np.random.default_rng(2)
    apart = {name: rng.normal(level, 0.004, 54) for name, level in (("full", 0), ("lora", 2e-3))}
    trainings = {name: rng.normal(size=5) for name in apart}
    comparison = replace(compared(loss_of, list(apart), folds=None), images=images)
    runs = {name: sizes[None] for name, sizes in comparison.found.items()}
    ranking = ranked(runs, False, 2)
    [(name, d)] = ranking.behind.items()
    times = times_as_many(d, of_images(runs, name, ranking.best, False), ranking.levels[name])
    said = re.search(r"About (.*) would tell", answer(comparison, {}, ARGUMENTS).text).group(1)
    patients = f" of {np.ceil(times * 20):.0f} patients" if images.patients else ""
    assert said == f"{np.ceil(times * judging):.0f} test images{patients}"


def test_what_images_add_is_the_variance_of_their_mean():
    """In folds of the mean over all of them; of one set, of its mean difference."""
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(5, 400)) for name in ("a", "b")}
    runs = {
        name: {
            k: Judged(Path(), 1, v.mean(), bootstrap(v), 400, 64, 1, 1) for k, v in enumerate(of)
        }
        for name, of in values.items()
    }
    apart = values["a"] - values["b"]
    assert of_images(runs, "a", "b", True) == pytest.approx(apart.var() / 2000, rel=0.15)
    assert of_images(runs, "a", "b", False) == pytest.approx(apart.mean(0).var() / 400, rel=0.3)


def bootstrap(values):
    """[1000] means of values drawn with replacement, by the same draws each time."""
    rows = np.random.default_rng(3).integers(0, len(values), (1000, len(values)))
    return values[rows].mean(1).tolist()


@pytest.mark.parametrize(
    ("share", "folds"),
    [
        pytest.param(0.0, True, marks=pytest.mark.slow),
        (0.5, True),
        pytest.param(0.9, False, marks=pytest.mark.slow),
    ],
)
def test_of_seven_equal_strategies_none_is_called_worse_nor_left_out(share, folds):
    """In 95 of 100 studies, and in 99 by racing, though the data choose the best of them. share: of
    the variance between repetitions that trainings add; without folds the images are alike for
    all."""
    rng, K, n, trials = np.random.default_rng(5), 5, 20, 150
    said = raced = 0
    for _ in range(trials):
        runs = {}
        for name in "abcdefg":
            added = np.sqrt(share / (1 - share) / n) * rng.normal(size=(K, 1))
            losses = rng.normal(size=(K if folds else 1, n)) + added
            runs[name] = {k: judged_by(own) for k, own in enumerate(losses)}
        said += bool(ranked(runs, folds, 7).worse)
        raced += raced_out(runs, folds, 1 - 0.01 / 3)
    assert said / trials < 0.05 + 2 * np.sqrt(0.05 * 0.95 / trials)
    assert raced / trials < 0.01 + 2.6 * np.sqrt(0.01 * 0.99 / trials)


def raced_out(runs, folds, level):
    """Whether a look after the second, third or fourth repetition leaves one out."""
    for until in (2, 3, 4):
        so_far = {n: {None: {k: r[k] for k in range(until)}} for n, r in runs.items()}
        if worse_than_best(so_far, list(so_far), "none", folds, level):
            return True
    return False


def judged_by(losses, **more):
    return Judged(
        Path(), 1e-3, losses.mean(), bootstrap(losses)[:200], len(losses), 64, 13, 40, **more
    )


def test_the_step_is_of_those_that_chose_the_rate():
    """Of (3.3e-4, 308), (1e-3, 400), (3e-3, 31), (3e-3, 41), (3e-3, 400) the rate is 3e-3, at which
    the middle step is 41 and that of all 308."""
    pairs = [(3.3e-4, 308), (1e-3, 400), (3e-3, 31), (3e-3, 41), (3e-3, 400)]
    judged = [
        Judged(Path(), rate, 0.1, [], 20, 64, step, 400, length=step / 1000) for rate, step in pairs
    ]
    assert (chosen_rate(judged), chosen_step(judged)) == (3e-3, 41)
    assert chosen_length(judged) == 0.041


def test_a_strategy_that_failed_on_the_way_is_not_ranked():
    comparison = compared(lambda name, k, size, rate: (losses(0.08, k, name=name), 13))
    comparison.failed["freeze_decoder"] = "out of memory"
    del comparison.found["freeze_decoder"][None][1]
    found = answer(comparison, {}, ARGUMENTS)
    assert "Without an answer, as training failed: freeze_decoder." in found.text
    assert found.text.count("freeze_decoder") == 1


def test_the_end_of_the_rates_is_said():
    def loss_of(name, k, size, rate):
        return losses(0.08 - rate * (name == "full"), k, 1e-5, name="same"), 13

    found = answer(compared(loss_of, ["full", "lora"], rates=[1 / 3, 1, 3]), {}, ARGUMENTS)
    assert "highest rate that was tried, 0.003, was chosen for full" in found.text


def test_the_advised_run_makes_the_average_that_was_judged():
    found = told(lambda name, size: {"full": 0.08, "freeze_decoder": 0.073}.get(name, 0.12))
    assert "keep the average of length 0.1" in found.text
    assert "'train.ema_lengths=[0.1]'" in found.command


def test_where_full_overtakes_what_is_better_of_few():
    """full is the best of all 64, and freeze_decoder of 16."""

    def level(name, size):
        return 0.08 - ({None: -0.004, 16: 0.004}[size] if name == "freeze_decoder" else 0)

    found = told(level, strategies=["full", "freeze_decoder"], sizes=[16])
    assert found.advised == "full"
    at = float(re.search(r"full overtakes it at about (\d+)", found.text).group(1))
    assert "With 16 images to train on freeze_decoder is better" in found.text
    assert at == pytest.approx(32, abs=6), "in the middle of 16 and 64, in their logarithm"


@pytest.mark.parametrize(
    ("grew", "said"),
    [
        ([0.01, 0.02, 0.03], "changed by 0.020 [-"),
        ([0.020, 0.021, 0.022], "rose by 0.0210 ["),
        ([-0.020, -0.021, -0.022], "fell by 0.0210 ["),
        ([0.01, -0.02, 0.03], "changed by 0.0067 [-"),
    ],
)
def test_what_was_forgotten_has_a_direction_where_it_is_known(grew, said):
    judged = [Judged(Path(), 1e-3, 0.1, [], 20, 64, 13, 40, forgot=value) for value in grew]
    assert said in forgotten_sentence(judged)
    whose = [replace(each, forgot_on="train") for each in judged]
    assert "images that it was trained on, as too few were held out" in forgotten_sentence(whose)


def test_a_strategy_that_failed_with_all_images_is_not_audited():
    """It has a run of a subset alone."""
    comparison = compared(
        lambda name, k, size, rate: (losses(0.08, k, name=name), 13), sizes=[30], audit_images=10
    )
    del comparison.found["freeze_decoder"][None]
    comparison.failed["freeze_decoder"] = "out of memory"
    study = WhichLayers(["full", "lora"], None, [1], 5, [], 1, 1, 10, False)
    asked = next(study._audit(comparison))
    assert [cell.name for cell in asked.cells] == ["audit, full", "audit, zero_shot"]
    assert comparison.audit_cell("freeze_decoder").name == "audit, freeze_decoder"


def test_no_image_is_held_out_of_too_few_patients():
    with pytest.raises(UserError, match="of 3 patients. Of fewer than 4"):
        Images("", 100, 0, ["validation", "test"], patients=3).check(3)
    Images("", 100, 0, ["validation", "test"], patients=4).check(4)
