"""Regret over studies whose losses are made up."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import stats

from metrics.over_seeds import Mean
from runtime.errors import UserError
from studies import regret
from tests.helpers.study_rows import rows


def one(**losses):
    [found] = regret.comparisons(rows(**losses)).values()
    return found


def test_what_is_better_by_two_percent_is_a_regret_of_two_percent():
    full = np.array([1.0, 1.1, 0.9, 1.05, 0.95])
    found = one(full=full, lora=full - 0.02, scratch=full + 0.5).regret
    assert found.value == pytest.approx(2) and found.interval() == pytest.approx((2, 2))


def test_full_regrets_nothing_where_it_is_best():
    full = np.linspace(0.9, 1.1, 5)
    found = one(full=full, lora=full + 0.1)
    assert found.regret.value == 0 and found.best == "full"


def test_chance_is_no_regret():
    """Seven equal strategies: the lowest of their means would look better than full by 1.3 standard
    deviations of a mean, and the choice of the other repetitions gains nothing."""
    random, K = np.random.default_rng(0), 5
    values, naive = [], []
    for _ in range(400):
        losses = {f"s{k}": 1 + 0.01 * random.standard_normal(K) for k in range(6)}
        found = one(full=1 + 0.01 * random.standard_normal(K), **losses)
        values.append(found.regret.value)
        naive.append(-found.behind[found.best].mean())
    assert abs(np.mean(values)) < 4 * np.std(values) / 20
    assert np.mean(naive) > 0.4


def test_a_regret_of_nothing_in_all_repetitions_is_not_known_exactly():
    """All choose full, and lora is not told apart from it: the width is that of their difference.
    Where all others are far behind there is none."""
    full, noise = np.ones(5), np.array([0.004, 0.001, 0.003, -0.002, 0.002])
    found = one(full=full, lora=full + noise, scratch=full + 0.3 + 10 * noise)
    assert found.regret.value == 0 and found.minus("lora", "full").holds_zero()
    low, high = found.minus("lora", "full").interval()
    assert np.diff(found.regret.interval()) == pytest.approx(high - low)
    assert one(full=full, lora=full + 0.1 + noise).regret.interval() == (0, 0)


def test_the_mean_over_the_targets_of_a_number():
    """Two targets with 10 images, one with 30, which has another strategy too."""
    lines = rows("a", repeats=2, full=[1.0, 1.0], norms=[1.02, 1.04])
    lines += rows("b", repeats=2, full=[2.0, 2.0], norms=[2.1, 2.1])
    lines += rows("a", 30, 2, full=[1.0, 1.0], norms=[0.99, 0.99], lora=[1.1, 1.1])
    found = regret.by_number(regret.comparisons(lines))
    assert [line[:2] for line in found] == [["targets", "N"], ["2", "10"], ["1", "30"]]
    means = [[text.split("%")[0] for text in line[2:]] for line in found[1:]]
    assert means == [["+0.00", "+4.00", ""], ["+1.00", "-1.00", "+10.00"]]


@pytest.mark.parametrize("targets", [1, 4])
def test_the_bound_of_a_regret_holds_in_95_of_100(targets):
    """Of a strategy that is better by little, which some repetitions choose and others do not."""
    rng, K, trials, found = np.random.default_rng(6), 5, 400, []
    for _ in range(trials):
        regrets = {}
        for target in range(targets):
            losses = {"lora": 0.997 + 0.005 * rng.normal(size=K), "scratch": np.full(K, 1.2)}
            regrets[str(target), 10] = one(full=np.ones(K), **losses).regret
        mean = regret.together(regrets)
        found.append((mean.value, mean.interval(0.9)[1]))
    values, bounds = np.array(found).T
    assert np.mean(bounds >= values.mean()) > 0.95 - 2.6 * np.sqrt(0.05 * 0.95 / trials)


def test_a_bound_is_rounded_up():
    full, step = np.ones(5), np.array([-1, -1, 0, 1, 1]) * 1e-4
    said = regret.sentence(regret.comparisons(rows("a", 10, full=full, lora=full - 0.02 + step)))
    assert "is on average 2.0% above" in said and "at most 2.1% more" in said


def test_a_mean_over_repetitions_is_students():
    values = np.array([1.0, 2.0, 4.0, 3.0, 2.5])
    low, high = regret.mean_of(values, 0.0).interval()
    expected = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
    assert (low, high) == pytest.approx(expected)
    assert regret.mean_of(values, 0.3).variance == pytest.approx(stats.sem(values) ** 2 + 0.09)


def test_targets_are_independent_and_numbers_of_one_are_not():
    same = {("a", 10): Mean(1.0, 5, 4.0, 4), ("a", 30): Mean(3.0, 5, 16.0, 4)}
    found = regret.together(same | {("b", 10): Mean(4.0, 5, 1.0, 4)})
    assert found.value == pytest.approx((2 + 4) / 2)
    assert found.variance == pytest.approx((3**2 + 1**2) / 4)
    assert found.freedom == pytest.approx((9 + 1) ** 2 / (9**2 / 4 + 1 / 4))


@pytest.mark.parametrize(
    ("behind", "where"), [((-2, -1, 1), 30.0), ((1, -1, -1), 0), ((-1, -1, -2), np.inf)]
)
def test_where_full_overtakes(behind, where):
    assert regret.crossing(dict(zip((3, 10, 90), behind, strict=True))) == pytest.approx(where)


def test_a_crossing_that_is_not_known_well_has_a_wide_interval():
    full, noise = np.ones(5), np.linspace(-1, 1, 5)

    def curve(spread):
        return {
            n: one(full=full, freeze_decoder=full + (d + spread * noise) / 100)
            for n, d in ((10, -1), (90, 1))
        }

    assert regret.crossing_text(curve(0.01), "freeze_decoder").startswith("30 [")
    assert "below 10; above 90, if at all" in regret.crossing_text(curve(9), "freeze_decoder")
    sure = one(full=full, freeze_decoder=full - 0.02)
    said = regret.crossing_text({3: sure, 90: sure}, "freeze_decoder")
    assert said == "no crossing (above 90, if at all)"


def test_the_interval_of_a_crossing_holds_it_in_95_of_100():
    """Where curves of true differences -1 and 1 cross at 30, measured in five repetitions."""
    rng, held, trials = np.random.default_rng(4), 0, 150
    for _ in range(trials):
        of = {
            n: one(full=np.ones(5), freeze_decoder=1 + (d + rng.normal(size=5)) / 100)
            for n, d in ((10, -1), (90, 1))
        }
        found = regret.crossing_text(of, "freeze_decoder", draws=400)
        low, high = re.search(r"\[([^;]*); ([^]]*)\]|$", found).groups(default="no crossing")
        below = low.startswith("below") or (low[0].isdigit() and float(low) <= 30)
        held += below and (high.startswith("above") or float(high) >= 30)
    assert held / trials > 0.95 - 2.6 * np.sqrt(0.05 * 0.95 / trials)


def test_what_was_asked_beforehand_is_shown_or_not():
    full, noise = np.ones(5), 0.001 * np.arange(5)
    table = []
    for target in "ab":
        table += rows(target, 10, full=full, freeze_decoder=full - 0.05 + noise, scratch=full + 0.1)
        table += rows(target, 300, full=full, freeze_decoder=full - 0.02 + noise)
    said = {
        line[0].split(" at ")[0]: line[2] for line in regret.contrasts(regret.comparisons(table))
    }
    assert said == {
        "freeze_decoder below full": "shown",
        "full below freeze_decoder": "opposite",
        "full below scratch": "shown",
    }


def test_a_contrast_says_which_of_the_two_still_fell():
    """In two of three comparisons, at step 100 of 100."""
    full, table = [1.0, 1.0], []
    for target, step in (("a", 20), ("b", 100), ("c", 100)):
        table += rows(target, repeats=2, full=full)
        table += rows(target, repeats=2, step=step, scratch=[1.1, 1.1], full=full)[:2]
    [line] = regret.contrasts(regret.comparisons(table))
    assert line[3] == "scratch still fell in 2 of 3"


def test_strategies_without_the_same_repetitions_are_refused():
    with pytest.raises(UserError, match="not the same repetitions"):
        regret.comparisons(rows(full=np.ones(5), lora=np.ones(5))[:-1])


def test_a_study_takes_the_place_of_what_was_there(tmp_path, monkeypatch):
    monkeypatch.setattr(regret, "TABLE", tmp_path / "regret.csv")
    for k, loss in enumerate((1.0, 2.0)):
        path = tmp_path / f"{k}.csv"
        lines = rows(full=np.full(5, loss), lora=np.ones(5))
        whole = [[line.get(column, "") for column in regret.COLUMNS] for line in lines]
        regret.write_csv(path, [regret.COLUMNS, *whole])
        regret.add([path])
    [found] = regret.comparisons(regret.read(regret.TABLE)).values()
    assert found.full == 2.0 and len(regret.read(regret.TABLE)) == 10


@pytest.mark.parametrize(
    ("rates", "at_an_end"),
    [("llmmh", False), ("lllmm", True), ("mmhhh", True), ("lhlhm", False), ("mmmmm", False)],
)
def test_an_end_of_the_rates_is_one_of_them(rates, at_an_end):
    """As in the paragraph of a study: half of the repetitions or more chose the lowest, or the
    highest."""
    lines = rows(full=np.ones(5))
    for line, rate in zip(lines, rates, strict=True):
        line["rate"] = {"l": "0.0002", "m": "0.001", "h": "0.005"}[rate]
    [found] = regret.comparisons(lines).values()
    assert found.at_an_end == ["full"] * at_an_end


def test_the_sentence_has_the_sign_of_the_number():
    full = np.linspace(0.9, 1.1, 5)
    lines = rows("a", 10, full=full, lora=full * 0.8) + rows("b", 30, full=full, lora=full * 0.8)
    assert "10 to 30 images" in regret.sentence(regret.comparisons(lines))
    assert "20.0% above that of the strategy" in regret.sentence(regret.comparisons(lines))
    assert "1 targets with 10 images" in regret.sentence(regret.comparisons(lines[:10]))
    worse = rows("a", 10, full=full, lora=full + np.array([-0.1, -0.1, -0.1, -0.1, 0.9]))
    assert "below that of the strategy" in regret.sentence(regret.comparisons(worse))


def test_a_table_that_none_could_read_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(regret, "TABLE", tmp_path / "regret.csv")
    lines = rows(full=np.ones(5), lora=np.ones(5))[:-1]
    whole = [[line.get(column, "") for column in regret.COLUMNS] for line in lines]
    regret.write_csv(tmp_path / "new.csv", [regret.COLUMNS, *whole])
    with pytest.raises(UserError, match="not the same repetitions"):
        regret.add([tmp_path / "new.csv"])
    assert not regret.TABLE.exists()
