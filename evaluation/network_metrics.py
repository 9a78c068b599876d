"""What only the network of a run can tell: its losses, the bound, and what became of the source."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor
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
from metrics.held_out_loss import (
    HeldOut,
    about_the_curve,
    drawn_rows,
    grid_of,
    held_out_errors,
)
from metrics.resampling import Groups, bootstrap_mean, drawn_from, groups_of, resampled
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
            groups = self.reference.groups
            found["target"] = _loss(
                self._errors(self.denoiser, data.images, data.labels, rows, groups, "target")
            )
        if self.run.has_source:
            with self.notes.attempt("the source's images and its loss"):
                found |= self._source_losses()
        return found

    def _source_losses(self) -> Record:
        images, labels, rows, split, groups = self.run.source_images()
        if split == "train":
            self.notes.say(
                "the loss on the source is that of images that it was trained on: fewer than 100 "
                "were held out"
            )
        now, then = (
            self._errors(denoiser, images, labels, rows, groups, "source")
            for denoiser in (self.denoiser, self.untouched)
        )
        change = now._replace(errors=now.errors - then.errors)
        return {
            "source": _loss(now),
            "source_start": _loss(then),
            "source_change": _mean_error(change),
            "source_split": split,
        }

    def _errors(
        self,
        denoiser: Denoiser,
        images: np.ndarray,
        labels: np.ndarray | None,
        rows: np.ndarray,
        groups: Groups,
        what: str,
    ) -> HeldOut:
        """labels, groups: of all images."""
        count, each = grid_of(len(rows), self.draws)
        with tqdm(total=count * each, desc=f"loss on the {what}", unit="image", delay=2) as bar:
            found = held_out_errors(denoiser, images, labels, rows, self.draws, bar.update)
        drawn = groups_of(groups, drawn_rows(rows, self.draws, labels))
        return found._replace(groups=drawn)

    def bound(self, count: int | None, steps: int | None, clip: bool, batch_size: int) -> Record:
        """The variational bound of so many held-out images, evenly spread, or of all, each T cut
        into so many strata, or into every t; given their classes, where the network knows some, as
        in losses(). In batches: which one an image is in changes its bits by rounding alone, and
        what is kept of a batch is a few numbers.

        Args:
            count, steps: None for all. clip: as its samples have it; the mean of a reverse step
                stays a function of x_t.
        """
        held_out, schedule = self.reference.rows["test"], self.denoiser.schedule
        rows = spread(held_out, count or len(held_out), self.run.images[0].labels)
        timesteps = strata(schedule.steps, min(steps or schedule.steps, schedule.steps))
        size, groups = len(rows) * len(timesteps), groups_of(self.reference.groups, rows)
        with tqdm(total=size, desc="bound", unit="term", delay=2) as bar:
            batches = self._bounds(rows, timesteps, clip, batch_size, bar.update)
            return _bound(batches, timesteps, groups)

    def _bounds(
        self,
        rows: np.ndarray,
        timesteps: Sequence[range],
        clip: bool,
        batch_size: int,
        on_step: Callable[[int], object],
    ) -> Iterator[Bound]:
        """Batch by batch; image k has the noise and the t of seed k."""
        data, _ = self.run.images
        schedule = self.denoiser.schedule
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            x0 = to_x0(torch.from_numpy(self.reference.images[batch]).to(self.device))
            condition = {"label": torch.from_numpy(data.labels[batch]).to(self.device)}
            denoise: Denoise = partial(self.denoiser, condition=condition)
            if clip:
                denoise = clip_x0(denoise, schedule)
            seeds = [derive("bound", k) for k in range(start, start + len(batch))]
            yield bound(denoise, schedule, x0, seeds, timesteps, on_step)

    def forgetting(self, generated: ImageFeatures, extractor: FeatureExtractor) -> Record:
        """How far the images and the weights are from the source's."""
        found: Record = {}
        with self.notes.attempt("KID to the source"):
            images, _, rows, *_ = self.run.source_images()
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
    """With its interval over images, or their groups: the draws of one image go together, and the
    t that it has do not count. In a draw of groups it is a ratio (metrics.resampling)."""
    value, residual = held_out.errors.mean(), about_the_curve(held_out.errors, held_out.t)
    total = held_out.image.bincount(residual - residual.mean())  # of each image
    images, groups = len(total), held_out.groups
    drawn = resampled(images, 200, "held-out", groups=groups)
    replicates = value + drawn @ total / (drawn.sum(1) * (len(residual) // images))
    return estimate(value.item(), replicates, *drawn_from((images, groups)))


def _bound(batches: Iterable[Bound], timesteps: Sequence[range], groups: Groups) -> Record:
    """The bits with their interval over images, and for each stratum of t its length, the mean t
    drawn in it and what its terms add. Of a batch its sums over images are kept, and the bits of
    each image."""
    of_images: list[Tensor] = []
    prior = 0.0
    t, terms = torch.zeros(2, len(timesteps), dtype=torch.float64)
    for found in batches:
        of_images.append(found.bits)
        prior += found.prior.sum().item()
        t += found.t.sum(1)
        terms += found.terms.sum(1)
    bits = torch.cat(of_images)
    images = len(bits)
    replicates = bootstrap_mean(bits, key=("bound",), groups=groups)
    return {
        "bits": estimate(bits.mean().item(), replicates, *drawn_from((images, groups))),
        "prior": prior / images,
        "terms": [
            {"t": t_k / images, "steps": len(stratum), "bits": term / images}
            for stratum, t_k, term in zip(timesteps, t.tolist(), terms.tolist(), strict=True)
        ],
        "images": images,
    }
