"""What not stopping costs, of losses that are made up."""

from __future__ import annotations

import json

import pytest
import yaml

from benchmarks import stopping
from benchmarks.stopping import at_twice, rows_of, to_the_end
from runtime.files import write_csv
from studies.which_layers.table import COLUMNS
from tests.helpers.study_rows import rows
from training.run_directory import IDENTITY, METRICS

FULL = {10: 0.20, 20: 0.10, 40: 0.12, 80: 0.15}
LOSSES = [1.0] * 5
NORMS = {10: 0.20, 20: 0.12, 40: 0.11, 80: 0.11}


def test_percent_of_the_loss_of_full_where_it_stopped():
    found = {"full": {0: FULL, 1: FULL}, "norm_bias": {1: NORMS, 0: NORMS, 7: FULL}}
    lines = rows_of(found, {"full": 30, "norm_bias": 15})
    full, norms = ([cell.split("%")[0] for cell in line[2:]] for line in lines[1:])
    assert full == ["+20.00", "+50.00", "+0.00", "+0.00", "+20.00"]
    assert norms == ["+0.00", "+0.00", "+10.00", "-40.00", "+20.00"] and lines[2][1] == "2"
    assert [line[-1] for line in rows_of(found, {})[1:]] == ["", ""], "no other kinds"


def test_the_first_look_from_twice_the_step_on():
    assert at_twice({10: 0.1, 19: 0.2, 21: 0.3, 80: 0.4}) == 0.3
    assert at_twice({10: 0.2, 80: 0.1}) == 0.1, "stopped at the last"


def test_the_steps_of_other_kinds_alone(tmp_path, monkeypatch):
    """Three kinds were stopped at 7, 10 and 20; this one, in the table too, at 90; others had more
    images."""
    lines = []
    for kind, n, step in (
        ("a", 10, 7),
        ("b", 10, 20),
        ("c", 10, 10),
        ("own", 10, 90),
        ("a", 30, 80),
    ):
        row = dict.fromkeys(COLUMNS, "0") | {"images": kind, "at_hand": str(n), "size": ""}
        row |= {"strategy": "full", "step": str(step), "base_rate": "1", "loss": "1"}
        lines += [[*(row | {"repeat": str(k)}).values()] for k in range(2)]
    write_csv(tmp_path / "table.csv", [COLUMNS, *lines])
    monkeypatch.setattr(stopping, "TABLE", tmp_path / "table.csv")
    (tmp_path / "study").mkdir()
    write_csv(tmp_path / "study/runs.csv", [COLUMNS, lines[6]])
    assert stopping.steps_elsewhere(tmp_path) == {"full": 10}


def test_other_kinds_may_have_other_strategies(tmp_path, monkeypatch):
    table = [*rows("a", step=7, full=LOSSES), *rows("b", step=9, full=LOSSES, lora=LOSSES)]
    monkeypatch.setattr(stopping, "read", lambda path: table if path == stopping.TABLE else own)
    own = rows("own", full=LOSSES)
    assert stopping.steps_elsewhere(tmp_path) == {"full": 7, "lora": 9}


def test_a_study_that_is_not_at_its_end_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["stopping", str(tmp_path)])
    with pytest.raises(SystemExit):
        stopping.main()
    assert f"{tmp_path} is no study of which_layers that came to its end" in capsys.readouterr().err


def test_runs_that_halving_ended_on_the_way_are_left_out(tmp_path):
    """Also those whose own last step is where it ended them."""
    for name, losses, rate in (("a", FULL, 1e-3), ("b", {10: 0.01, 20: 0.01}, 3e-3)):
        run = tmp_path / name
        run.mkdir()
        config = {"train": {"steps": max(losses)}, "seed": 0, "optimizer": {"lr": rate}}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        (run / IDENTITY).write_text(json.dumps({"transfer": {"name": "full"}}))
        rows = [{"step": 0, "validation/loss": 0.9}]
        rows += [{"step": step, "validation/loss": loss} for step, loss in losses.items()]
        (run / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert to_the_end(tmp_path) == {"full": {0: FULL}}
