"""How good, how new and how forgetful a run is: python evaluate.py --help"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from config.overrides import check_overrides, resolved
from config.sections import Precision
from data.image_folder import open_images
from diffusion.denoiser import Denoiser
from diffusion.generate import SamplerSettings, as_made
from evaluation.closest_pairs import write_closest
from evaluation.evaluator import Looking, OfNetwork, Reference, images_judged, noise_images, samples
from evaluation.suite import Notes, Seen
from evaluation.trained_run import NULL_CLASS, Finished, classes_of
from kernels import dispatch
from metrics.estimate import EVALUATION, GRID, VERSION
from metrics.features import Features
from runtime.build import Settings, parse
from runtime.checkpoint import FILES, STATE, Which, find
from runtime.content import differences, sha256_of
from runtime.device import pick_device
from runtime.directory import IDENTITY, machine
from runtime.errors import UserError, message_of, near, one_message
from runtime.files import Damaged, locked, read_sealed, write_sealed
from runtime.log import log_to_terminal
from runtime.signals import PREEMPTED
from sampling.image_folder import Making
from training.best_checkpoint import find_best_checkpoint
from training.result import read_result

log = logging.getLogger("evaluate")
METRICS = ("quality", "memorization", "loss", "bound", "forgetting", "floors")
OF_IMAGES = ("quality", "memorization", "floors")  # those that need no network
OF_NETWORK = ("loss", "bound")  # those that need no images


@dataclass(frozen=True)
class EvaluateSettings(Settings):
    """See conf/evaluate.yaml."""

    sampler: SamplerSettings
    features: Features
    perceptual: Features
    checkpoint: str | None = None
    images: str | None = None
    train: str | None = None
    test: str | None = None
    metrics: str | Sequence[str] = "all"
    overrides: Sequence[str] = ()
    source: str | None = None
    n: int = 2000
    seed: int = 0
    select: Literal["best", "last"] = "best"
    weights: Which = "ema"
    label: int | str | None = None
    held_out_draws: int = 2048
    bound_images: int = 16
    bound_steps: int | None = 100
    out: str | None = None
    cache: str = "cache"
    batch_size: int = 64
    device: str = "auto"
    precision: Precision = "fp32"
    kernels: dispatch.Kernels = "auto"

    def __post_init__(self):
        for name in ("n", "held_out_draws", "bound_images", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1.")
        if self.bound_steps is not None and self.bound_steps < 2:
            raise ValueError("bound_steps must be at least 2, or null for all steps.")
        if unknown := [m for m in self._named if m not in METRICS]:
            raise ValueError(f"metrics: {unknown[0]} is none of them; {near(unknown[0], METRICS)}")
        if not self.wanted:
            raise ValueError(f"metrics={list(self._named)}: nothing is asked for. metrics=all, or some of [{','.join(METRICS)}]; with "
                             f"images= of [{','.join(OF_IMAGES)}].")
        if self.checkpoint is None and (self.images is None or self.train is None):
            raise ValueError("what is to be evaluated? checkpoint=RUN, or images=DIR with checkpoint=RUN or train=DIR test=DIR to compare "
                             "with.")
        if self.checkpoint is not None and (self.train or self.test):
            raise ValueError("train= and test= are for images= alone: with checkpoint= the images to compare with are the run's.")

    @property
    def _named(self) -> Sequence[str]:
        if self.metrics == "all":
            return METRICS
        return [self.metrics] if isinstance(self.metrics, str) else self.metrics

    @cached_property
    def wanted(self) -> list[str]:
        """In their order."""
        return [m for m in (METRICS if self.images is None else OF_IMAGES) if m in self._named]


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
@one_message
def main(cfg: DictConfig) -> None:
    log_to_terminal()
    config = resolved(cfg)
    config.pop("spacing")
    settings, sampler = parse(EvaluateSettings, config, ["diffusion", "evaluation"], ""), config["sampler"]
    if settings.checkpoint is None:
        of_folder(settings)
        return
    runs = runs_of(Path(settings.checkpoint).expanduser())
    if settings.out and len(runs) > 1:
        raise UserError(f"out={settings.out}: one folder cannot hold {len(runs)} runs' evaluations. Without out= each is put into its run.")
    failed = []
    for k, run in enumerate(runs):
        log.info("%s%s", f"[{k + 1} of {len(runs)}] " if len(runs) > 1 else "", run)
        try:
            of_run(run, settings, sampler)
        except (UserError, OSError) as error:
            message = message_of(error)
            if len(runs) == 1 or message is None:
                raise
            failed.append(message if message.startswith(str(run)) else f"{run}: {message}")
            log.error("failed: %s", failed[-1])
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs could not be evaluated:\n  " + "\n  ".join(failed))


def runs_of(path: Path) -> list[Path]:
    """The runs that a user means: one, one of its checkpoints, or every finished run of an experiment."""
    inside = sorted(p.parent for p in path.glob(f"*/{IDENTITY}"))
    if not inside:
        return [path]
    finished = [run for run in inside if read_result(run).finished]
    for run in sorted(set(inside) - set(finished)):
        log.warning("%s is not finished, and left out", run.name)
    if not finished:
        raise UserError(f"{path}: none of its {len(inside)} runs is finished.")
    return finished


def of_run(path: Path, settings: EvaluateSettings, sampler: dict[str, Any]) -> Path:
    """Evaluates one run, or skips it where that has been done. Returns the folder of its evaluation."""
    began = time.monotonic()
    found = find_best_checkpoint(path) if settings.select == "best" else find(path)
    run = Finished(found, settings.weights, settings.overrides, settings.source, Path(settings.cache).expanduser())
    dataset, about = run.images
    reference = Reference.of(dataset.images, dataset.splits, about)
    sha256 = found.digests[FILES[settings.weights]]
    select = found.path.name if (path / STATE).is_file() else settings.select
    sampler = as_made(sampler, settings.sampler, run.config.schedule)
    protocol = protocol_of(settings, reference, sampler, select)
    folder = folder_of(settings, run.directory, protocol)
    with locked(folder / ".lock", f"{folder} is being written by another process."):
        there = kept(folder, protocol, run.directory if settings.out or settings.images else None)
        if settings.source and run.has_source:
            assert run.source  # a wrong one is said, and not noted
        again = settings.images or lacks_source(there, run, settings)  # what is in a folder may have changed
        if there.get("checkpoint", {}).get("sha256") == sha256 and not again:
            log.info("evaluated before: %s (delete it to do it again)", folder / EVALUATION)
            return folder
        device = pick_device(settings.device)
        label = classes_of(settings.label, run.config.classes, dataset)
        making = Making(settings.sampler, settings.n, settings.seed, settings.batch_size, label, precision=settings.precision,
                        kernels=settings.kernels)
        made_by = {"weights": sha256, "seed": settings.seed, "sampler": sampler, "label": label, "precision": settings.precision}

        def drawn(denoiser: Denoiser, weights: str, below: Path) -> Path:
            return samples(denoiser, run.config, found.classes, making, made_by | {"weights": weights}, below)

        floors = writable(run.directory.parent / "floors", folder)
        source = None if settings.images else partial(untouched, run, device, drawn, floors)
        given = Path(settings.images) if settings.images else None
        if given is None and set(settings.wanted) - set(OF_NETWORK):
            given = drawn(run.denoiser(device), sha256, writable(run.directory / "generated", folder))
        network = None if settings.images else OfNetwork(run, device, reference, settings.held_out_draws, Notes())
        if network and given and found.classes and (line := about_label(settings.label)):
            network.notes.say(line)
        record = judged(settings, device, given, folder, reference, network, source if run.has_source else None)
        about = {"path": str(found.path), "step": found.step, "sha256": sha256}
        write(folder, device, {"protocol": protocol, "checkpoint": about, **record, "hours": (time.monotonic() - began) / 3600})
    return folder


def about_label(label: int | str | None) -> str | None:
    """What to know of images of a network with classes, where they are not of each in turn."""
    if label == NULL_CLASS:
        return "the images are of the null class, and those that they are compared with of all classes"
    alone = f"the images are of class {label} alone, and those that they are compared with of all classes"
    return None if label in (None, "all") else alone


def writable(place: Path, otherwise: Path) -> Path:
    """Where images go: place, or, in a run of somebody else that may be read alone, otherwise."""
    there = next(p for p in (place, *place.absolute().parents) if p.exists())
    return place if os.access(there, os.W_OK) else otherwise


def untouched(run: Finished, device: torch.device, drawn: Callable[[Denoiser, str, Path], Path], below: Path) -> Path:
    """Images of the run's source, which all runs of that source share."""
    tensors = run.untouched
    weights = sha256_of({name: [tensor.double().sum().item(), tensor.double().square().sum().item()] for name, tensor in tensors.items()})
    return drawn(run.config.frozen_denoiser(tensors, device), weights, below / f"untouched_{weights[:8]}")


