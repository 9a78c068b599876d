"""KID of a run's images by sampler, number of steps and spacing, each against spacing=log_snr on
the same noise:

    python -m benchmarks.spacing --run runs/transfer_demo/NAME

KID is to all real images of the run, in random convolutional features; intervals are of 200
bootstrap replicates, those of differences of paired ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import arguments, numbers, report
from data.pixels import to_uint8
from diffusion.denoiser import Denoiser
from diffusion.generate import SamplerSettings, generate
from diffusion.samplers import ddim, dpm_solver, heun
from diffusion.spacing import even_steps, log_snr_steps, quadratic_steps, trailing_steps
from evaluation.trained_run import TrainedRun
from metrics.features import extract
from metrics.features.random import RandomConvolutional
from metrics.intervals import interval
from metrics.kid import kid, kid_replicates
from runtime.seeds import derive
from training.best_checkpoint import find_best_checkpoint

SAMPLERS = {"ddim": ddim, "dpm_solver": dpm_solver, "heun": heun}
SPACINGS = {
    "log_snr": log_snr_steps,
    "trailing": trailing_steps,
    "even": even_steps,
    "quadratic": quadratic_steps,
}
BATCH, MOST = 64, 1000
HEADING = [
    "run",
    "sampler",
    "steps",
    "spacing",
    "n",
    "KID",
    "low",
    "high",
    "less log_snr",
    "its low",
    "its high",
]


def main(argv: Sequence[str] | None = None) -> None:
    chosen = arguments(
        "KID by spacing",
        argv,
        run="",
        sampler="ddim,dpm_solver,heun",
        spacing="log_snr,trailing,even,quadratic",
        steps="",
        n=256,
    )
    run = TrainedRun(find_best_checkpoint(Path(chosen.run)), "ema", (), None, Path("cache"))
    dataset, _ = run.images
    rows = np.concatenate(list(dataset.splits.values()))
    rows = np.sort(
        rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).numpy()[:MOST]]
    )
    real = extract(RandomConvolutional(), dataset.images, rows).features
    denoiser, shape = run.build_denoiser(chosen.device), run.config.image_shape
    found = []
    for steps, sampler in product(
        numbers(chosen.steps, (20, 50), (20, 50), chosen.device), chosen.sampler.split(",")
    ):
        values, replicates = {}, {}
        for name in chosen.spacing.split(","):  # log_snr first
            settings = SamplerSettings(SAMPLERS[sampler], SPACINGS[name], steps)
            made = extract(
                RandomConvolutional(), images(denoiser, settings, shape, chosen.n)
            ).features
            values[name], replicates[name] = kid(made, real), kid_replicates(made, real)
            told = (
                values[name],
                *interval(replicates[name]),
                values[name] - values["log_snr"],
                *interval(replicates[name] - replicates["log_snr"]),
            )
            found.append(
                [
                    run.config.experiment,
                    sampler,
                    steps,
                    name,
                    chosen.n,
                    *(f"{value:.4f}" for value in told),
                ]
            )
    report([HEADING, *found], chosen.csv, chosen.device)


def images(
    denoiser: Denoiser, settings: SamplerSettings, shape: Sequence[int], n: int
) -> np.ndarray:
    """[n, H, W, C] uint8: image k from noise by k, of the null class."""
    made = []
    for part in torch.arange(n).split(BATCH):
        seeds = [derive("spacing", k) for k in part.tolist()]
        made.append(generate(denoiser, denoiser.schedule, settings, shape, seeds))
    return to_uint8(torch.cat(made)).cpu().numpy()


if __name__ == "__main__":
    main()
