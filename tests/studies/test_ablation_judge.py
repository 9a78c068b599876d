"""Claims and bands on evaluations that are made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from metrics.estimate import EVALUATION, VERSION
from reporting.runs import Evaluation
from runtime.files import write_sealed
from studies.ablation.judge import judge
from studies.ablation.measured import Found, failures, found_of
from studies.ablation.page import expected_text, measured_text, within_text
from studies.ablation.settings import Claim, Expected, Measure
from studies.cells import Outcome

PATHS = {"KID": "quality.kid", "bits": "bits", "IS": "is"}


def found(values: list[float], noise: float = 0.0, draw: int = 0, key: str = "KID") -> Found:
    """Seeds 0, 1, ...: numbers with replicates about them, drawn alike for all rows of a draw."""
    evaluations = {}
    for seed, value in enumerate(values):
        about = noise * np.random.default_rng([draw, seed]).standard_normal(200)
        number = {"value": value, "replicates": (value + about).tolist(), "images": 1000}
        content = {"quality": {"kid": number}} if key == "KID" else {key: number}
        evaluations[seed] = Evaluation(Path("e"), content)
    return Found({k: Path(f"run{k}") for k in evaluations}, evaluations, {}, {})


def claim(less: str, than: str, by: str = "KID", times: float = 1) -> Claim:
    return Claim(less, than, by, "shown", times=times)


def verdicts(claims, rows) -> list[str]:
    return [each.verdict for each in judge(claims, rows, PATHS)]


def test_shown_opposite_and_not_shown():
    rows = {
        "low": found([1.0, 1.1, 0.9]),
        "high": found([3.0, 3.2, 2.9]),
        "wild": found([-1.0, 2.0, 6.0]),
    }
    claims = [claim("low", "high"), claim("high", "low")]
    assert verdicts(claims, rows) == ["shown", "opposite"]
    assert verdicts([claim("low", "wild")], rows) == ["not shown"]


def test_a_single_claim_is_a_paired_t_test():
    """What all seeds share does not count: the rows overlap, their differences do not."""
    low, high = [1.0, 5.0, 9.0], [1.5, 5.4, 9.7]
    [each] = judge([claim("low", "high")], {"low": found(low), "high": found(high)}, PATHS)
    ours = each.difference.interval(each.level)
    theirs = stats.ttest_rel(high, low).confidence_interval(0.95)
    assert each.verdict == "shown" and ours == pytest.approx((theirs.low, theirs.high))


def test_pairing_is_by_seed():
    """A row that lacks a seed is compared on the others."""
    low, high = found([1.0, 5.0, 9.0]), found([1.5, 5.4, 9.7])
    del high.evaluations[1]
    [each] = judge([claim("low", "high")], {"low": low, "high": high}, PATHS)
    assert each.difference.n == 2 and each.difference.value == pytest.approx(0.6)


def test_images_that_rows_share_are_paired_too():
    """Replicates that move together leave no variance between two trainings of one seed."""
    together = {"low": found([1.0], 2.0), "high": found([1.5], 2.0)}
    apart = {"low": found([1.0], 2.0), "high": found([1.5], 2.0, draw=1)}
    assert verdicts([claim("low", "high")], together) == ["shown"]
    assert verdicts([claim("low", "high")], apart) == ["not shown"]


def test_a_claim_of_a_ratio():
    """Five times the lower one, and its replicates with it."""
    rows = {"low": found([1.0, 1.1, 0.9], 0.1), "high": found([5.4, 6.1, 5.2], 0.1)}
    times = {t: judge([claim("low", "high", times=t)], rows, PATHS)[0] for t in (1, 5, 10)}
    assert times[5].difference.value == pytest.approx(np.mean([5.4 - 5, 6.1 - 5.5, 5.2 - 4.5]))
    assert [t.verdict for t in times.values()] == ["shown", "shown", "opposite"]
    assert "5 x low < high" in times[5].claim.text
    ours = {t: found([0.0], 0.1).mean(PATHS["KID"]).variance * (1 - t) ** 2 for t in times}
    one = {"low": found([1.0], 0.1), "high": found([5.0], 0.1)}
    for t, variance in ours.items():
        [each] = judge([claim("low", "high", times=t)], one, PATHS)
        assert each.difference.variance == pytest.approx(variance)


def test_holm_takes_back_what_stands_alone():
    """p of about 0.03 each: alone it is shown, among five it is not; a clear one stays."""
    rows = {f"high{k}": found([0.8, 1.0, 1.6], key="bits") for k in range(5)}
    rows |= {"low": found([0.0, 0.0, 0.0], key="bits"), "clear": found([9.0, 9.1, 9.2], key="bits")}
    p = stats.ttest_1samp([0.8, 1.0, 1.6], 0).pvalue
    assert 0.01 < p < 0.05
    alone = [Claim("low", "high0", "bits", "shown")]
    assert verdicts(alone, rows) == ["shown"]
    apart = [Claim("low", f"high{k}", "bits", "shown", times=1 + k / 1e9) for k in range(5)]
    clear = [Claim("low", "clear", "bits", "shown", times=2)]
    assert verdicts([*apart, *clear], rows) == ["not shown"] * 5 + ["shown"]


def test_measures_do_not_lend_one_another_their_calm():
    """Bits that hardly vary say nothing of KID, which does."""
    kid = {"low": found([0.0, 0.0, 0.0]), "high": found([0.5, 1.0, 2.5])}
    [alone] = judge([claim("low", "high")], kid, PATHS)
    rows = kid | {"a": found([1.0, 1.0, 1.0], key="bits"), "b": found([2, 2.01, 1.99], key="bits")}
    both = judge([claim("low", "high"), claim("a", "b", "bits")], rows, PATHS)
    assert both[0].difference == alone.difference and both[0].verdict == "not shown"


def test_what_diverged_is_a_result_with_its_step():
    """In the words of training.loop."""
    said = {
        0: "the loss or the gradient of step 41 is not finite, so training stopped there. No ...",
        1: "the held-out loss after 300 steps is not finite, so training stopped there.",
        2: "the disk is full",
    }
    outcomes = {seed: Outcome(None, message, 1.0) for seed, message in said.items()}
    row = found_of(outcomes, "n=2", Measure("KID", "quality.kid", "", "lower"))
    assert row.unstable == {0: 41, 1: 300} and row.failed == {2: "the disk is full"}
    [each] = judge([claim("low", "row")], {"low": found([1.0, 1.0]), "row": row}, PATHS)
    assert each.verdict == "not measured" and "row unstable at step 41 (seed 0)" in each.why
    unstable = Expected("KID", "unstable", "Somebody 2020", "read", None)
    assert within_text(unstable, None, row) == "yes"
    assert within_text(unstable, 1.0, found([1.0])) == "no, it trained"


def test_a_message_is_told_once_and_not_by_each_row():
    """25 rows of one file that is missing."""
    long = "weights.pth is not there: python fetch.py\nor give features.path"
    lost = Found({}, {}, {}, {0: long, 1: long})
    rows = {"a": lost, "b": found([1.0]), "c": lost, "d": Found({}, {}, {}, {0: "no disk"})}
    assert rows["a"].state == "failed (seeds 0, 1)" and not rows["b"].state
    assert failures(rows) == [f"Failed: a and 1 more: {long}", "Failed: d: no disk"]


def test_a_row_that_a_size_leaves_out():
    [each] = judge([claim("low", "none")], {"low": found([1.0])}, PATHS)
    assert each.verdict == "not measured" and "none is no row of this size" in each.why


def test_a_number_without_an_interval_shows_nothing():
    """One training, and no replicates, as of FID."""
    rows = {name: found([value]) for name, value in (("low", 1.0), ("high", 9.0))}
    for row in rows.values():
        row.evaluations[0].content["quality"]["kid"] = 9.0
    [each] = judge([claim("low", "high")], rows, PATHS)
    assert each.verdict == "not shown" and each.why == "one training, and no interval"


def test_bands():
    expected = Expected("KID", 3.17, "Ho et al. 2020, table 1", "read", [2.97, 4.17])
    for value, said in ((2.96, "below"), (2.97, "yes"), (4.17, "yes"), (4.18, "above")):
        assert within_text(expected, value, found([value])) == said
    assert expected_text(expected) == "3.17 [2.97 to 4.17]"
    text, value = measured_text(found([1.0, 1.1, 0.9], 0.01), "quality.kid")
    assert value == pytest.approx(1.0) and text.startswith("1.0") and "°" not in text
    text, _ = measured_text(found([1.0], 0.01), "quality.kid")
    assert text.startswith("1.0") and "°" not in text  # nothing in evaluation.json says the ends


def test_of_several_checkpoints_the_best_counts_and_other_evaluations_do_not(tmp_path):
    """As select=every leaves them: one line, an evaluation each. The same settings in another order
    are the same line; another number of images, or evaluate.py's own, is another."""
    line = "select=last n=6 sampler=ancestral sampler.steps=3"
    same = "sampler.steps=3 n=6 select=last sampler=ancestral device=cpu batch_size=2"
    made = {"a": (line, 3.0), "b": (same, 2.0), "c": (line.replace("n=6", "n=7"), 1.0)}
    made["d"] = ("", 0.5)
    for name, (arguments, value) in made.items():
        content = {"version": VERSION, "protocol": {}, "arguments": arguments.split(), "is": value}
        (tmp_path / "evaluation" / name).mkdir(parents=True)
        write_sealed(tmp_path / "evaluation" / name / EVALUATION, content)
    outcomes = {0: Outcome(tmp_path, "", 1.0)}
    for better, best in (("lower", 2.0), ("higher", 3.0)):
        row = found_of(outcomes, line, Measure("IS", "is", "", better))
        assert row.values("is")[0].value == best and not row.failed
    row = found_of(outcomes, "n=9", Measure("IS", "is", "", "lower"))
    assert "is not evaluated" in row.failed[0] and not row.evaluations
