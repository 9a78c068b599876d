"""Which length a run's average gets: that of lowest validation loss, by one rule for all runs.

python -m training.choose_average RUN [RUN ...] [--draws N] [--device DEVICE]

RUN is a finished run that kept averages (train.ema_lengths), or the folder of an experiment: every
run in it that did. Of a run the step is taken at which its EMA had the lowest validation loss.
There the averages of several lengths are made of the snapshots in RUN/averages, the validation
loss of each is measured, and the one of the lowest is written: RUN/averages/chosen.safetensors,
with chosen.json. A run that kept one length has nothing to choose: it is that average at this
step, or at the last one where there are no validation images, and train.py itself writes it.
weights=average of sample.py, evaluate.py, export.py and source.weights take it.
"""

from runtime.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # also while the rest is imported, which takes seconds

import argparse
import logging
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch

from config.run_config import RunConfig
from data.dataset import Dataset, open_dataset
from kernels import dispatch
from metrics.estimate import GRID
from metrics.held_out_loss import held_out_errors
from models.formats.misfit import Tensors
from runtime.checkpoint import EMA, Checkpoint, find
from runtime.device import pick_device
from runtime.errors import UserError, script
from runtime.files import (
    Damaged,
    locked,
    make_directory,
    read_json,
    read_sealed,
    sha256,
    write_atomically,
    write_sealed,
)
from runtime.log import log_to_terminal
from runtime.signals import Preempted, Stopped, StopRequest
from training.post_hoc_average import Reconstruction, reconstruct
from training.resume import is_finished
from training.run_directory import IDENTITY, steps_reached
from training.snapshots import LEAST, Snapshot, all_snapshots, best_snapshot
from transfer.merge_adapters import merged
from transfer.trained_weights import AVERAGES, CHOICE, CHOSEN, of_checkpoint

LENGTHS = (0.02, 0.05, 0.10, 0.15, 0.20, 0.25)  # sigma_rel that contend
# Of a profile. What is independent from step to step, as the noise of the gradients is, has in an
# average the variance sum w_i^2 of one step: with a residual r it is about 1 + r^2 of what it is
# meant to be, here 1.06. Snapshots of 0.05 and 0.10 that are 1.3-fold apart give 0.15, 0.20 and
# 0.25 with 0.08, 0.14 and 0.20, and 0.02 with 0.32, which is no nearer to 0.02 than 0.05 itself.
LARGEST_RESIDUAL = 0.25
LOSSES = "losses.json"  # of a choice that is not finished
Judge = Callable[[Tensors], float]  # all parameters, adapters' too -> validation loss
log = logging.getLogger("average")


def choose_average(
    run: Path, draws: int | None = None, device: str | int = "auto", cache: Path | None = None
) -> Path:
    """Chooses for a finished run, or skips where that has been done of the same snapshots.

    Args:
        draws: (image, t, noise) triples of the loss; None for as many as the run took.
        cache: of decoded images; None for the run's own.
    Returns:
        chosen.json.
    Raises:
        UserError: where the run is not finished, or kept no averages.
        Preempted: between two lengths, those that are measured are kept.
    """
    if not (run / "checkpoints").is_dir():
        raise UserError(f"{run} is no run of this project: give runs/EXPERIMENT/NAME.")
    busy = f"{run} is at work in another process: wait for it."
    with locked(run / ".lock", busy):
        found = find(run)
        config = of_checkpoint(found).config
        if not is_finished(found, config.train.steps):
            raise UserError(
                f"{run} is at step {found.step} of {config.train.steps}: finish it before an "
                "average is chosen."
            )
        if found.step == 0:  # nothing trains: its average is what it started from
            write_chosen(run, found.weights(EMA), {"step": 0, "reached": 0, "length": None})
            return run / AVERAGES / CHOICE
        whole = [s for s in all_snapshots(run) if s.step <= found.step and s.is_whole()]
        best = best_snapshot(whole)
        if best and len(best.lengths) == 1:
            about = {"step": best.step, "reached": found.step, "length": best.lengths[0]}
            if not (
                _is_of(before := _read(run / AVERAGES / CHOICE), about) and _holds(run, before)
            ):
                write_chosen(run, _whole(found.weights(EMA), best.read(about["length"])), about)
            return run / AVERAGES / CHOICE
        if best is None or best.loss is None:
            lacks = "has no validation images to choose by" if best else "kept no averages"
            raise UserError(
                f"{run} {lacks}. A run keeps averages where it is trained with "
                "train.ema_lengths=[0.05,0.1], and they are chosen by its validation images."
            )
        draws = draws or config.run.held_out_draws
        judge = held_out_judge(found, draws, device, cache)
        # the EMA's as the run measured it
        about = {"draws": draws, "grid": GRID, "ema_loss": best.loss}
        return choose_length(run, best.step, LENGTHS, judge, about)


