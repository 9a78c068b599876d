"""What only the network of a run can tell: its losses, the bound, and what became of the source."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from tqdm import tqdm

from data.pixels import to_x0
from data.splits import spread
from diffusion.clipping import clip_x0
from diffusion.denoiser import Denoise, Denoiser
from evaluation.image_features import FeatureExtractor, ImageFeatures
from evaluation.protocol import ReferenceImages, reference_images
from evaluation.suite import Notes, estimate_kid
from evaluation.trained_run import TrainedRun
from metrics.bits_per_dimension import Bound, bound, strata
from metrics.estimate import Estimate, Record, estimate
from metrics.held_out_loss import HeldOut, about_the_curve, grid_of, held_out_errors
from metrics.resampling import bootstrap_mean, resampled
from metrics.weight_change import unmatched, weight_change
from runtime.seeds import derive
from transfer.trained_weights import start_of


@dataclass(frozen=True)
class NetworkMetrics:
    """draws: (image, t, noise) triples of a loss."""

    run: TrainedRun
    device: torch.device
    reference: ReferenceImages
    draws: int
    notes: Notes

    @cached_property
    def denoiser(self) -> Denoiser:
        return self.run.build_denoiser(self.device)

    @cached_property
    def untouched(self) -> Denoiser:
        """The whole source, of a run that had one. Raises UserError where that is gone."""
        return self.run.config.frozen_denoiser(self.run.untouched_weights, self.device)

    def losses(self) -> Record:
        """Of the held-out images and, of a run that had a source, of the source's images: its own
        loss, and that of the source itself."""
        found: Record = {}
        if self.reference.held_out:
            data, _ = self.run.images
            rows = self.reference.rows["test"]
            found["target"] = _loss(
                self._errors(self.denoiser, data.images, data.labels, rows, "target")
            )
        if self.run.has_source:
            with self.notes.attempt("the source's images and its loss"):
                found |= self._source_losses()
        return found

    def _source_losses(self) -> Record:
        images, labels, rows, split = self.run.source_images()
        if split == "train":
            self.notes.say(
                "the loss on the source is that of images that it was trained on: fewer than 100 "
                "were held out"
            )
        now, then = (
            self._errors(denoiser, images, labels, rows, "source")
            for denoiser in (self.denoiser, self.untouched)
        )
        change = now._replace(errors=now.errors - then.errors)
        return {
            "source": _loss(now),
            "source_start": _loss(then),
            "source_change": _mean_error(change),
        }

    def _errors(
        self,
        denoiser: Denoiser,
        images: np.ndarray,
        labels: np.ndarray | None,
        rows: np.ndarray,
        what: str,
    ) -> HeldOut:
        count, each = grid_of(len(rows), self.draws)
        with tqdm(total=count * each, desc=f"loss on the {what}", unit="image", delay=2) as bar:
            return held_out_errors(denoiser, images, labels, rows, self.draws, bar.update)

    def bound(self, count: int, steps: int | None, clip: bool) -> Record:
        """The variational bound of so many held-out images, evenly spread, each T cut into so many
        strata; given their classes, where the network knows some, as in losses(). clip: as its
        samples have it; the mean of a reverse step stays a function of x_t."""
        data, _ = self.run.images
        rows = spread(self.reference.rows["test"], count, data.labels)
        schedule = self.denoiser.schedule
        timesteps = strata(schedule.steps, min(steps or schedule.steps, schedule.steps))
        x0 = to_x0(torch.from_numpy(self.reference.images[rows]).to(self.device))
        condition = {"label": torch.from_numpy(data.labels[rows]).to(self.device)}
        denoise: Denoise = partial(self.denoiser, condition=condition)
        if clip:
            denoise = clip_x0(denoise, schedule)
        seeds = [derive("bound", k) for k in range(len(rows))]
        return _bound(bound(denoise, schedule, x0, seeds, timesteps), timesteps)

    def forgetting(self, generated: ImageFeatures, extractor: FeatureExtractor) -> Record:
        """How far the images and the weights are from the source's."""
        found: Record = {}
        with self.notes.attempt("KID to the source"):
            images, _, rows, _ = self.run.source_images()
            about = [self.run.source.digests, images.shape[1:], self.run.data.resample]
            source = reference_images(images, {"train": rows}, about)
            theirs = extractor.extract_cached(source, "train")
            found["kid_source"] = estimate_kid(generated.features, theirs.features)
        start, now = start_of(self.run.config, self.run.source), self.run.weights
        found["weights"] = weight_change(now, start)
        if other := unmatched(now, start):
            self.notes.say(
                f"the change of weights leaves out {', '.join(other)}: the start has none of "
                "that shape"
            )
        return found


def _loss(held_out: HeldOut) -> Record:
    values = held_out.values()
    return {
        "loss": _mean_error(held_out),
        "by_decile": [values.get(f"loss_t{d}") for d in range(10)],
    }


def _mean_error(held_out: HeldOut) -> Estimate:
    """With its interval over images: the draws of one image go together, and the t that it has do
    not count."""
    value, residual = held_out.errors.mean(), about_the_curve(held_out.errors, held_out.t)
    total = held_out.image.bincount(residual - residual.mean())  # of each image
    replicates = value + resampled(len(total), 200, "held-out") @ total / len(residual)
    return estimate(value.item(), replicates, len(total))


def _bound(found: Bound, timesteps: Sequence[range]) -> Record:
    """The bits with their interval over images, and for each stratum of t its length, the mean t
    drawn in it and what its terms add."""
    terms = [
        {"t": t.double().mean().item(), "steps": len(stratum), "bits": term.mean().item()}
        for t, stratum, term in zip(found.t, timesteps, found.terms, strict=True)
    ]
    bits, images = found.bits, len(found.bits)
    return {
        "bits": estimate(bits.mean().item(), bootstrap_mean(bits, key=("bound",)), images),
        "prior": found.prior.mean().item(),
        "terms": terms,
        "images": images,
    }
