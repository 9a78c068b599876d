"""A run's identity and the directory that follows from it: runs/EXPERIMENT/STRATEGY-seedS-HASH."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from config.identity import digest, identity
from config.run_config import RunConfig
from data.dataset import Dataset, check_subset
from data.image_reader import ImageReader
from data.memory_map import decoded_before, held_out_before, same_images
from runtime import checkpoint
from runtime.as_typed import as_typed
from runtime.checkpoint import Checkpoint
from runtime.content import differences
from runtime.errors import UserError
from runtime.files import Damaged, make_directory, put_aside, read_json, write_json
from runtime.log import read_metrics
from training.optimizer import weight_decay
from transfer.adapt_weights import Fit
from transfer.difffit import BranchScale
from transfer.freezing_and_rates import rules_of
from transfer.penalties import L2SP
from transfer.resize_weights import TABLE
from transfer.source_images import made_anew
from transfer.trained_weights import AVERAGES, Origin, read_origin

if TYPE_CHECKING:
    from training.pretrained_source import PretrainedSource

IDENTITY = "identity.json"
METRICS = "metrics.jsonl"  # from the first step on
# what is written before it
OF_A_START = (
    IDENTITY,
    "config.yaml",
    "environment.json",
    "images.png",
    "log.txt",
    "plan.csv",
    "source.json",
)
# what a run makes step by step; the last says that it has begun
BEGUN = ("metrics.jsonl", "samples", "result.json", AVERAGES, "checkpoints")
log = logging.getLogger("train")


def open_images(config: RunConfig) -> ImageReader:
    """Those that a run is trained on, not decoded yet."""
    images = config.data.open_reader(Path(config.run.cache))
    check_subset(config.data, len(images.splits["train"]), images)
    return images


def name_run(
    config: RunConfig, images: str, source: "PretrainedSource | None", table: Sequence[Fit]
) -> tuple[dict[str, Any], Path]:
    """What a run is (its identity), and its directory. images: their fingerprint. table: what
    becomes of its source's tensors."""
    who = identity(config, images)
    # shares of a run depend on its length
    who["transfer"] |= {"rules": [asdict(rule) for rule in rules_of(config)]}
    if source:
        who["source"] |= source.identity
        who["transfer"] |= made_anew(config.transfer, source.config.schedule)
    elif not config.source.include:
        who["source"] = {"include": []}  # nothing is copied, so where from makes no difference
    if changed := changed_since(config, table):
        who["changed"] = changed
    name = f"{config.transfer.name}-seed{config.seed}-{digest(who)}"
    return who, Path(config.run.directory or Path(config.run.root) / config.experiment / name)


def changed_since(config: RunConfig, table: Sequence[Fit]) -> list[str]:
    """What of this run is computed otherwise than when runs with the same settings got their
    names."""
    penalties = [getattr(penalty, "func", None) for penalty in config.transfer.penalties]
    scales = any(isinstance(injection, BranchScale) for injection in config.transfer.inject)
    status = {row.name: row.status for row in table}.get(TABLE)
    applies = {
        "the null row of the source's classes is folded": status == "folded",
        "L2-SP does not hold new rows of the class table": status == "resized"
        and L2SP in penalties,
        "weight decay leaves scales alone": scales and weight_decay(config) > 0,
    }
    return [what for what, does in applies.items() if does]


@contextlib.contextmanager
def claimed(directory: Path, identity: dict[str, Any]) -> Iterator[None]:
    """The directory is this run's while inside, see claim; and it is no run's any more where the
    start is refused before the first step."""
    claim(directory, identity)
    try:
        yield
    except Exception:
        if not any(directory.glob("checkpoints/step_*")) and not (directory / METRICS).exists():
            for name in OF_A_START:
                (directory / name).unlink(missing_ok=True)
        raise


def claim(directory: Path, identity: dict[str, Any]) -> None:
    """Makes the directory, or checks that it belongs to this very run.

    Raises:
        UserError: with the difference, where it does not.
    """
    path, begun = directory / IDENTITY, any(directory.glob("checkpoints/step_*"))
    make_directory(directory)
    try:
        theirs = read_json(path)
    except Damaged as error:
        if begun:
            raise UserError(
                f"{error}. It says whose the checkpoints beside it are: put back a copy of "
                f"it, or move {directory} away, and the same command begins anew."
            ) from error
        put_aside(path, str(error))
        if (rows := directory / METRICS).exists():
            put_aside(rows, f"{rows} is of that run")
    except FileNotFoundError:
        if begun:
            raise UserError(
                f"{directory} has checkpoints but no {IDENTITY}, so whose they are is unknown: "
                "move it away."
            ) from None
    if not path.exists():
        write_json(path, identity)
    elif lines := differences(identity, theirs):
        raise UserError(
            f"{directory} holds a run with another config. There -> here:\n  "
            + "\n  ".join(lines)
            + "\nGive this one its own run.directory, or leave run.directory out."
        )