def choose_length(
    run: Path, step: int, lengths: Sequence[float], judge: Judge, about: dict[str, Any]
) -> Path:
    """Writes the average at a step of that length whose loss is lowest, of equals the shortest.

    Args:
        lengths: that contend, sigma_rel; those are left out that the run's snapshots do not give.
        about: what the losses depend on beside the weights, for chosen.json.
    Returns:
        chosen.json, as it was where it is of the same.
    """
    found = find(run)
    whole = [s for s in all_snapshots(run) if s.step <= step and s.is_whole()]
    asked = about | {
        "step": step,
        "reached": found.step,
        "lengths": list(lengths),
        "snapshots": {str(s.step): s.sha256 for s in whole},
    }
    if _is_of(before := _read(run / AVERAGES / CHOICE), asked) and _holds(run, before):
        log.info(f"chosen before: {run / AVERAGES / CHOICE} (delete it to do it again)")
        return run / AVERAGES / CHOICE
    started = found.weights(EMA)  # of which what never trains is the same in all averages
    made = {length: reconstruct(whole, step, length) for length in lengths}
    losses = _losses(run, asked, made, lambda tensors: judge(_whole(started, tensors)))
    if not losses:
        raise UserError(
            f"{run}: the snapshots up to step {step} give no average of the lengths "
            f"{list(lengths)}: put back copies of those in {run / AVERAGES} that are damaged, or "
            "train with train.ema_lengths=[0.05,0.1]."
        )
    best = min(losses, key=lambda length: losses[length])
    said = ", ".join(f"{length:g}: {loss:.5f}" for length, loss in losses.items())
    log.info(f"{run}, step {step}: length {best:g}, of the validation losses {said}")
    result = {
        "length": best,
        "losses": {str(length): loss for length, loss in losses.items()},
        "residuals": {str(length): how.residual for length, how in made.items()},
    }
    write_chosen(run, _whole(started, made[best].tensors()), asked | result)
    (run / AVERAGES / LOSSES).unlink(missing_ok=True)
    return run / AVERAGES / CHOICE


@cache
def contending(steps: Sequence[int], kept: Sequence[float]) -> int:
    """How many of LENGTHS can be made at the last of these steps, of snapshots of the lengths that
    are kept."""
    snapshots = [
        Snapshot(Path(), step, tuple(kept), None, None, "")
        for step in steps
        if step >= LEAST * steps[-1]
    ]
    made = (reconstruct(snapshots, steps[-1], length) for length in LENGTHS)
    return sum(how.residual <= LARGEST_RESIDUAL for how in made)


