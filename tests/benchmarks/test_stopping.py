"""What not stopping costs, of losses that are made up."""

from __future__ import annotations

import json

import yaml

from benchmarks.stopping import at_twice, rows_of, to_the_end
from training.run_directory import IDENTITY, METRICS

FULL = {10: 0.20, 20: 0.10, 40: 0.12, 80: 0.15}
NORMS = {10: 0.20, 20: 0.12, 40: 0.11, 80: 0.11}


def test_percent_of_the_loss_of_full_where_it_stopped():
    lines = rows_of({"full": {0: FULL, 1: FULL}, "norm_bias": {1: NORMS, 0: NORMS, 7: FULL}})
    full, norms = ([cell.split("%")[0] for cell in line[2:]] for line in lines[1:])
    assert full == ["+20.00", "+50.00", "+0.00", "+0.00"]
    assert norms == ["+0.00", "+0.00", "+10.00", "-40.00"] and lines[2][1] == "2"


def test_the_first_look_from_twice_the_step_on():
    assert at_twice({10: 0.1, 19: 0.2, 21: 0.3, 80: 0.4}) == 0.3
    assert at_twice({10: 0.2, 80: 0.1}) == 0.1, "stopped at the last"


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
