"""One evaluation: the images are made, everything that is asked for is measured, evaluation.json is
written."""

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from torch import Tensor

from config.old_spelling import as_then
from data.image_folder import image_files, open_images
from data.pixels import to_picture
from diffusion.generate import as_made
from evaluation.audits import audit_classification, audit_membership
from evaluation.closest_pairs import write_closest
from evaluation.image_features import FeatureExtractor, ImageFeatures
from evaluation.network_metrics import NetworkMetrics
from evaluation.protocol import (
    ReferenceImages,
    evaluation_folder,
    features_see,
    lacks_source,
    protocol_of,
    read_evaluation,
    reference_images,
)
from evaluation.settings import AUDITS, METRICS, OF_NETWORK, EvaluateSettings
from evaluation.suite import (
    Notes,
    compare_baselines,
    compare_quality,
    measure_memorization,
    noise_images,
)
from evaluation.trained_run import TrainedRun, image_classes
from metrics.estimate import EVALUATION, VERSION, Record
from metrics.intervals import FEW_PATIENTS
from runtime.checkpoint import STATE, find
from runtime.content import sha256_of
from runtime.device import pick_device
from runtime.environment import machine
from runtime.errors import UserError
from runtime.files import locked, write_sealed
from runtime.wandb_copy import WandbCopy
from sampling.pipeline import NULL_CLASS, Pipeline, SampleRequest
from sampling.write_images import claim_folder, write_missing
from training.best_checkpoint import find_best_checkpoint
from training.result import read_result
from training.run_directory import IDENTITY

log = logging.getLogger("evaluate")
JUDGED = ("checkpoint", "out", "images", "train", "test")  # what a command line says is judged
NO_TEST = {  # what to know, by the split that stands for the test
    None: "there are no held-out images to compare with, so that a generator that copies cannot "
    "be told from a good one",
    "validation": "there is no test split: the held-out images are the validation images, by which "
    "the checkpoint was chosen",
}


# of numbers of images whose test images are of fewer patients
IMAGE_BY_IMAGE = (
    "the intervals of KID and of the copies among test images take each image for itself, though "
    "they are of {} patients: they are too narrow"
)


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


def evaluate_run(
    path: Path, settings: EvaluateSettings, sampler: Record, said: Sequence[str] | None = None
) -> Path:
    """Evaluates one run, or skips it where that has been done.

    Args:
        sampler: its config.
        said: the command line, where it is not that of this process.
    Returns:
        The folder of its evaluation.
    """
    began = time.monotonic()
    rule = "chosen" if settings.weights == "average" else settings.select
    found = find_best_checkpoint(path) if rule == "best" else find(path)
    cache = Path(settings.cache).expanduser()
    run = TrainedRun(found, settings.weights, settings.overrides, settings.source, cache)
    dataset, about = run.images
    names = run.reader.item_name
    reference = reference_images(dataset.images, dataset.splits, about, names, dataset.groups)
    select = found.path.name if (path / STATE).is_file() else rule
    assert select != "every"  # see evaluation.along_training
    if select != rule == "chosen":
        raise UserError(
            f"weights=average: the average is one of a whole run, and {path} is one checkpoint: "
            f"give checkpoint={run.directory}, or take weights=ema."
        )
    sampler = as_then(as_made(sampler, settings.sampler, run.config.schedule))
    shown = features_see(dataset.images.shape[-1], settings.shown or run.config.shown)
    protocol = protocol_of(settings, reference, sampler, select, shown)
    folder = evaluation_folder(settings, run.directory, protocol)
    sha256 = run.trained.digests[run.which]
    with locked(folder / ".lock", f"{folder} is being written by another process."):
        there = read_evaluation(
            folder, protocol, run.directory if settings.out or settings.images else None
        )
        if settings.source and run.has_source:
            assert run.source  # a wrong one is said, and not noted
        # what is in a folder may have changed
        again = settings.images or lacks_source(there, run, settings)
        current = there.get("checkpoint", {}).get("sha256") == sha256
        same = current and not again
        lacking = [name for name in settings.wanted if name in AUDITS and name not in there]
        if same and not lacking:
            log.info("evaluated before: %s (delete it to do it again)", folder / EVALUATION)
            return folder
        evaluator = RunEvaluator(settings, folder, reference, shown, run, sampler, said=said)
        if same:
            record = evaluator.add(there, lacking)
        else:
            trained = run.trained
            kept = {name: there[name] for name in AUDITS if current and name in there}
            record = {
                "protocol": protocol,
                "checkpoint": {"path": str(trained.path), "step": trained.step, "sha256": sha256},
                **kept,
                **evaluator.evaluate(),
            }
            evaluator.write(record | {"hours": (time.monotonic() - began) / 3600})
        copy_to_wandb(run, folder, record)
    return folder