def _losses(
    run: Path, asked: dict[str, Any], made: dict[float, Reconstruction], judge: Judge
) -> dict[float, float]:
    """Length -> validation loss, of those whose profile is near enough. Each is kept when it is
    measured, and not measured again."""
    path = run / AVERAGES / LOSSES
    before = _read(path)
    kept = before["losses"] if _is_of(before, asked) else {}
    with StopRequest() as stop:
        for length, how in made.items():
            if how.residual > LARGEST_RESIDUAL:
                log.info(
                    f"{run}: length {length:g} is left out: the snapshots give its profile with a "
                    f"residual of {how.residual:.2f}"
                )
            elif str(length) not in kept:
                stop.check()
                loss = judge(how.tensors())
                kept[str(length)] = loss if math.isfinite(loss) else math.inf
                write_sealed(path, asked | {"losses": kept})
    return {length: kept[str(length)] for length in made if str(length) in kept}


def _read(path: Path) -> dict[str, Any]:
    """What was written; nothing where it is damaged, and then made again."""
    try:
        return read_sealed(path)
    except (FileNotFoundError, Damaged):
        return {}


def _is_of(record: dict[str, Any], asked: dict[str, Any]) -> bool:
    return all(record.get(key) == value for key, value in asked.items())


def _holds(run: Path, record: dict[str, Any]) -> bool:
    path = run / AVERAGES / CHOSEN
    return path.is_file() and sha256(path) == record.get("sha256")


def _whole(started: Tensors, trained: Tensors) -> Tensors:
    return {name: trained.get(name, w).to(w.dtype) for name, w in started.items()}


def write_chosen(run: Path, tensors: Tensors, about: dict[str, Any]) -> None:
    """All parameters, and how they were chosen, which is not there while they are others."""
    folder = run / AVERAGES
    make_directory(folder)
    (folder / CHOICE).unlink(missing_ok=True)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomically(folder / CHOSEN, safetensors.torch.save(contiguous))
    write_sealed(folder / CHOICE, about | {"sha256": sha256(folder / CHOSEN)}, indent=1)


def held_out_judge(
    found: Checkpoint, draws: int, device: str | int = "auto", cache: Path | None = None
) -> Judge:
    """The validation loss of weights of this run's network, in fp32, on the grid of images, t and
    noise that the run itself was validated on."""
    run, place = found.path.parent.parent, pick_device(device)
    plain, saved = of_checkpoint(found).config, RunConfig.of_saved(found.config)
    data = _images(run, plain, cache or Path(plain.run.cache))
    dispatch.select("auto", place)

    def judge(tensors: Tensors) -> float:
        weights = merged(saved, tensors) if saved.transfer.inject else tensors
        denoiser = plain.frozen_denoiser(weights, place)
        rows = data.splits["validation"]
        return held_out_errors(denoiser, data.images, data.labels, rows, draws).values()["loss"]

    return judge


def _images(run: Path, config: RunConfig, cache: Path) -> Dataset:
    """Those of the run; of others the split would be another one."""
    reader = config.data.open_reader(cache)
    said = read_json(run / IDENTITY, "copy it again from where the run was trained")
    if said["data"]["images"] != reader.fingerprint:
        raise UserError(
            f"the images of {run} are not those that it was trained on: some were added, removed, "
            "renamed or changed since. Put them back as they were."
        )
    return open_dataset(config.data, reader, config.seed, cache)


def runs_in(path: Path) -> list[Path]:
    """A run, or those of an experiment that kept averages, or that nothing was trained in."""
    inside = sorted(p.parent for p in path.glob(f"*/{IDENTITY}"))
    if not inside:
        return [path]
    kept = [r for r in inside if (r / AVERAGES).is_dir() or steps_reached(r) == "step 0"]
    if not kept:
        raise UserError(f"{path}: none of its {len(inside)} runs kept averages.")
    return kept


@script
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.choose_average",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path)
    parser.add_argument("--draws", type=int, help="of the loss; as many as the run took")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or 1")
    asked = parser.parse_args(arguments)
    log_to_terminal()
    try:
        for run in [run for path in asked.runs for run in runs_in(path.expanduser())]:
            log.info(choose_average(run, asked.draws, asked.device))
    except Preempted as stop:
        raise Stopped(stop.number) from None


if __name__ == "__main__":
    main()
