"""run.evaluate: a run that evaluates itself is evaluated as evaluate.py does it, and what is wrong
with its lines is told before it trains."""

from __future__ import annotations

import json

import pytest

from tests.helpers import runs

LINES = ["metrics=[loss] held_out_draws=16", "metrics=[loss] held_out_draws=8 weights=model"]
TISSUE = ["data=bundled_tissue", "model.classes=0"]


def evaluations(run):
    found = [json.loads(p.read_text()) for p in sorted(run.glob("evaluation/*/evaluation.json"))]
    return {e["protocol"]["weights"]: e for e in found}


def test_a_run_evaluates_itself_as_evaluate_py_does(tmp_path):
    run = runs.finish(tmp_path, [*TISSUE, f"run.evaluate={json.dumps(LINES)}"])
    ours = evaluations(run)
    assert ours.keys() == {"ema", "model"}
    (run / "evaluation").rename(tmp_path / "ours")
    for line in LINES:
        given = [f"checkpoint={run}", "device=cpu", f"cache={tmp_path}/cache", *line.split()]
        done = runs.command("evaluate.py", *given)
        assert done.returncode == 0, done.stderr
    theirs = evaluations(run)
    for kind, evaluation in ours.items():
        for key in ("protocol", "loss", "checkpoint", "notes"):
            assert evaluation[key] == theirs[kind][key], key
    assert ours["ema"]["arguments"] == LINES[0].split()


@pytest.mark.slow
def test_the_same_command_makes_what_is_missing(tmp_path):
    arguments = [*TISSUE, f"run.evaluate={json.dumps(LINES)}"]
    run = runs.finish(tmp_path, arguments)
    before = evaluations(run)
    (gone, *_) = run.glob("evaluation/*/evaluation.json")
    gone.unlink()
    assert runs.finish(tmp_path, arguments) == run
    assert {k: e["loss"] for k, e in evaluations(run).items()} == {
        k: e["loss"] for k, e in before.items()
    }


def test_a_wrong_line_is_told_before_anything_is_trained(tmp_path):
    for line, said in (("metrics=[los]", "los is none of them"), ("n_t=5", "no such setting")):
        code, text = runs.train(tmp_path, [*TISSUE, f"run.evaluate={json.dumps([line])}"])
        assert code == 2 and line in text and said in text, text
    assert not (tmp_path / "runs").exists()


def test_a_run_evaluates_each_of_its_checkpoints(tmp_path):
    """One that was pruned before is not there any more: of 4, 8 and 12 the last two are kept."""
    line = ["metrics=[loss] held_out_draws=16 select=every"]
    run = runs.finish(tmp_path, [*TISSUE, f"run.evaluate={json.dumps(line)}"])
    found = [json.loads(p.read_text()) for p in run.glob("evaluation/*/evaluation.json")]
    steps = sorted(e["checkpoint"]["step"] for e in found)
    assert steps == runs.steps_of(run) == [8, 12]
    assert {e["protocol"]["select"] for e in found} == {"step_8", "step_12"}
    assert "lowest of 2 checkpoints, step 8 to 12:" in (tmp_path / "output.txt").read_text()