def of_folder(settings: EvaluateSettings) -> Path:
    """Evaluates images of a folder against those of other folders."""
    generated = open_images(settings.images)
    parts = {"train": open_images(settings.train, generated.shape[1:3], generated.shape[3])}
    if settings.test:
        parts["test"] = open_images(settings.test, generated.shape[1:3], generated.shape[3])
    images = np.concatenate(list(parts.values()))
    first = len(parts["train"])
    splits = {"train": np.arange(first), "test": np.arange(first, len(images))}
    reference = Reference.of(images, splits, [hashlib.sha256(images.tobytes()).hexdigest()])
    device, protocol = pick_device(settings.device), protocol_of(settings, reference, {}, settings.select)
    folder = folder_of(settings, Path(), protocol)
    with locked(folder / ".lock", f"{folder} is being written by another process."):
        kept(folder, protocol, None)
        write(folder, device, {"protocol": protocol, **judged(settings, device, Path(settings.images), folder, reference)})
    return folder


def folder_of(settings: EvaluateSettings, run: Path, protocol: dict[str, Any]) -> Path:
    if settings.out:
        return Path(settings.out).expanduser()
    if settings.images:
        images = Path(settings.images).expanduser().resolve()
        return images.with_name(f"{images.name}_evaluation")
    return run / "evaluation" / f"{protocol['select']}_n{settings.n}_{settings.features.short.lower()}_{sha256_of(protocol)[:8]}"


