"""What the bar and metrics.jsonl say of the speed."""

from __future__ import annotations

import pytest

from runtime.log import read_metrics
from tests.helpers.folder_runs import images, run
from training import loop


class Clock:
    """Stands still, but for what a test lets pass."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_evaluations_between_two_reports_are_no_training(tmp_path, monkeypatch):
    """A second for each step of 4 images, and a hundred for each evaluation; a report each third
    step, an evaluation each second."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)

    def takes(seconds, method):
        def wrapped(self, *args):
            clock.now += seconds
            return method(self, *args)

        return wrapped

    for seconds, name in ((1, "step"), (100, "_evaluate")):
        monkeypatch.setattr(loop.Trainer, name, takes(seconds, getattr(loop.Trainer, name)))
    images(tmp_path / "images")
    directory = run(tmp_path, "run.log_every=3", "run.checkpoint_every=2", steps=6)
    rows = read_metrics(directory / "metrics.jsonl")
    speeds = {row["step"]: row["images_per_second"] for row in rows if "images_per_second" in row}
    assert speeds == {3: pytest.approx(4), 6: pytest.approx(4)}
    last = next(row["seconds"] for row in reversed(rows) if "seconds" in row)
    assert last == pytest.approx(6 + 200), "all of it but the last evaluation"
