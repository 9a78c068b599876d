"""One evaluation: the images are made, everything that is asked for is measured, evaluation.json is
written."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from torch import Tensor

from data.image_folder import open_images
from diffusion.denoiser import Denoiser
from diffusion.generate import as_made
from evaluation.closest_pairs import write_closest
from evaluation.image_features import FeatureExtractor, ImageFeatures, ReferenceImages
from evaluation.network_metrics import NetworkMetrics
from evaluation.protocol import evaluation_folder, lacks_source, protocol_of, read_evaluation
from evaluation.settings import OF_NETWORK, EvaluateSettings
from evaluation.suite import Notes, compare_images, noise_images
from evaluation.trained_run import NULL_CLASS, TrainedRun, image_classes
from metrics.estimate import EVALUATION, VERSION
from runtime.checkpoint import FILES, STATE, find
from runtime.content import sha256_of
from runtime.device import pick_device
from runtime.directory import IDENTITY, machine
from runtime.errors import UserError
from runtime.files import locked, write_sealed
from sampling.image_folder import claim_folder, write_missing
from sampling.pipeline import SampleRequest
from training.best_checkpoint import find_best_checkpoint
from training.result import read_result

log = logging.getLogger("evaluate")
Record = dict[str, Any]


def find_runs(path: Path) -> list[Path]:
    """The runs that a user means: one, one of its checkpoints, or every finished run of an
    experiment."""
    inside = sorted(p.parent for p in path.glob(f"*/{IDENTITY}"))
    if not inside:
        return [path]
    finished = [run for run in inside if read_result(run).finished]
    for run in sorted(set(inside) - set(finished)):
        log.warning("%s is not finished, and left out", run.name)
    if not finished:
        raise UserError(f"{path}: none of its {len(inside)} runs is finished.")
    return finished


def evaluate_run(path: Path, settings: EvaluateSettings, sampler: Record) -> Path:
    """Evaluates one run, or skips it where that has been done. sampler: its config. Returns the
    folder of its evaluation."""
    began = time.monotonic()
    found = find_best_checkpoint(path) if settings.select == "best" else find(path)
    cache = Path(settings.cache).expanduser()
    run = TrainedRun(found, settings.weights, settings.overrides, settings.source, cache)
    dataset, about = run.images
    reference = ReferenceImages.of_splits(dataset.images, dataset.splits, about)
    select = found.path.name if (path / STATE).is_file() else settings.select
    sampler = as_made(sampler, settings.sampler, run.config.schedule)
    protocol = protocol_of(settings, reference, sampler, select)
    folder = evaluation_folder(settings, run.directory, protocol)
    sha256 = found.digests[FILES[settings.weights]]
    with locked(folder / ".lock", f"{folder} is being written by another process."):
        there = read_evaluation(
            folder, protocol, run.directory if settings.out or settings.images else None
        )
        if settings.source and run.has_source:
            assert run.source  # a wrong one is said, and not noted
        # what is in a folder may have changed
        again = settings.images or lacks_source(there, run, settings)
        if there.get("checkpoint", {}).get("sha256") == sha256 and not again:
            log.info("evaluated before: %s (delete it to do it again)", folder / EVALUATION)
            return folder
        evaluator = RunEvaluator(
            settings, folder, reference, pick_device(settings.device), run, sampler, sha256
        )
        record = evaluator.evaluate()
        checkpoint = {"path": str(found.path), "step": found.step, "sha256": sha256}
        hours = (time.monotonic() - began) / 3600
        write_evaluation(
            folder,
            evaluator.device,
            {"protocol": protocol, "checkpoint": checkpoint, **record, "hours": hours},
        )
    return folder


def evaluate_folder(settings: EvaluateSettings) -> Path:
    """Evaluates images of a folder against those of other folders."""
    assert settings.images and settings.train
    generated = open_images(settings.images)
    size, channels = generated.shape[1:3], generated.shape[3]
    parts = [open_images(name, size, channels) for name in (settings.train, settings.test) if name]
    images, first = np.concatenate(parts), len(parts[0])
    splits = {"train": np.arange(first), "test": np.arange(first, len(images))}
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    reference = ReferenceImages.of_splits(images, splits, [digest])
    protocol = protocol_of(settings, reference, {}, settings.select)
    folder = evaluation_folder(settings, Path(), protocol)
    with locked(folder / ".lock", f"{folder} is being written by another process."):
        read_evaluation(folder, protocol, None)
        evaluator = ImageEvaluator(settings, folder, reference, pick_device(settings.device))
        write_evaluation(folder, evaluator.device, {"protocol": protocol, **evaluator.evaluate()})
    return folder


@dataclass(frozen=True)
class ImageEvaluator:
    """Of images in a folder. out: gets the closest pairs."""

    settings: EvaluateSettings
    out: Path
    reference: ReferenceImages
    device: torch.device

    @cached_property
    def notes(self) -> Notes:
        return Notes()

    @cached_property
    def extractor(self) -> FeatureExtractor:
        settings = self.settings
        cache = Path(settings.cache).expanduser()
        return FeatureExtractor(
            settings.features, settings.perceptual, self.device, settings.batch_size, cache
        )

    def evaluate(self) -> Record:
        """All that evaluation.json says, but for the protocol."""
        assert self.settings.images
        record, _, about = self.compare(Path(self.settings.images))
        return {"images": about, **record, "notes": list(self.notes)}

    def compare(self, folder: Path | None) -> tuple[Record, ImageFeatures | None, Record]:
        """(what the images in folder tell, their features, how many there are). folder: None where
        no image is needed."""
        about = {name: len(rows) for name, rows in self.reference.rows.items()}
        if folder is None:
            return self.extractor.names, None, about
        shape = self.reference.images.shape[1:]
        images = self._read(folder, self.notes.say)
        others: dict[str, ImageFeatures] = {}
        if "baselines" in self.settings.wanted:
            noise = noise_images(len(images), shape)
            others["noise"] = self.extractor.extract(noise, np.arange(len(noise)), "noise")
            self.add_untouched_source(others)
        record, generated, train = compare_images(
            self.extractor, images, self.reference, others, self.settings.wanted, self.notes
        )
        write_closest(
            self.out,
            images,
            generated.pixels,
            self.reference.images,
            self.reference.rows["train"],
            train.pixels,
        )
        return record, generated, {"folder": str(folder), "n": len(generated.features), **about}

    def _read(self, folder: Path, say: Callable[[str], object] = lambda line: None) -> np.ndarray:
        shape = self.reference.images.shape[1:]
        images = open_images(folder, shape[:2], shape[2], say)
        return images if self.settings.images else images[: self.settings.n]

    def add_untouched_source(self, others: dict[str, ImageFeatures]) -> None:
        """Images in a folder have no source."""


@dataclass(frozen=True)
class RunEvaluator(ImageEvaluator):
    """Of a run: of images that it makes, or of a folder of images (settings.images), and of its
    network. sampler: its config. sha256: of the run's weights."""

    run: TrainedRun
    sampler: Record
    sha256: str

    def evaluate(self) -> Record:
        settings = self.settings
        if settings.images:
            return super().evaluate()
        folder = None
        if set(settings.wanted) - set(OF_NETWORK):
            below = _writable(self.run.directory / "generated", self.out)
            folder = self.sample(self.run.build_denoiser(self.device), self.sha256, below)
        if folder and self.run.checkpoint.classes and (line := _about_label(settings.label)):
            self.notes.say(line)
        record, generated, about = self.compare(folder)
        network = NetworkMetrics(
            self.run, self.device, self.reference, settings.held_out_draws, self.notes
        )
        if "loss" in settings.wanted:
            record["loss"] = network.losses()
        if "bound" in settings.wanted and self.reference.held_out:
            self.notes.attempt(
                record,
                "bound",
                "bound",
                lambda: network.bound(
                    settings.bound_images, settings.bound_steps, settings.sampler.clip
                ),
            )
        if "forgetting" in settings.wanted and self.run.has_source and generated:
            self.notes.attempt(
                record,
                "forgetting",
                "forgetting",
                lambda: network.forgetting(generated, self.extractor),
            )
        return {"images": about, **record, "notes": list(self.notes)}

    def sample(self, denoiser: Denoiser, weights: str, below: Path) -> Path:
        """The folder of images 0 .. n - 1; those that are missing in it are made. weights: their
        digest."""
        settings = self.settings
        label = image_classes(settings.label, self.run.config.classes, self.run.images[0])
        request = SampleRequest(
            settings.sampler,
            settings.n,
            settings.seed,
            settings.batch_size,
            label,
            precision=settings.precision,
            kernels=settings.kernels,
        )
        made_by = {
            "weights": weights,
            "seed": settings.seed,
            "sampler": self.sampler,
            "label": label,
            "precision": settings.precision,
        }
        out = below / f"evaluation_{sha256_of(made_by)[:8]}"
        log.info("%d images in %s", settings.n, out)
        with locked(out / ".lock"):  # of two evaluations at once, the second finds them made
            claim_folder(out, made_by)
            classes = self.run.checkpoint.classes if denoiser.network.classes else []
            write_missing(out, request, denoiser, denoiser, classes, self.run.config.image_shape)
        return out

    def add_untouched_source(self, others: dict[str, ImageFeatures]) -> None:
        if self.run.has_source and not self.settings.images:
            self.notes.attempt(
                others, "untouched source", "the untouched source", self._untouched_source
            )

    def _untouched_source(self) -> ImageFeatures:
        """Of images of the run's source, which all runs of that source share."""
        tensors = self.run.untouched_weights
        digest = sha256_of({name: _sums(tensor) for name, tensor in tensors.items()})
        # "floors": where earlier versions have made these images
        below = _writable(self.run.directory.parent / "floors", self.out)
        below = below / f"untouched_{digest[:8]}"
        denoiser = self.run.config.frozen_denoiser(tensors, self.device)
        images = self._read(self.sample(denoiser, digest, below))
        return self.extractor.extract(
            images, np.arange(len(images)), "images of the untouched source"
        )