def judged(settings: EvaluateSettings, device: torch.device, folder: Path | None, out: Path, reference: Reference,
           network: OfNetwork | None = None, source: Callable[[], Path] | None = None) -> dict[str, Any]:
    """All that is wanted of the images in folder, and of the network that made them; out gets the closest pairs. folder: None where no
    image is needed. source: makes images of the untouched source."""
    notes = network.notes if network else Notes()
    looking = Looking(settings.features, settings.perceptual, device, settings.batch_size, Path(settings.cache).expanduser())
    record, generated, about = looking.names, None, {name: len(rows) for name, rows in reference.rows.items()}
    if folder:
        record, generated = of_images(settings, looking, folder, out, reference, source, notes)
        about = {"folder": str(folder), "n": len(generated.features), **about}
    if network:
        if "loss" in settings.wanted:
            record["loss"] = network.losses()
        if "bound" in settings.wanted and reference.held_out:
            notes.attempt(record, "bound", "bound",
                          lambda: network.bound(settings.bound_images, settings.bound_steps, settings.sampler.clip))
        if "forgetting" in settings.wanted and network.run.has_source:
            notes.attempt(record, "forgetting", "forgetting", lambda: network.forgetting(generated, looking))
    return {"images": about, **record, "notes": list(notes)}


def of_images(settings: EvaluateSettings, looking: Looking, folder: Path, out: Path, reference: Reference,
              source: Callable[[], Path] | None, notes: Notes) -> tuple[dict[str, Any], Seen]:
    """What the images in folder tell, and those images; out gets the closest pairs."""
    shape = reference.images.shape[1:]
    images = open_images(folder, shape[:2], shape[2], notes.say)
    images = images if settings.images else images[: settings.n]
    others = {}
    if "floors" in settings.wanted:
        others["noise"] = looking.seen(noise_images(len(images), shape), np.arange(len(images)), "noise")
        if source:
            notes.attempt(others, "untouched source", "the untouched source", lambda: looking.seen(
                open_images(source(), shape[:2], shape[2])[: settings.n], np.arange(settings.n), "images of the untouched source"))
    record, generated, train = images_judged(looking, images, reference, others, settings.wanted, notes)
    write_closest(out, images, generated.pixels, reference.images, reference.rows["train"], train.pixels)
    return record, generated


