"""Each checkpoint of a run evaluated by itself, and at which step each number is lowest: "FID is
the minimum over training" (Ho et al. 2020, table 2)."""

import logging
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from evaluation.evaluator import numbers_of
from evaluation.settings import EvaluateSettings
from metrics.estimate import EVALUATION, Record
from runtime.checkpoint import STATE, all_checkpoints
from runtime.files import read_sealed

log = logging.getLogger("evaluate")
LOWEST = {  # what it is called: where numbers_of has it
    "KID to {held_out} images": "quality/test/kid",
    "KID to training images": "quality/train/kid",
    "{frechet} to {held_out} images": "quality/test/frechet",
    "{frechet} to training images": "quality/train/frechet",
    "loss on {held_out} images": "loss/target/loss",
}


def to_evaluate(run: Path, settings: EvaluateSettings) -> list[Path]:
    """The run itself, or with select=every its checkpoints, oldest first. One checkpoint is itself,
    and so is a run without any, of which its evaluation tells what there is."""
    if settings.select != "every" or (run / STATE).is_file():
        return [run]
    inside = run / "checkpoints"
    found = all_checkpoints(inside if inside.is_dir() else run)
    return [checkpoint.path for checkpoint in found] or [run]


def tell_lowest(evaluated: Mapping[Path, Path], settings: EvaluateSettings) -> None:
    """After select=every, for each run of several checkpoints: at which step each number is lowest.

    Args:
        evaluated: checkpoint -> the folder of its evaluation, those of a run side by side.
    """
    if settings.select != "every":
        return
    for run, checkpoints in groupby(evaluated, lambda path: path.parent.parent):
        records = [read_sealed(evaluated[path] / EVALUATION, unsealed=True) for path in checkpoints]
        if len(records) > 1:
            log.info(f"{run}\n{lowest_of(records)}")


def lowest_of(records: list[Record]) -> str:
    """The table of one run; of equals the first. records: by rising step."""
    steps = [record["checkpoint"]["step"] for record in records]
    named = {
        "held_out": records[0]["protocol"]["held_out"],
        "frechet": records[0]["features"]["frechet"],
    }
    lines = [f"lowest of {len(steps)} checkpoints, step {steps[0]} to {steps[-1]}:"]
    for title, path in LOWEST.items():
        numbers = zip(steps, map(numbers_of, records), strict=True)
        values = {step: found[path] for step, found in numbers if path in found}
        if values:
            step = min(values, key=values.__getitem__)
            lines.append(f"  {title.format(**named):<48} step {step:<9}{values[step]:>10.4g}")
    note = "  (the lowest of many is too low: it is chosen on the images that judge it)"
    return "\n".join([*lines, note])
