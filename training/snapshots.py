"""What a run keeps of its power-function averages at each evaluation, RUN/averages/
step_N.safetensors: all lengths, of what trains, in float32, as what training.post_hoc_average is
made of."""

import json
import logging
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from models.formats.misfit import Tensors
from runtime.checkpoint import Checkpoint
from runtime.errors import UserError
from runtime.files import make_directory, write_atomically
from training.power_average import PowerAverages
from transfer.trained_weights import AVERAGES, digest_of_tensors

SNAPSHOT = "snapshot of averages"  # the one metadata key of such a file
# Of an average at step t with sigma_rel <= 0.25 the steps before t / 8 have (1/8)^(gamma + 1) of
# the weight: 2.8% at 0.25, 0.28% at 0.20, 7e-8 at 0.10 (9.2% of 0.25 are before t / 4, 0.85% before
# t / 16). The oldest that is kept stands for them, as it is an average of those steps itself.
LEAST = 1 / 8
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A file of averages.

    Args:
        loss: validation loss of the EMA at that step, None without validation images.
        grid: which images that was taken on (metrics.estimate.GRID).
        sha256: of its tensors.
    """

    path: Path
    step: int
    lengths: tuple[float, ...]
    loss: float | None
    grid: int | None
    sha256: str

    def is_whole(self) -> bool:
        """Reads all of it; a damaged one is named."""
        try:
            whole = digest_of_tensors(safetensors.torch.load_file(self.path)) == self.sha256
        except (OSError, safetensors.SafetensorError):
            whole = False
        if not whole:
            log.warning(f"{self.path} is damaged, and left out")
        return whole

    def read(self, length: float) -> Tensors:
        """The average of one length, by plain names of parameters."""
        with safetensors.safe_open(self.path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(f"{length}/")]  # noqa: SIM118
            return {name.partition("/")[2]: file.get_tensor(name) for name in names}


def write_snapshot(run: Path, reached: Checkpoint, averages: PowerAverages) -> None:
    """reached: the checkpoint that is written next."""
    tensors = {
        f"{length}/{name}": tensor.to("cpu", torch.float32, copy=True).contiguous()
        for length, average in averages.by_length.items()
        for name, tensor in average.items()
    }
    about = {
        "step": reached.step,
        "lengths": list(averages.by_length),
        "loss": reached.progress.validation_loss,
        "grid": reached.progress.held_out_grid,
        "sha256": digest_of_tensors(tensors),
    }
    path = run / AVERAGES / f"step_{reached.step}.safetensors"
    make_directory(path.parent)
    write_atomically(path, safetensors.torch.save(tensors, {SNAPSHOT: json.dumps(about)}))


def all_snapshots(run: Path) -> list[Snapshot]:
    """Those of a run, oldest first; of each what it says of itself alone is read, and one that
    says nothing is named and left out."""
    found = []
    for path in (run / AVERAGES).glob("step_*.safetensors"):
        try:
            found.append(_open(path))
        except UserError as error:
            log.warning(error)
    return sorted(found, key=attrgetter("step"))


def _open(path: Path) -> Snapshot:
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[SNAPSHOT])
        lengths = tuple(about.pop("lengths"))
        return Snapshot(path, lengths=lengths, **about)
    except (OSError, safetensors.SafetensorError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged, and left out: {error}") from error


def best_snapshot(snapshots: list[Snapshot]) -> Snapshot | None:
    """The one of lowest validation loss, of those that were judged as the newest was, of equals
    the oldest; the newest where none was judged."""
    if not snapshots:
        return None
    newest = snapshots[-1]
    judged = [s for s in snapshots if s.loss is not None and s.grid == newest.grid]
    return min(judged, key=attrgetter("loss"), default=newest)


def prune_snapshots(run: Path) -> None:
    """Removes those that an average at the best step gives hardly any weight, see LEAST. Later
    steps may become the best one, so that theirs stay."""
    snapshots = all_snapshots(run)
    if best := best_snapshot(snapshots):
        for snapshot in snapshots:
            if snapshot.step < LEAST * best.step:
                snapshot.path.unlink()


def drop_later(run: Path, step: int) -> None:
    """Removes those after the step that a run goes on from: they are made again."""
    for snapshot in all_snapshots(run):
        if snapshot.step > step:
            snapshot.path.unlink()
