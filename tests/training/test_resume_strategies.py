"""Strategies that were stopped or killed go on to the bits of those that were not: rates that
change over time, terms, injected parameters. What is measured once is found again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runtime.checkpoint import find
from tests.helpers import runs

TISSUE = ["data=bundled_tissue", "data.size=8", "data.n_train=30", "seed=1", "train.accumulation=2"]
IMAGES = ["n=12", "steps=3"]  # of those that the source makes
STRATEGIES = {
    "lp_ft": [],
    "lora": ["transfer.inject.0.rank=2", "transfer.inject.1.rank=2"],
    "svdiff": [],
    "dreambooth": [f"transfer.replay.images.{s}" for s in IMAGES],
    "diff_tuning": [f"transfer.replay.images.{s}" for s in IMAGES],
    "ewc": ["transfer.penalties.0.n=12", *(f"transfer.penalties.0.images.{s}" for s in IMAGES)],
    "feature_distillation": [],
    "ant": [
        "transfer.inject.0.rank=2",
        "transfer.inject.1.rank=2",
        "transfer.loss.classifier_steps=3",
        "transfer.loss.ascent_steps=1",
        *(f"transfer.loss.images.{s}" for s in IMAGES),
    ],
}
# Before the rates of lp_ft change, which they do at step 6, and after it: of 12 steps, with
# checkpoints at 4, 8 and 12.
BEFORE, AFTER = r"fsync checkpoints/\.step_4", r"write \.step_8/optimizer.pt"


def arguments(undisturbed, name: str) -> list[str]:
    rate = [] if name != "lp_ft" else ["run.log_every=1"]  # more moments to stop at
    return [*TISSUE, f"source.from={undisturbed()}", f"transfer={name}", *STRATEGIES[name], *rate]


def number(expected: Path, operation: str) -> int:
    found = [line for line in runs.operations(expected.parents[2]) if re.search(operation, line)]
    return int(found[0].split()[0])


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("lora", BEFORE),
        ("ewc", AFTER),
        *(
            pytest.param(name, operation, marks=pytest.mark.slow)
            for name, operation in [
                ("lp_ft", AFTER),
                ("svdiff", AFTER),
                ("diff_tuning", AFTER),
                ("feature_distillation", AFTER),
                ("dreambooth", BEFORE),
                ("dreambooth", AFTER),
                ("ewc", BEFORE),
                ("ant", BEFORE),
                ("ant", AFTER),
            ]
        ),
    ],
)
def test_killed(undisturbed, tmp_path, name, operation):
    """And started twice: before its first checkpoint the one that was killed has made all that is
    measured or drawn only once."""
    command = arguments(undisturbed, name)
    expected = undisturbed(*command)
    code, text = runs.train(tmp_path, command, str(number(expected, operation)))
    assert code == -9, text
    measured = {
        p: p.stat().st_mtime_ns
        for p in (tmp_path / "cache").rglob("*")
        if p.suffix in (".safetensors", ".npy")
    }
    if name in ("dreambooth", "diff_tuning", "ewc", "ant"):
        assert any("generated" in str(p) for p in measured)
    assert any(p.name.startswith(("fisher", "classifier")) for p in measured) == (
        name in ("ewc", "ant")
    )
    code, text = runs.train(tmp_path, command)
    assert code == 0 and ("resuming at step 4" if operation == AFTER else "new run") in text, text
    runs.assert_same_run(runs.directory_of(tmp_path), expected)
    assert {p: p.stat().st_mtime_ns for p in measured} == measured


@pytest.mark.parametrize("step", [5, 6, pytest.param(7, marks=pytest.mark.slow)])
def test_lp_ft_stopped_just_before_at_and_after_the_moment(undisturbed, tmp_path, step):
    command = arguments(undisturbed, "lp_ft")
    expected = undisturbed(*command)
    rows = [
        line
        for line in runs.operations(expected.parents[2])
        if re.search(r"write .*/metrics.jsonl", line)
    ]
    # a row for each step, and one for the evaluation after step 4
    at = int(rows[step - 1 + (step > 4)].split()[0])
    code, text = runs.train(tmp_path, command, f"{at}=TERM")
    assert code == 75, text
    assert find(runs.directory_of(tmp_path)).step == step
    runs.assert_same_run(runs.finish(tmp_path, command), expected)


def test_lp_ft_has_two_rates_over_time(undisturbed):
    """Else the test above would compare runs in which nothing changes."""
    rates = [
        row["learning_rate"]
        for row in runs.rows(undisturbed(*arguments(undisturbed, "lp_ft")))
        if "learning_rate" in row
    ]
    assert rates[3:] == pytest.approx([2e-4] * 3 + [2e-5] * 6)
