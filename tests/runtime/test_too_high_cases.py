"""A folder that is one or two levels too high, given to a script."""

import pytest

from evaluation.evaluator import find_runs
from report import main as report
from runtime.checkpoint import find
from runtime.errors import UserError
from transfer.trained_weights import load_weights


@pytest.fixture
def runs(tmp_path):
    for name in ("faces/full-seed0-1", "tissue/full-seed0-2", "tissue/lora-seed0-3"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
    return tmp_path / "runs"


@pytest.mark.parametrize("opened", [find, lambda path: load_weights(str(path))])
def test_what_is_below_is_named(runs, opened):
    with pytest.raises(UserError) as raised:
        opened(runs / "tissue")
    assert str(raised.value).startswith(
        f"{runs}/tissue: no checkpoint there. There are runs in it: {runs}/tissue/full-seed0-2, "
        f"{runs}/tissue/lora-seed0-3. Give a run directory"
    )
    with pytest.raises(UserError) as raised:
        opened(runs)
    assert f"There are experiments in it: {runs}/faces, {runs}/tissue. Give" in str(raised.value)


def test_evaluate_and_report_of_all_experiments(runs, capsys):
    [run] = find_runs(runs)
    with pytest.raises(UserError, match="There are experiments in it"):
        find(run)
    with pytest.raises(SystemExit):
        report([str(runs)])
    assert f"no runs in it. There are experiments in it: {runs}/faces" in capsys.readouterr().err


def test_the_folder_of_a_training_script_of_diffusers(tmp_path):
    for step in range(500, 5001, 500):
        (tmp_path / f"checkpoint-{step}/unet").mkdir(parents=True)
    with pytest.raises(UserError, match=r"diffusers' checkpoints in it: .*-1000, .* and 2 more\."):
        load_weights(str(tmp_path))
