"""One evaluation: generated images, the images to compare them with and the network, brought to what evaluation/ computes."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from config.run_config import RunConfig
from data.batches import to_uint8, to_x0
from data.splits import spread
from diffusion.denoiser import Denoiser, clip_x0
from evaluation import suite as judge
from evaluation.trained_run import Finished
from metrics.bootstrap import bootstrap_mean, resampled
from metrics.bound import Bound, bound, every, strata
from metrics.estimate import estimate
from metrics.features import Features, extract
from metrics.features.distances import Pixels
from metrics.held_out_loss import HeldOut, about_the_curve, grid_of, held_out_errors
from metrics.kid import kid, kid_replicates
from metrics.weight_change import unmatched, weight_change
from runtime.content import sha256_of
from runtime.files import locked, read_checked, write_checked
from runtime.seeds import derive, generator
from sampling.image_folder import Making, claim, write_missing

log = logging.getLogger(__name__)
Record = dict[str, Any]


@dataclass(frozen=True)
class Reference:
    """The images [*, H, W, C] uint8 that generated ones are compared with. rows: of "train", and of "test" where something was held out.
    held_out: the split that stands for the test, or None. digests: of what decides the pixels, by "train" and "test"."""

    images: np.ndarray
    rows: dict[str, np.ndarray]
    held_out: str | None
    digests: dict[str, str]

    @staticmethod
    def of(images: np.ndarray, splits: dict[str, np.ndarray], about: Sequence[Any]) -> Reference:
        """about: what decides the pixels of images."""
        held_out = next((split for split in ("test", "validation") if len(splits.get(split, ()))), None)
        rows = {"train": splits["train"]} | ({"test": splits[held_out]} if held_out else {})
        return Reference(images, rows, held_out, {name: sha256_of([list(about), part.tolist()]) for name, part in rows.items()})


@dataclass
class Looking:
    """Images in the features that an evaluation measures in. cache: of features that other evaluations need too."""

    features: Features
    perceptual: Features
    device: torch.device
    batch_size: int
    cache: Path

    def seen(self, images: np.ndarray, rows: np.ndarray, what: str) -> judge.Seen:
        look = partial(extract, images=images, rows=rows, batch_size=self.batch_size, device=self.device)
        embedded = look(self.features, desc=f"{self.features.short} features of {what}")
        perceptual = embedded if self._one else look(self.perceptual, desc=f"{self.perceptual.short} features of {what}")
        return judge.Seen(embedded.features, _pixels(images, rows, what), embedded.logits, perceptual.features)

    def kept(self, reference: Reference, split: str) -> judge.Seen:
        """The same of the images of a split, whose features stay in the cache."""
        rows, what = reference.rows[split], {"train": "training images", "test": "held-out images"}[split]

        def features(kind: Features) -> Tensor:
            path = self.cache / "features" / f"{sha256_of([kind.identity, reference.digests[split]])[:16]}.npy"
            with locked(path.with_suffix(".lock")):
                if (data := read_checked(path)) is not None:
                    return torch.from_numpy(np.load(io.BytesIO(data)))
                found = extract(kind, reference.images, rows, self.batch_size, device=self.device, desc=f"{kind.short} features of {what}")
                write_checked(path, npy(found.features))
                return found.features

        return judge.Seen(features(self.features), _pixels(reference.images, rows, what), None, features(self.perceptual))

    @property
    def names(self) -> Record:
        return {"features": {name: getattr(self.features, name) for name in ("name", "short", "frechet")},
                "perceptual": {name: getattr(self.perceptual, name) for name in ("name", "short")}}

    @property
    def _one(self) -> bool:
        return self.features.identity == self.perceptual.identity


def _pixels(images: np.ndarray, rows: np.ndarray, what: str) -> Tensor:
    return extract(Pixels(), images, rows, desc=f"pixels of {what}").features


def npy(tensor: Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, tensor.numpy())
    return file.getvalue()


def samples(denoiser: Denoiser, config: RunConfig, classes: Sequence[str], making: Making, made_by: Record, below: Path) -> Path:
    """The folder of images 0 .. n - 1; those that are missing in it are made. made_by: all that decides them."""
    out = below / f"evaluation_{sha256_of(made_by)[:8]}"
    log.info("%d images in %s", making.n, out)
    with locked(out / ".lock"):  # of two evaluations at once, the second finds them made
        claim(out, made_by)
        write_missing(out, making, denoiser, denoiser, classes if denoiser.network.classes else [], config.image_shape)
    return out


def images_judged(looking: Looking, images: np.ndarray, reference: Reference, others: dict[str, judge.Seen], wanted: Sequence[str],
                  notes: judge.Notes) -> tuple[Record, judge.Seen, judge.Seen]:
    """What feature matrices tell: (the record, the generated images, the training images). others: generators that nobody wants."""
    frechet = looking.features.frechet
    generated = looking.seen(images, np.arange(len(images)), "generated images")
    train = looking.kept(reference, "train")
    test = looking.kept(reference, "test") if reference.held_out else None
    if test is None:
        notes.say("there are no held-out images to compare with, so that a generator that copies cannot be told from a good one")
    if reference.held_out == "validation":
        notes.say("there is no test split: the held-out images are the validation images, by which the checkpoint was chosen")
    record: Record = looking.names
    if "quality" in wanted:
        record["quality"] = judge.quality(generated, train, test, frechet, notes)
    if "memorization" in wanted:
        record["memorization"] = judge.remembered(generated, train, test, notes)
    if "floors" in wanted:
        record["floors"] = judge.floors(train, test, halves(test), others, frechet)
    return record, generated, train


def halves(test: judge.Seen | None) -> tuple[Tensor, Tensor] | None:
    """The held-out features in two, at random."""
    if test is None or len(test.features) < 4:
        return None
    order = torch.randperm(len(test.features), generator=generator("halves"))
    return test.features[order[: len(order) // 2]], test.features[order[len(order) // 2 :]]


def noise_images(n: int, shape: Sequence[int]) -> np.ndarray:
    """n images of nothing but noise, [n, H, W, C] uint8: what sampling begins with."""
    noise = torch.stack([torch.randn(*shape, generator=generator("noise floor", k)) for k in range(n)])
    return to_uint8(noise.permute(0, 3, 1, 2)).numpy()


@dataclass
class OfNetwork:
    """What only the network of a run can tell: losses, the bound, and what became of the source."""

    run: Finished
    device: torch.device
    reference: Reference
    draws: int
    notes: judge.Notes

    @cached_property
    def denoiser(self) -> Denoiser:
        return self.run.denoiser(self.device)

    @cached_property
    def untouched(self) -> Denoiser:
        return self.run.config.frozen_denoiser(self.run.untouched, self.device)

    def losses(self) -> Record:
        """Of the held-out images and, of a run that had a source, of the source's images: its own loss, and that of the source itself."""
        found: Record = {}
        if self.reference.held_out:
            dataset, _ = self.run.images
            found["target"] = of_errors(self._errors(self.denoiser, dataset.images, dataset.labels, self.reference.rows["test"], "target"))
        if self.run.has_source:
            self.notes.attempt(found, "of source", "the source's images and its loss", lambda: self.run.source_images())
        if "of source" in found:
            images, labels, rows, split = found.pop("of source")
            if split == "train":
                self.notes.say("the loss on the source is that of images that it was trained on: fewer than 100 were held out")
            now, then = (self._errors(d, images, labels, rows, "source") for d in (self.denoiser, self.untouched))
            change = now._replace(errors=now.errors - then.errors)
            found |= {"source": of_errors(now), "source_start": of_errors(then), "source_change": mean_error(change)}
        return found

    def _errors(self, denoiser: Denoiser, images, labels, rows, what: str) -> HeldOut:
        count, each = grid_of(len(rows), self.draws)
        with tqdm(total=count * each, desc=f"loss on the {what}", unit="image", delay=2) as bar:
            return held_out_errors(denoiser, images, labels, rows, self.draws, bar.update)

    def bound(self, count: int, steps: int | None, clip: bool) -> Record:
        """The variational bound of so many held-out images, evenly spread, each T cut into so many strata; given their classes, where the
        network knows some, as in losses(). clip: as its samples have it; the mean of a reverse step stays a function of x_t."""
        dataset, _ = self.run.images
        rows = spread(self.reference.rows["test"], count, dataset.labels)
        schedule = self.denoiser.schedule
        timesteps = every(schedule.steps) if steps is None or steps >= schedule.steps else strata(schedule.steps, steps)
        x0 = to_x0(torch.from_numpy(self.reference.images[rows]).to(self.device))
        denoise = partial(self.denoiser, condition={"label": torch.from_numpy(dataset.labels[rows]).to(self.device)})
        denoise = clip_x0(denoise, schedule) if clip else denoise
        with tqdm(total=len(timesteps), desc="bound", unit="step", delay=2) as bar:
            found = bound(denoise, schedule, x0, [derive("bound", k) for k in range(len(rows))], timesteps, bar.update)
        return of_bound(found, timesteps)

    def forgetting(self, generated: judge.Seen, looking: Looking) -> Record:
        """How far the images and the weights are from the source's."""
        found: Record = {}
        self.notes.attempt(found, "kid_source", "KID to the source", lambda: self._kid_source(generated, looking))
        start, now = self.run.start, self.run.trained_weights
        found["weights"] = weight_change(now, start)
        if other := unmatched(now, start):
            self.notes.say(f"the change of weights leaves out {', '.join(other)}: the start has none of that shape")
        return found

    def _kid_source(self, generated: judge.Seen, looking: Looking) -> Record:
        images, _, rows, _ = self.run.source_images()
        digest = sha256_of([self.run.source.digests, images.shape[1:], self.run.data.resample, rows.tolist()])
        theirs = looking.kept(Reference(images, {"train": rows}, None, {"train": digest}), "train").features
        ours = generated.features
        return estimate(kid(ours, theirs), kid_replicates(ours, theirs), min(len(ours), len(theirs)))


