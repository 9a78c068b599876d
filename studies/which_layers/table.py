"""Every judged run of a study, one line each."""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np

from studies.which_layers.rounds import Comparison
from studies.which_layers.runs import Judged

COLUMNS = (
    "images",
    "at_hand",
    "strategy",
    "size",
    "repeat",
    "trained_on",
    "rate",
    "base_rate",
    "step",
    "steps",
    "length",
    "judged_by",
    "loss",
    "loss_sd",
    "minus_reference",
    "minus_reference_sd",
    "forgot",
)


def table_of(comparison: Comparison) -> list[Sequence[Any]]:
    """COLUMNS, then a line for each run. images: their name. at_hand, size, trained_on: how many
    the study is about, the subset has ("" where it is all of them), and the run trained on. repeat:
    the fold or the seed. step: that was chosen, of steps. judged_by: test images. The standard
    deviations are those of a mean over these, or their patients, by their bootstrap, empty of one
    alone; minus_reference is paired with the reference's run of the same repeat and size, empty
    where there is none."""
    lines: list[Sequence[Any]] = [COLUMNS]
    images, reference = comparison.images, comparison.found.get(comparison.reference, {})
    for name, sizes in comparison.found.items():
        for size, runs in sizes.items():
            for k, run in runs.items():
                of = [images.name, images.at_hand, name, size or "", k]
                beside = reference.get(size, {}).get(k) if name != comparison.reference else None
                lines.append([*of, *_numbers(run, comparison.rate, beside)])
    return lines


def _numbers(run: Judged, base_rate: float, beside: Judged | None) -> list[Any]:
    def text(value: float) -> str:
        return f"{value:.6g}"

    def sd(replicates: Sequence[float] | np.ndarray) -> str:
        n = run.images
        return text(np.std(replicates) * sqrt(n / (n - 1))) if n > 1 else ""

    apart = ["", ""]
    if beside is not None:
        difference = np.subtract(run.replicates, beside.replicates)
        apart = [text(run.loss - beside.loss), sd(difference)]
    return [
        run.trained_on,
        text(run.rate),
        text(base_rate),
        run.step,
        run.steps,
        run.length or "",
        run.judged_by,
        text(run.loss),
        sd(run.replicates),
        *apart,
        "" if run.forgot is None else text(run.forgot),
    ]