def _sums(tensor: Tensor) -> list[float]:
    return [tensor.double().sum().item(), tensor.double().square().sum().item()]


def _about_label(label: int | str | None) -> str | None:
    """What to know of images of a network with classes, where they are not of each in turn."""
    if label in (None, "all"):
        return None
    of = "of the null class" if label == NULL_CLASS else f"of class {label} alone"
    return f"the images are {of}, and those that they are compared with of all classes"


def _writable(place: Path, otherwise: Path) -> Path:
    """Where images go: place, or, in a run of somebody else that may be read alone, otherwise."""
    there = next(p for p in (place, *place.absolute().parents) if p.exists())
    return place if os.access(there, os.W_OK) else otherwise


def write_evaluation(folder: Path, device: torch.device, record: Record) -> None:
    content = {"version": VERSION, **record, "arguments": _arguments(), **machine(device)}
    write_sealed(folder / EVALUATION, content, indent=1)
    for line in record["notes"]:
        log.info("note: %s", line)
    log.info("%s\n%s", folder / EVALUATION, summarize(record))


def _arguments() -> list[str]:
    """What the command line said, but for what was evaluated: with these another run is judged
    alike."""
    said = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    own = ("checkpoint", "out", "images", "train", "test")
    return [argument for argument in said if argument.split("=")[0] not in own]


SHOWN = {
    "loss on {} images": ("loss", "target", "loss"),
    "KID to {} images": ("quality", "test", "kid"),
    "precision": ("quality", "test", "precision"),
    "coverage": ("quality", "test", "coverage"),
    "rho (copies: below 0.5)": ("memorization", "features", "rho"),
    "copy share": ("memorization", "pixels", "copy_share"),
    "change of the source's loss": ("loss", "source_change"),
    "bound, bits per value": ("bound", "bits"),
}


def summarize(record: Record) -> str:
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
            band = "" if node["low"] is None else f"   ({node['low']:.4g} to {node['high']:.4g})"
            lines.append(f"{title}{node['value']:>10.4g}{band}")
    return "\n".join(lines)