def of_errors(held_out: HeldOut) -> Record:
    values = held_out.values()
    return {"loss": mean_error(held_out), "by_decile": [values.get(f"loss_t{d}") for d in range(10)]}


def mean_error(held_out: HeldOut) -> Record:
    """With its interval over images: the draws of one image go together, and the t that it has do not count."""
    value, images = held_out.errors.mean(), int(held_out.image.max()) + 1
    residual = about_the_curve(held_out.errors, held_out.t)
    total = torch.zeros(images, dtype=torch.float64).index_add_(0, held_out.image, residual - residual.mean())
    return estimate(value.item(), value + resampled(images, 200, "held-out") @ total / len(residual), images)


def of_bound(found: Bound, timesteps: Sequence[range]) -> Record:
    """The bits with their interval over images, and for each stratum of t its length, the mean t drawn in it and what its terms add."""
    terms = [{"t": t.double().mean().item(), "steps": len(stratum), "bits": term.mean().item()}
             for t, stratum, term in zip(found.t, timesteps, found.terms, strict=True)]
    bits = estimate(found.bits.mean().item(), bootstrap_mean(found.bits, key=("bound",)), len(found.bits))
    return {"bits": bits, "prior": found.prior.mean().item(), "terms": terms, "images": len(found.bits)}