def tell_patients(reference: ReferenceImages, notes: Notes) -> None:
    """Of how many patients those are that judge, where they are fewer than the images."""
    if count := reference.test_patients:
        what = f"{len(reference.rows['test']):,} {reference.held_out} images of {count:,} patients"
        few = ", and so few tell little of others" * (count < FEW_PATIENTS)
        notes.say(f"{what}: intervals are over patients{few}")


def copy_to_wandb(run: TrainedRun, folder: Path, record: Record) -> None:
    """The numbers, where the run itself went to wandb, as a run of wandb's own beside it."""
    copy = WandbCopy(run.config.wandb, run.directory, record["protocol"], folder.name)
    copy.summary(numbers_of({key: record.get(key) for key in METRICS}))
    copy.finish()


def evaluate_folder(settings: EvaluateSettings) -> Path:
    """Evaluates images of a folder against those of other folders."""
    assert settings.images and settings.train
    generated = open_images(settings.images)
    _, *size, channels = generated.shape
    folders = [name for name in (settings.train, settings.test) if name]
    parts = [open_images(name, size, channels) for name in folders]
    files = [str(file) for name in folders for file in image_files(name)]
    images, first = np.concatenate(parts), len(parts[0])
    splits = {"train": np.arange(first), "test": np.arange(first, len(images))}
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    reference = reference_images(images, splits, [digest], files.__getitem__)
    shown = features_see(channels, settings.shown)
    protocol = protocol_of(settings, reference, {}, settings.select, shown)
    folder = evaluation_folder(settings, Path(), protocol)
    with locked(folder / ".lock", f"{folder} is being written by another process."):
        read_evaluation(folder, protocol, None)
        evaluator = ImageEvaluator(settings, folder, reference, shown)
        evaluator.write({"protocol": protocol, **evaluator.evaluate()})
    return folder


