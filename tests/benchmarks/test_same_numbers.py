"""same_numbers on versions that are a few lines long: what it reports, and what it leaves out."""

import json
import subprocess

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from benchmarks import same_numbers
from benchmarks.same_numbers import Command, artefacts, commands, difference, report
from config.overrides import composed

STATISTICS = {
    "kid": {"value": 0.25, "replicates": [0.1, float("nan")]},
    "hours": 1.0,
    "sampler": {"_target_": "a.ddim", "steps": 5},
    "path": "runs/x",
    "notes": ["too few"],
}
RUN = "full-seed1-0123abcd"


@pytest.fixture
def outputs(tmp_path):
    """write(name, ...): a folder with all kinds of artefacts -> these, as they are read."""

    def write(name, run=RUN, weight=1.0, moment=2.0, pixel=3, loss=0.5, rate="0.1", **statistics):
        folder = tmp_path / name / "runs" / run
        folder.mkdir(parents=True)
        safetensors.torch.save_file({"w": torch.tensor([weight])}, folder / "ema.safetensors")
        torch.save({"state": {0: {"exp_avg": torch.tensor(moment)}}}, folder / "optimizer.pt")
        Image.fromarray(np.full((2, 2, 3), pixel, np.uint8)).save(folder / "grid.png")
        rows = [{"step": 1, "loss": loss, "seconds": hash(name)}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "plan.csv").write_text(f"parameter,learning_rate\nw,{rate}\n")
        (folder / "evaluation.json").write_text(json.dumps(STATISTICS | statistics))
        return artefacts(tmp_path / name)

    return write


def test_clock_machine_paths_and_sentences_are_left_out(outputs):
    moved = {
        "hours": 2.0,
        "path": "runs/y",
        "notes": ["of fewer"],
        "commit": "abc",
        "sampler": {"_target_": "b.ddim", "steps": 5},
    }
    assert report("", outputs("a"), outputs("b", **moved)) == 0


def test_a_key_that_was_renamed_is_compared_under_its_new_name(outputs):
    then = outputs("a", floors={"noise": {"kid": 0.5}})
    assert report("", then, outputs("b", baselines={"noise": {"kid": 0.5}})) == 0
    assert report("", then, outputs("c", baselines={"noise": {"kid": 0.6}})) == 1


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"weight": 1 + 2**-23}, "ema.safetensors"),
        ({"moment": -2.0}, "optimizer.pt"),
        ({"pixel": 4}, "grid.png"),
        ({"loss": 0.5 + 2**-53}, "metrics.jsonl"),
        ({"rate": "0.10"}, "plan.csv"),
        ({"sampler": {"steps": 6}}, "evaluation.json"),
        (
            {"kid": {"value": 0.25 * (1 + 1e-11), "replicates": [0.1, float("nan")]}},
            "evaluation.json",
        ),
        ({"kid": {"value": 0.25, "replicates": [0.1, 0.2]}}, "evaluation.json"),
        ({"more": 1}, "evaluation.json"),
    ],
)
def test_one_number_that_differs_is_one_artefact(outputs, capsys, changed, name):
    assert report("", outputs("a"), outputs("b", **changed)) == 1
    assert f"differs: runs/full-seed1/{name}: 1 of " in capsys.readouterr().out


def test_statistics_agree_to_their_tolerance(outputs):
    near = {"kid": {"value": 0.25 * (1 + 1e-13), "replicates": [0.1, float("nan")]}}
    assert report("", outputs("a"), outputs("b", **near)) == 0


def test_a_run_of_another_name_is_told_once(outputs, capsys):
    assert report("", outputs("a"), outputs("b", run="full-seed1-ffffffff")) == 1
    assert "differs: name of runs/full-seed1: 1 of 1 values" in capsys.readouterr().out


def test_what_is_on_one_side_alone_differs(outputs):
    (found, *_) = outputs("a").values()
    assert difference(found, None) == "only before" and difference(None, found) == "only after"


SCRIPT = """
import json, pathlib, sys, time
run = pathlib.Path(sys.argv[1])
begun = run.exists()
(run / "checkpoints/step_1").mkdir(parents=True, exist_ok=True)
if sys.argv[2:] == ["slow"] and not begun: time.sleep(60)
(run / "result.json").write_text(json.dumps({"loss": LOSS}))
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A project of one script, committed, and what it is asked to do."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT.replace("LOSS", "0.5"))
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    stop = {"lora": same_numbers.signal.SIGKILL}
    todo = [
        Command("lora", ["train.py", "runs/x/lora-seed1-00000000"]),
        Command("lora, stopped", ["train.py", "SIGKILL", "slow"], stop["lora"]),
    ]
    monkeypatch.setattr(same_numbers, "STOPPED", stop)
    monkeypatch.setattr(same_numbers, "commands", lambda quick: todo)
    return folder


def test_a_commit_is_run_once_and_a_change_is_found(repository, tmp_path, capsys):
    arguments = ["HEAD", "--keep", str(tmp_path / "keep")]
    assert same_numbers.main(arguments) == 0
    assert "kept in" not in capsys.readouterr().out
    (repository / "train.py").write_text(SCRIPT.replace("LOSS", "0.5 + 0.1 * begun"))
    assert same_numbers.main(arguments) == 1
    out = capsys.readouterr().out
    assert "kept in" in out and "differs: SIGKILL/result.json: 1 of 1 values" in out
    trees = subprocess.run(["git", "worktree", "list"], capture_output=True, text=True).stdout
    assert trees.count("\n") == 1, trees


def test_what_base_left_is_found_done(repository, tmp_path, capsys):
    """A run of before that another version begins anew, under another name, differs."""
    assert same_numbers.main(["HEAD", "--keep", str(tmp_path / "keep")]) == 0
    renamed = SCRIPT.replace(
        "run = pathlib.Path(sys.argv[1])",
        """
run = pathlib.Path(sys.argv[1])
if run.exists() and run.name != "SIGKILL": run = run.with_name("lora-seed1-11111111")""",
    )
    (repository / "train.py").write_text(renamed.replace("LOSS", "0.5"))
    assert same_numbers.main(["HEAD", "--keep", str(tmp_path / "keep")]) == 1
    assert "lora-seed1/result.json, again: only after" in capsys.readouterr().out


def test_a_command_that_fails_here_differs(repository, capsys):
    (repository / "train.py").write_text("raise SystemExit(2)")
    assert same_numbers.main(["HEAD"]) == 1
    assert "failed here, and not in HEAD: lora, lora, stopped" in capsys.readouterr().out


@pytest.mark.parametrize("quick", [True, False])
def test_the_commands_compose(quick):
    """Every key and choice of the runs is one of the config."""
    for command in commands(quick):
        script, *words = command.words
        if script == "train.py":
            assert composed("train", words)["train"]["steps"] > 0
