"""A disk that is full while a report is written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import report
from reporting.page import FIGURES, Report
from reporting.runs import read_runs
from runtime.errors import UserError
from tests.helpers.report_runs import write_run


def test_the_report_that_was_there_stays(tmp_path, monkeypatch):
    for n in (10, 100):
        for strategy, loss in (("full", 0.1), ("lora", 0.2)):
            write_run(tmp_path, strategy, settings={"data.n_train": n}, held_out_loss=loss)
    written = Report(tmp_path, read_runs(tmp_path))
    report.write(written)
    old = {tmp_path / "report_old.svg", tmp_path / FIGURES / "gone.pdf"}
    for path in old:
        path.write_text("of an earlier report")
    before = {path: path.read_bytes() for path in files(tmp_path)}
    assert any((tmp_path / FIGURES).glob("*.svg"))
    replace, left = os.replace, [0]

    def until_full(source, target) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "no space")
        replace(source, target)

    monkeypatch.setattr(os, "replace", until_full)
    for left[0] in (0, 1, 3):
        with pytest.raises(UserError, match="the disk is full") as error:
            report.write(written)
        assert "run.keep_last" not in str(error.value)
        assert {path: path.read_bytes() for path in files(tmp_path)} == before
    left[0] = 100
    report.write(written)
    assert files(tmp_path) == before.keys() - old


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}
