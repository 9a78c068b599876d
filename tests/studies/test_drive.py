"""A driver that is started again."""

from __future__ import annotations

from runtime.files import read_json, write_json
from studies.drive import _ended_before, _take
from training.sweep_records import SWEEP, Sweep


def recorded(folder, *cells):
    """A study whose cells ended so: name, or name and "failed"."""
    folder.mkdir(exist_ok=True)
    for number, cell in enumerate(cells):
        name, _, status = cell.partition(" ")
        (folder / name).mkdir(exist_ok=True)
        record = {"status": status or "finished", "seconds": 1.0, "run": str(folder / name)}
        write_json(folder / f"{number}.json", record)
    write_json(folder / SWEEP, {"cells": [cell.split()[0] for cell in cells]})


def taken(folder, *cells):
    """Those that are not launched."""
    ended, sweep = _ended_before(folder), Sweep(folder, list(cells))
    return [name for number, name in enumerate(cells) if _take(sweep, number, ended)]


def test_what_has_ended_is_found_by_its_name_where_numbers_shift(tmp_path):
    """b failed and is tried again, and others follow it before c."""
    recorded(tmp_path, "a", "b failed", "c")
    assert taken(tmp_path, "a", "b", "more", "c") == ["a", "c"]
    assert read_json(tmp_path / "3.json", "")["run"] == str(tmp_path / "c")
    assert not (tmp_path / "2.json").exists()


def test_a_record_outlasts_a_driver_that_was_killed_when_its_number_was_given_away(tmp_path):
    recorded(tmp_path, "a", "b failed", "c")
    assert taken(tmp_path, "a", "b", "more") == ["a"]
    write_json(tmp_path / SWEEP, {"cells": ["a", "b", "more"]})
    assert taken(tmp_path, "a", "b", "more", "c") == ["a", "c"]


def test_a_cell_whose_run_is_gone_is_made_again(tmp_path):
    recorded(tmp_path, "a", "b")
    (tmp_path / "b").rmdir()
    assert taken(tmp_path, "a", "b") == ["a"]
