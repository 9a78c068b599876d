"""What a study reads of its runs: the held-out loss along the way, and what the test images say."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from metrics.estimate import EVALUATION
from reporting.runs import Run, read_evaluations
from runtime.errors import UserError
from runtime.files import read_json, read_sealed
from runtime.log import read_metrics
from training.result import read_result
from training.run_directory import METRICS
from transfer.trained_weights import AVERAGES, CHOICE

MADE_ANEW = "delete this run, and give the command of the study again"


@dataclass(frozen=True)
class Judged:
    """What the images that chose nothing say of one run.

    Args:
        loss: over them, and its bootstrap replicates over images; images: how many they are, or of
            how many patients, which are drawn in their place. of_images: there alone, how many
            images these are (metrics.estimate.Estimate).
        trained_on: images.
        step: that was chosen; of them all, the last.
        length: of the average that was chosen; None where nothing trains.
        forgot: what its loss on the source's images grew by; None where that is unknown. forgot_on:
            the split of these images.
    """

    run: Path
    rate: float
    loss: float
    replicates: Sequence[float]
    images: int
    trained_on: int
    step: int
    steps: int
    length: float | None = None
    forgot: float | None = None
    forgot_on: str = "test"
    of_images: int | None = None

    @property
    def judged_by(self) -> int:
        """Test images."""
        return self.of_images or self.images

    @property
    def still_falling(self) -> bool:
        """Whether the loss was lowest at the last step that there was."""
        return self.step == self.steps > 0


class Reader(Protocol):
    """What rounds ask of a run; another one stands in where a plan is priced."""

    def losses(self, run: Path) -> dict[int, float]:
        """Step -> validation loss."""
        ...

    def judged(self, run: Path, rate: float) -> Judged: ...

    def forget(self, run: Path) -> None:
        """Its weights are not asked for again."""
        ...


class OfRuns:
    """The files of runs."""

    def losses(self, run: Path) -> dict[int, float]:
        rows = read_metrics(run / METRICS)
        return {row["step"]: row["validation/loss"] for row in rows if "validation/loss" in row}

    def judged(self, run: Path, rate: float) -> Judged:
        found = loss_evaluation(run)
        loss = found["loss"]["target"]["loss"]
        change = found["loss"].get("source_change")
        losses = self.losses(run)
        return Judged(
            run,
            rate,
            loss["value"],
            loss["replicates"],
            loss["images"],
            found["images"]["train"],
            found["checkpoint"]["step"],
            max(losses, default=0),
            read_json(run / AVERAGES / CHOICE, MADE_ANEW)["length"],
            change and change["value"],
            found["loss"].get("source_split", "test"),
            of_images=loss.get("of_images"),
        )

    def forget(self, run: Path) -> None:
        if (run / "checkpoints").is_dir():
            shutil.rmtree(run / "checkpoints")
        for path in (run / AVERAGES).glob("*.safetensors"):
            path.unlink()


def forget_snapshots(run: Path) -> None:
    """Of a run whose average is chosen and judged."""
    for path in (run / AVERAGES).glob("step_*"):
        path.unlink()


def size_of(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def loss_evaluation(run: Path) -> dict[str, Any]:
    """The evaluation of a run that has its loss on test images. Raises UserError where it is
    gone."""
    for path in sorted(run.glob(f"evaluation/*/{EVALUATION}")):
        found = read_sealed(path, "delete it; the same command makes it again", keys=["protocol"])
        if found["protocol"]["metrics"] == ["loss"]:
            return found
    raise UserError(
        f"{run}: its evaluation is gone; delete this folder, and give the command again."
    )


def audited_run(run: Path) -> Run:
    """As a report reads it, with the evaluation that has images."""
    found = [e for e in read_evaluations(run) if "memorization" in e.content]
    return Run(read_result(run), found[0] if found else None)


def seconds_of(run: Path) -> tuple[float, float]:
    """Of a timed run of 10 steps, logged each 5, validated once at its end: seconds of a step, and
    of the validation."""
    rows = [row for row in read_metrics(run / METRICS) if "seconds" in row]
    half, whole = (next(row["seconds"] for row in rows if row["step"] == k) for k in (5, 10))
    total = read_json(run / "result.json").get("hours", 0) * 3600
    return (whole - half) / 5, max(total - whole, 0.0)