@dataclass(frozen=True)
class ImageEvaluator:
    """Of images in a folder. out: gets the evaluation and the closest pairs. shown: see
    features_see. said: the command line; None: that of this process."""

    settings: EvaluateSettings
    out: Path
    reference: ReferenceImages
    shown: Sequence[int] | None
    said: Sequence[str] | None = field(default=None, kw_only=True)
    notes: Notes = field(default_factory=Notes, init=False)

    @cached_property
    def device(self) -> torch.device:
        return pick_device(self.settings.device)

    @cached_property
    def extractor(self) -> FeatureExtractor:
        settings, cache = self.settings, Path(self.settings.cache).expanduser()
        return FeatureExtractor(
            settings.features,
            settings.perceptual,
            self.device,
            settings.batch_size,
            cache,
            self.shown,
        )

    def evaluate(self) -> Record:
        """What was measured, as evaluation.json has it."""
        assert self.settings.images
        folder = Path(self.settings.images)
        record, _ = self.compare(folder, self.read_images(folder), {})
        return record

    def read_images(self, folder: Path) -> np.ndarray:
        """[N, H, W, C] uint8, of the size and channels of the reference."""
        height, width, channels = self.reference.images.shape[1:]
        return open_images(folder, (height, width), channels, self.notes.say)

    def compare(
        self, folder: Path, images: np.ndarray, others: dict[str, ImageFeatures]
    ) -> tuple[Record, ImageFeatures]:
        """(what the images of folder tell, their features). others: baselines beside noise."""
        reference, notes = self.reference, self.notes
        extractor, settings = self.extractor, self.settings
        frechet = settings.features.frechet
        generated = extractor.extract(images, "generated images")
        train = extractor.extract_cached(reference, "train")
        test = extractor.extract_cached(reference, "test") if reference.held_out else None
        if reference.held_out != "test":
            notes.say(NO_TEST[reference.held_out])
        if reference.test_patients:
            notes.say(IMAGE_BY_IMAGE.format(reference.test_patients))
        about = {"folder": str(folder), "n": len(images), **reference.counts}
        record: Record = {"images": about, **extractor.names}
        if "quality" in settings.wanted:
            record["quality"] = compare_quality(generated, train, test, frechet, notes)
        if "memorization" in settings.wanted:
            record["memorization"] = measure_memorization(generated, train, test, notes)
        if "baselines" in settings.wanted:
            noise = noise_images(len(images), images.shape[1:])
            others = {"noise": extractor.extract(noise, "noise"), **others}
            record["baselines"] = compare_baselines(train, test, others, frechet)
        view = partial(to_picture, shown=self.shown)
        write_closest(self.out, images, generated.pixels, reference, train.pixels, view)
        return record, generated

    def write(self, record: Record) -> None:
        """evaluation.json, and a few lines for the terminal."""
        made_by = {"arguments": self.arguments, **machine(self.device)}
        self._write({"version": VERSION, **record, "notes": self.notes, **made_by})

    @property
    def arguments(self) -> list[str]:
        """Of the command line, but for what was evaluated: with these another run is judged
        alike."""
        said = self.said
        if said is None:
            said = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
        return [argument for argument in said if argument.split("=")[0] not in JUDGED]

    def _write(self, record: Record) -> None:
        write_sealed(self.out / EVALUATION, record, indent=1)
        for line in self.notes:
            log.info("note: %s", line)
        log.info("%s\n%s", self.out / EVALUATION, summarize(record))