def last_checkpoint(directory: Path, restart: bool) -> Checkpoint | None:
    """The one that a run goes on from; None where it begins.

    Args:
        restart: begin again where all are damaged or gone: what there is of them is put aside, with
            what belongs to them.
    Raises:
        UserError: where all are damaged or gone, without restart.
    """
    found, there = directory / "checkpoints", sorted(directory.glob("checkpoints/step_*"))
    if saved := checkpoint.latest(found):
        return saved
    if there:
        lost = checkpoint.all_damaged(found, len(there))
    elif (step := _step_of_lost(directory)) is not None:
        lost = f"{found}: the checkpoints are gone of a run that was at step {step}"
    else:
        return None
    if not restart:
        raise UserError(f"{lost}: {checkpoint.MEND_ALL}")
    k = 1
    while (aside := directory / f"damaged_{k}").exists():
        k += 1
    aside.mkdir()
    for name in BEGUN:
        if (directory / name).exists():
            os.replace(directory / name, aside / name)
    what = f"its {len(there)} damaged checkpoints are" if there else "what it had is"
    log.warning(f"the run begins again; {what} put aside: {aside}")
    return None


def _step_of_lost(directory: Path) -> int | None:
    """How far a run was whose checkpoints are gone; None where it had none. A run that ends before
    its first is written has the row and the result of one evaluation already, and the folder."""
    rows = read_metrics(directory / METRICS)
    evaluations = [k for k, row in enumerate(rows) if "loss" not in row]
    if evaluations and (
        evaluations[0] < len(rows) - 1
        or ((directory / "result.json").exists() and not (directory / "checkpoints").exists())
    ):
        return rows[-1]["step"]
    return None


def tell_of_other_runs(directory: Path, config: RunConfig, dataset: Dataset) -> None:
    """A word, before a run begins, on runs that could be meant instead: the same one under another
    name, or one that differs in nothing but its images, or in how far its source was trained.

    Args:
        dataset: its own images.
    """
    ours, origin = read_json(directory / IDENTITY), read_origin(directory)
    for other, theirs in _begun_runs(Path(config.run.root)):
        at = f"{other}, {steps_reached(other)}"
        if other.samefile(directory):
            continue
        if theirs == ours:
            log.warning(f"the same run is at {at}, under another name; this one begins anew")
        elif other.parent == directory.parent:
            told = ""
            if origin and _but(theirs, "source", "from") == _but(ours, "source", "from"):
                told = _told_step(origin, other)
            elif _but(theirs, "data", "images") == _but(ours, "data", "images"):
                told = _told_images(theirs["data"]["images"], config, dataset)
            if told:
                log.warning(f"another run of the same settings is at {at}; {told}")


def _begun_runs(root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The runs that have a checkpoint, and their identities."""
    for path in sorted(root.glob(f"*/*/{IDENTITY}")):
        # what is damaged is told where that run is asked for
        with contextlib.suppress(UserError):
            if steps_reached(path.parent):
                yield path.parent, read_json(path)


def _told_step(ours: Origin, other: Path) -> str:
    """That another run started from another step of the run that source.from names, and how it
    goes on; nothing where it did not, or where source.from names the very checkpoint."""
    try:
        theirs = read_origin(other)
    except UserError:  # which is told where that run is asked for
        return ""
    named, here = Path(ours["from"]).expanduser(), Path(ours["found"])
    there = Path(theirs["found"]) if theirs else here
    if not theirs or not there.is_dir() or not named.is_dir() or named.samefile(here):
        return ""
    if there.samefile(here) or not there.parent.samefile(here.parent):
        return ""
    return (
        f"it started from step {theirs['step']} of the same source, and this new run starts from "
        f"step {ours['step']}. With {as_typed('source.from', str(there))} that one goes on"
    )


def _told_images(fingerprint: str, config: RunConfig, dataset: Dataset) -> str:
    """That a run has other images, and how many are the same; nothing where none is.

    Args:
        fingerprint: of its images.
        dataset: those of this run.
    """
    cache = Path(config.run.cache)
    before = decoded_before(fingerprint, config.data, cache)
    same = _told_same(before, dataset.images)
    held_out = held_out_before(fingerprint, config.data, cache) if same else None
    return same and (
        f"{same}. Images were added, removed, renamed or changed since, so this is a new run"
        + _told_moved(before, held_out, dataset)
    )


def _told_same(before: np.ndarray | None, images: np.ndarray) -> str:
    """How many images of a run are those of another; nothing where none is."""
    if before is None:
        return (
            "how many of its images are the same is unknown, as run.cache does not hold them as "
            "this version reads them"
        )
    count = same_images(before, images)
    return f"{count} of its {len(before)} images are the same" if count else ""


def _told_moved(before: np.ndarray | None, held_out: list[int] | None, dataset: Dataset) -> str:
    """How many images that another run held out this one trains on; nothing where none is."""
    why = (
        "do not compare between the two. A drawn split is drawn anew for other images; folders "
        "train, val and test keep it (docs/data.md)"
    )
    if before is None or held_out is None:
        return f". Where its split was drawn, numbers of held-out images {why}"
    train = (dataset.images[row] for row in dataset.splits["train"])
    count = same_images((before[row] for row in held_out), train)
    if not count:
        return ""
    return (
        f". {count} of the {len(held_out)} images that were held out there are training images "
        f"here, so numbers of held-out images {why}"
    )


def _but(identity: dict[str, Any], section: str, key: str) -> dict[str, Any]:
    return identity | {section: identity.get(section, {}) | {key: None}}


def steps_reached(run: Path) -> str:
    """How far a run is, by the names of its checkpoints; nothing where it has none."""
    steps = [int(p.name[5:]) for p in run.glob("checkpoints/step_*") if p.name[5:].isdigit()]
    return f"step {max(steps)}" if steps else ""
