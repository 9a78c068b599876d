"""Plans: what is left out where the time is short, and what they cost."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from config.overrides import CONF, composed, options
from data.settings import OWN_KEYS, parse_data, reader_keys
from runtime.errors import UserError
from runtime.hydra_private import parse_command_line
from studies.which_layers.images import Images, look_at
from studies.which_layers.plan import lesser, looks_of, minutes
from studies.which_layers.rounds import priced
from studies.which_layers.study import WhichLayers
from tests.helpers.made_up_studies import compared, plan
from tests.helpers.smooth_images import smooth
from training.sweep import is_sweep


def test_what_is_left_out_in_which_order():
    whole = plan(sizes=[30, 10], rates=[0.3, 1, 3], audit_images=200)
    said = [what for what, _ in lesser(whole)]
    assert [what.split(",")[0].split(";")[0] for what in said] == [
        "",
        "the audits of generated images (copies",
        "the subset of 10 images",
        "the subset of 30 images",
        "the choice of the rate in each repetition",
        "a fold",
        "a fold",
        "the choice of the rate: the middle one is taken",
    ]
    *_, (_, least) = lesser(whole)
    assert (least.repeats, least.sizes, least.rates) == (3, [], [1])
    assert least.steps == whole.steps, "no run is cut short"


@pytest.mark.parametrize("less", range(1, 8))
def test_less_is_cheaper(less):
    def loss_of(name, k, size, rate):
        return np.ones(20), 13

    plans = [p for _, p in lesser(plan(sizes=[30, 10], rates=[0.3, 1, 3]))]
    if less < len(plans):
        costs = [
            sum(
                priced(
                    compared(
                        loss_of,
                        sizes=p.sizes,
                        rates=p.rates,
                        rates_once=p.rates_once,
                        repeats=p.repeats,
                    )
                ).seconds.values()
            )
            for p in plans[less - 1 : less + 1]
        ]
        assert costs[1] < costs[0]


def test_what_is_priced_is_what_is_done():
    def loss_of(name, k, size, rate):
        return np.linspace(0.1, 0.2, 20), 13

    comparison = compared(loss_of, sizes=[30], rates=[0.3, 1, 3])
    expected = priced(comparison)
    assert expected.work == comparison.work and expected.seconds == comparison.spent


def test_looks_are_spaced_and_end_at_the_last_step():
    for steps in (1, 4, 8, 40, 400, 12345):
        looks = looks_of(steps)
        assert looks[-1] == steps and looks == sorted(set(looks))
        assert all(b <= round(1.3 * a) + 1 for a, b in pairwise(looks))
        assert looks[0] <= max(1, steps // 4)


@pytest.mark.parametrize(
    ("text", "found"), [("90s", 1.5), ("30m", 30), ("2h", 120), ("1.5h", 90), ("1d", 1440)]
)
def test_durations(text, found):
    assert minutes(text) == found


@pytest.mark.parametrize("text", ["", "30", "m", "-3m", "soon", "infh", "nanm"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="is no duration"):
        minutes(text)


def test_the_images_are_told():
    few, given, many = (
        Images("", count, n, ["validation", "test"], aside)
        for count, n, aside in ((100, 0, 0), (90, 30, 12), (1000, 0, 0))
    )
    assert few.folds(5) == 5 and given.folds(5) is None and many.folds(5) is None
    assert few.told(5, 3).startswith("100: 5 folds, 3 of them judged; a run trains on 64, and 16")
    said = given.told(None, 5)
    assert "judged by 30 test images of their own, 5 seeds; a run trains on 72, and 18" in said
    assert "12 of a validation folder are left aside" in said
    assert "a share of 0.2 to judge by, 5 seeds; a run trains on 640, and 160" in many.told(None, 5)
    assert few.repeat(2, 5)[:3] == ["data.validation=0", "data.test=0", "data.fold=[2,5]"]
    assert many.repeat(2, None)[:2] == ["data.validation=0", "data.test=0.2"]
    assert given.repeat(2, None)[:2] == ["data.validation=0", "data.validation_of_train=0.2"]


def test_a_study_of_fewer_images_than_there_are():
    """Each seed has its own: the others judge none of it, unless they are test images."""
    drawn = Images("", 1000, 0, ["validation", "test"], drawn=30)
    assert (drawn.training(None), drawn.tested(None), drawn.at_hand) == (30, 200, 30)
    assert "30 of these drawn anew for each; a run trains on 24, and 6 choose" in drawn.told(
        None, 5
    )
    given = Images("", 15000, 1800, [], drawn=30)
    assert (given.training(None), given.tested(None)) == (30, 1800)
    folded = Images("", 100, 0, ["validation", "test"], drawn=90)
    assert folded.training(5) == 80, "no more than the folds leave"


def folder(root, **counts):
    for name, n in counts.items():
        (root / name).mkdir(parents=True)
        for k in range(n):
            smooth(k, 8).save(root / name / f"{k}.png")
    return root


@pytest.mark.parametrize(
    ("counts", "more", "told"),
    [
        ({"a": 8, "b": 7}, [], 2),
        ({"a": 8, "b": 7}, ["model.classes=0"], 0),
        ({"a": 8, "b": 7}, ["data.classes=false"], 0),
        ({"a": 15}, [], 0),
    ],
)
def test_the_network_is_told_classes_where_there_are_two(tmp_path, counts, more, told):
    images = folder(tmp_path / "mine", **counts)
    line = ["+experiment=which_layers", f"data.path={images}", *more]
    found = look_at(composed("train", line), line)
    assert found.classes == told and found.count == 15
    said = ["model.classes=auto"] * (told > 0)
    for overrides in (found.repeat(0, 5), found.all_of_them):
        assert [o for o in overrides if o.startswith("model.")] == said


def test_of_many_so_few_are_at_hand(tmp_path):
    images = folder(tmp_path / "mine", a=20)
    line = ["+experiment=which_layers", f"data.path={images}", "data.n_train=9"]
    assert look_at(composed("train", line), line).at_hand == 9


@pytest.mark.parametrize("data", options("data"))
def test_every_kind_of_images_takes_what_a_study_sets(data):
    """A setting that its reader does not know would refuse every cell."""
    place = ["data.path=mine"] * ("\npath:" in (CONF / f"data/{data}.yaml").read_text())
    bands = ["data.channels=13"] * data.endswith("_bands")
    line = ["+experiment=which_layers", f"data={data}", *place, *bands]
    section = composed("train", line)["data"]
    parse_data(section)
    splits = [name for name in ("validation", "test") if name in reader_keys(section)]
    for count, given in ((100, 0), (900, 0), (900, 90)):
        images = Images("", count, given, splits)
        said = {line.split("=")[0] for line in images.repeat(0, images.folds(5))}
        known = {f"data.{key}" for key in reader_keys(section) | OWN_KEYS}
        assert said - known == {"seed"}


def test_budget_is_a_duration():
    WhichLayers(["full", "lora"], "60m", [1], 5, [], 1, 1, 0, False)
    with pytest.raises(ValueError, match="budget=60 is no duration such as 30m"):
        WhichLayers(["full", "lora"], 60, [1], 5, [], 1, 1, 0, False)


@pytest.mark.parametrize("said", ["budget=60m", "study.folds=3"])
def test_what_is_of_a_study_is_not_dropped_without_m(tmp_path, said):
    line = ["+experiment=which_layers", f"data.path={tmp_path}", said]
    with pytest.raises(UserError, match=f"{said} is for many runs: add -m"):
        is_sweep("train", parse_command_line(line))