@dataclass(frozen=True)
class RunEvaluator(ImageEvaluator):
    """Of a run: of images that it makes, or of a folder of images (settings.images), and of its
    network. sampler: its config."""

    run: TrainedRun
    sampler: Record

    def evaluate(self) -> Record:
        tell_patients(self.reference, self.notes)
        if self.settings.images:
            return super().evaluate()
        settings, run, notes, network = self.settings, self.run, self.notes, self.network
        record: Record = {"images": self.reference.counts, **self.extractor.names}
        generated = None
        if set(settings.wanted) - set(OF_NETWORK):
            folder, images = self.generated
            if run.checkpoint.classes and settings.label not in (None, "all"):
                null = settings.label == NULL_CLASS
                of = "of the null class" if null else f"of class {settings.label} alone"
                notes.say(
                    f"the images are {of}, and those that they are compared with of all classes"
                )
            record, generated = self.compare(folder, images, self._untouched_source())
        if "loss" in settings.wanted:
            record["loss"] = network.losses()
        if "bound" in settings.wanted and self.reference.held_out:
            with notes.attempt("bound"):
                record["bound"] = network.bound(
                    settings.bound_images,
                    settings.bound_steps,
                    settings.sampler.clip,
                    settings.batch_size,
                )
        if "forgetting" in settings.wanted and run.has_source and generated:
            with notes.attempt("forgetting"):
                record["forgetting"] = network.forgetting(generated, self.extractor)
        return record | self.audit(settings.wanted)

    def audit(self, wanted: Sequence[str]) -> Record:
        """Those of AUDITS that are wanted; {} is what could not be done, which the notes say."""
        settings, found = self.settings, Record()
        if "membership" in wanted:
            found["membership"] = audit_membership(self.network)
        if "classification" in wanted:
            found["classification"] = audit_classification(
                lambda: self.generated[1],
                settings.label,
                self.run,
                self.reference,
                self.device,
                self.notes,
            )
        return found

    def add(self, there: Record, lacking: Sequence[str]) -> Record:
        """What an evaluation lacks, which was made before there was such a metric or without asking
        for it. What it says of its code and machine stays, and these are said of what is added."""
        log.info("%s gets %s", self.out / EVALUATION, " and ".join(lacking))
        added, by = self.audit(lacking), dict.fromkeys(lacking, machine(self.device))
        self.notes[:0] = [line for line in there["notes"] if line not in self.notes]
        record = {**there, **added, "added_by": there.get("added_by", {}) | by}
        self._write(record | {"notes": self.notes, "arguments": self.arguments})
        return record

    @cached_property
    def network(self) -> NetworkMetrics:
        draws = self.settings.held_out_draws
        return NetworkMetrics(self.run, self.device, self.reference, draws, self.notes)

    @cached_property
    def generated(self) -> tuple[Path, np.ndarray]:
        """The images of the run, and where they are."""
        run = self.run
        return self.sample(run.weights, run.trained.digests[run.which], run.directory / "generated")

    def sample(
        self, weights: dict[str, Tensor], digest: str, place: Path
    ) -> tuple[Path, np.ndarray]:
        """(a folder below place, images 0 .. n - 1 of these weights); those that are missing in it
        are made."""
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
            "weights": digest,
            "seed": settings.seed,
            "sampler": self.sampler,
            "label": label,
            "precision": settings.precision,
        }
        out = _writable(place, self.out) / f"evaluation_{sha256_of(made_by)[:8]}"
        log.info("%d images in %s", settings.n, out)
        with locked(out / ".lock"):  # of two evaluations at once, the second finds them made
            claim_folder(out, made_by)
            model = Pipeline(replace(self.run.trained, load=lambda _: weights), self.device)
            write_missing(out, request, model)
        return out, self.read_images(out)[: settings.n]

    def _untouched_source(self) -> dict[str, ImageFeatures]:
        """Of images of the run's source, which all runs of that source share."""
        if "baselines" not in self.settings.wanted or not self.run.has_source:
            return {}
        with self.notes.attempt("the untouched source"):
            weights = self.run.untouched_weights
            sums = {
                name: [w.double().sum().item(), w.double().square().sum().item()]
                for name, w in weights.items()
            }
            digest = sha256_of(sums)
            # "floors": where earlier versions have made these images
            place = self.run.directory.parent / "floors" / f"untouched_{digest[:8]}"
            _, images = self.sample(weights, digest, place)
            what = "images of the untouched source"
            return {"untouched source": self.extractor.extract(images, what)}
        return {}


def _writable(place: Path, otherwise: Path) -> Path:
    """Where images go: place, or, in a run of somebody else that may be read alone, otherwise."""
    there = next(p for p in (place, *place.absolute().parents) if p.exists())
    return place if os.access(there, os.W_OK) else otherwise


def numbers_of(node: Any, path: str = "") -> dict[str, float]:
    """The values in a part of evaluation.json, by their path in it, such as quality/test/kid."""
    if isinstance(node, dict) and "value" not in node:
        below = (numbers_of(part, f"{path}/{key}".lstrip("/")) for key, part in node.items())
        return {name: value for part in below for name, value in part.items()}
    value = node["value"] if isinstance(node, dict) else node
    return {path: value} if type(value) in (int, float) else {}


SHOWN = {
    "loss on {} images": ("loss", "target", "loss"),
    "KID to {} images": ("quality", "test", "kid"),
    "precision": ("quality", "test", "precision"),
    "coverage": ("quality", "test", "coverage"),
    "rho (copies: below 0.5)": ("memorization", "features", "rho"),
    "copy share": ("memorization", "pixels", "copy_share"),
    "change of the source's loss": ("loss", "source_change"),
    "bound, bits per value": ("bound", "bits"),
    "membership, AUC (chance: 0.5)": ("membership", "auc"),
    "the same of its source": ("membership", "source", "auc"),
    "AUROC of a classifier": ("classification", "real"),
    "its gain by these images": ("classification", "gain"),
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