def kept(folder: Path, protocol: dict[str, Any], run: Path | None) -> dict[str, Any]:
    """The evaluation that is there, {} where there is none, a damaged one or one of another format. Raises UserError where it is of
    something else. run: where the folder is not its own."""
    try:
        there = read_sealed(folder / EVALUATION, keys=["protocol"], unsealed=True)
        before, now = there["protocol"] | {}, json.loads(json.dumps(protocol))
        if run:
            before["run"] = str(Path(there["checkpoint"]["path"]).parent.parent.resolve()) if "checkpoint" in there else None
            now["run"] = str(run.resolve())
    except (OSError, KeyError, TypeError, Damaged) as error:
        if isinstance(error, Damaged):
            log.warning("%s; it is made anew", error)
        return {}
    if lines := differences(now, before):
        raise UserError(f"{folder} holds another evaluation (there -> here):\n  " + "\n  ".join(lines) + "\nGive this one its own out=DIR.")
    if there.get("version") != VERSION:
        log.info("%s is of version %s of the format, which is %s now: made again", folder / EVALUATION, there.get("version"), VERSION)
        return {}
    return there


def lacks_source(there: dict[str, Any], run: Finished, settings: EvaluateSettings) -> bool:
    """Whether an evaluation was made while the source was gone, which is here now."""
    lacking = [name for name, found in (("floors", "untouched source" in there.get("floors", {})), ("forgetting", "forgetting" in there),
                                        ("loss", "source_change" in there.get("loss", {}))) if name in settings.wanted and not found]
    if not run.has_source or not lacking or (lacking == ["loss"] and not settings.source):  # its images alone may always be unknown
        return False
    try:
        return run.source is not None
    except UserError:
        return False


def protocol_of(settings: EvaluateSettings, reference: Reference, sampler: dict[str, Any], select: str) -> dict[str, Any]:
    """What has to be the same for two evaluations to be compared. select: best, last, or the step that was asked for."""
    made = {"images": str(Path(settings.images).expanduser().resolve())} if settings.images else {
        "n": settings.n, "seed": settings.seed, "sampler": sampler, "label": settings.label, "weights": settings.weights,
        "select": select, "precision": settings.precision}
    of_network = {"held_out_draws": settings.held_out_draws, "held_out_grid": GRID, "bound": [settings.bound_images, settings.bound_steps]}
    return {**made, "metrics": settings.wanted, "held_out": reference.held_out, "test": reference.digests.get("test"),
            "features": settings.features.identity, "perceptual": settings.perceptual.identity, **(of_network if "sampler" in made else {})}


def arguments() -> list[str]:
    """What the command line said, but for what was evaluated: with these another run is judged alike."""
    said = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return [argument for argument in said if argument.split("=")[0] not in ("checkpoint", "out", "images", "train", "test")]


def write(folder: Path, device: torch.device, record: dict[str, Any]) -> None:
    write_sealed(folder / EVALUATION, {"version": VERSION, **record, "arguments": arguments(), **machine(device)}, indent=1)
    for line in record["notes"]:
        log.info("note: %s", line)
    log.info("%s\n%s", folder / EVALUATION, summary(record))


SHOWN = {"loss on {} images": ("loss", "target", "loss"), "KID to {} images": ("quality", "test", "kid"),
         "precision": ("quality", "test", "precision"), "coverage": ("quality", "test", "coverage"),
         "rho (copies: below 0.5)": ("memorization", "features", "rho"), "copy share": ("memorization", "pixels", "copy_share"),
         "change of the source's loss": ("loss", "source_change"), "bound, bits per value": ("bound", "bits")}


def summary(record: dict[str, Any]) -> str:
    """A few lines for the terminal."""
    lines = [f"in {record['features']['name']}"]
    held_out = record["protocol"]["held_out"]  # test, or validation where there is no such split
    for name, path in SHOWN.items():
        title, node = f"  {name.format(held_out):<30}", record
        for key in path:
            node = node.get(key, {})
        if isinstance(node, float):
            lines.append(f"{title}{node:>10.4g}")
        elif node:
            band = "" if node["low"] is None else f"   ({node['low']:.4g} to {node['high']:.4g})"  # one image has none
            lines.append(f"{title}{node['value']:>10.4g}{band}")
    return "\n".join(lines)


if __name__ == "__main__":
    one_message(check_overrides)("evaluate", sys.argv[1:])
    try:
        main()
    except KeyboardInterrupt:
        print("\ninterrupted; the images that were made stay, and the same command continues", file=sys.stderr, flush=True)
        sys.exit(PREEMPTED)
