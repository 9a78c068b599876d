"""Learning rates that fall: torch's own scheduler and the papers' formulas, what a run does with
them, resumed as undisturbed, and its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from config.identity import digest, identity
from config.overrides import composed
from config.run_config import RunConfig
from runtime.errors import UserError
from runtime.log import read_metrics
from tests.helpers import runs
from tests.helpers.transfers import TINY
from training.config_checks import check_run_config
from training.learning_rate import Constant, Cosine, InverseSquareRoot
from training.result import read_result, varied
from training.run import train

COSINE = ["learning_rate=cosine", "run.log_every=1"]


def test_cosine_is_torchs_own():
    optimizer = torch.optim.SGD([torch.zeros(1, dtype=torch.float64, requires_grad=True)], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90)
    ours = Cosine(90)
    for k in range(91):
        assert 0.3 * ours(k) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimizer.step()
        theirs.step()
    assert ours(0) == 1 and ours(90) == ours(91) == 0  # it does not rise again
    assert [Constant()(k) for k in (0, 10**6)] == [1, 1]


def test_inverse_square_root_is_the_papers():
    """In images, as their training counts: it has seen k * batch at step k."""
    batch, t_ref = 2048, 70000
    images = np.array([0, 1, 35000, 69999, 70000, 70001, 280000, 10**7], dtype=np.float64) * batch
    theirs = 1 / np.sqrt(np.maximum(images / (t_ref * batch), 1))
    ours = [InverseSquareRoot(t_ref)(int(k)) for k in images / batch]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert ours[4] == 1 and ours[6] == 0.5


def trained(root: Path, *settings: str) -> Path:
    places = [f"run.root={root}/runs", f"run.cache={root}/cache"]
    return train(composed("train", [*TINY, *places, "train.steps=6", *settings]))


def test_a_run_has_the_rate_of_each_step_after_its_warm_up(undisturbed, tmp_path):
    given = ["learning_rate=inverse_sqrt", "learning_rate.t_ref=2", "run.log_every=1"]
    given += ["optimizer.lr=2e-4", "train.warmup=3"]  # as of the other run
    for directory, falls, steps in (
        (undisturbed(*COSINE), lambda k: np.cos(np.pi * k / 24) ** 2, 12),
        (trained(tmp_path, *given), lambda k: (2 / max(k, 2)) ** 0.5, 6),
    ):
        rows = read_metrics(directory / "metrics.jsonl")
        rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
        expected = [2e-4 * min(1, (k + 1) / 3) * falls(k) for k in range(steps)]
        assert rates == pytest.approx(expected, rel=1e-12)


def test_resumed_it_goes_on_at_its_rate(undisturbed, tmp_path):
    expected = undisturbed(*COSINE)
    done = runs.operations(expected.parents[2])
    at = runs.number_of(done, r"write \.step_8/optimizer.pt")
    code, text = runs.train(tmp_path, COSINE, str(at))
    assert code == -9, text
    runs.assert_same_run(runs.finish(tmp_path, COSINE), expected)
    code, text = runs.train(tmp_path, COSINE)
    assert code == 0 and "has 12 steps" in text and "continues it" not in text


def name(*settings: str) -> str:
    return digest(identity(RunConfig(composed("train", settings)).completed, "images"))


def test_a_name_counts_the_length_of_a_rate_that_depends_on_it():
    plain = name()
    assert name("learning_rate=constant") == name("train.steps=20") == plain
    of_before = composed("train", [])
    del of_before["learning_rate"]
    assert digest(identity(RunConfig(of_before).completed, "images")) == plain
    short, long = (name("learning_rate=cosine", f"train.steps={k}") for k in (10, 20))
    given = name("learning_rate=cosine", "learning_rate.steps=20", "train.steps=10")
    other = name("learning_rate=inverse_sqrt")
    assert len({plain, short, long, other}) == 4 and given == long
    assert name("learning_rate=inverse_sqrt", "train.steps=20") == other
    assert name("learning_rate=inverse_sqrt", "learning_rate.t_ref=9") != other


def test_a_longer_run_is_another_one_and_never_goes_on_at_a_wrong_rate(tmp_path):
    first, second = (trained(tmp_path, *COSINE, f"train.steps={steps}") for steps in (6, 8))
    assert first != second
    with pytest.raises(UserError, match=r"another config(.|\n)*learning_rate.steps: 6 -> 8"):
        trained(tmp_path, *COSINE, "train.steps=8", f"run.directory={first}")
    # a length of its own: in two parts as in one
    longer = [*COSINE, "learning_rate.steps=8"]
    parts = [trained(tmp_path / "parts", *longer, f"train.steps={steps}") for steps in (6, 8)]
    assert parts[0] == parts[1]
    runs.assert_same_weights(parts[1], second, 8)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["learning_rate=cosine", "learning_rate.steps=5"], "0 before the last of train.steps=6"),
        (["learning_rate=inverse_sqrt", "learning_rate.t_ref=0"], "t_ref=0 must be at least 1"),
        (["learning_rate._target_=training.run.train"], "nothing else is built from a config"),
        (["learning_rate._target_=training.learning_rate.Cosin"], "there is no training.learning"),
    ],
)
def test_wrong_settings_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        check_run_config(composed("train", ["train.steps=6", *settings]))


def test_without_steps_no_rate_is_asked(tmp_path):
    trained(tmp_path, "learning_rate=cosine", "train.steps=0")
    trained(tmp_path, "learning_rate=cosine", "train.steps=0")


def test_a_report_names_it(undisturbed):
    plain, falling = (read_result(undisturbed(*more)) for more in ([], COSINE))
    del plain.config["learning_rate"]  # as in a run of before there was any
    assert varied([plain, falling]) == ["learning_rate._target_"]
