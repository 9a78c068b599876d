"""All that feature matrices tell of one set of generated images, beside the baselines that say what
the numbers are worth."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from data.pixels import to_uint8
from evaluation.image_features import ImageFeatures
from metrics.estimate import Estimate, Record, estimate
from metrics.frechet import frechet_distance, frechet_infinity
from metrics.inception_score import inception_score
from metrics.intra_cluster import intra_distance
from metrics.kid import kid, kid_replicates
from metrics.memorization import memorization
from metrics.precision_recall import FEWEST, manifold
from runtime.errors import UserError
from runtime.seeds import generator

# images on each side: below the first no Fréchet distance is given, below the second it is said to
# be biased
FEWEST_FRECHET, ENOUGH_FRECHET = 30, 2000


class Notes(list[str]):
    """What could not be computed, and why; each thing said once."""

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """What a UserError inside leaves out is a note of why."""
        try:
            yield
        except UserError as error:
            self.say(f"{what}: {error}")

    def say(self, line: str) -> None:
        if line not in self:
            self.append(line)


def compare_quality(
    generated: ImageFeatures,
    train: ImageFeatures,
    test: ImageFeatures | None,
    frechet: str,
    notes: Notes,
) -> Record:
    """How near the generated images are to those that were held out, and to those that were trained
    on."""
    ours, theirs = generated.features, train.features
    record: Record = {"train": _distances(ours, theirs, "the training images", frechet, notes)}
    if test is not None:
        record["test"] = _distances(ours, test.features, "the held-out images", frechet, notes)
    if generated.logits is not None:
        with notes.attempt("Inception score"):
            mean, std = inception_score(generated.logits)
            record["inception_score"] = {"mean": mean, "std": std}
    record["intra"] = intra_distance(generated.perceptual, train.perceptual)._asdict()
    return record


def _distances(generated: Tensor, real: Tensor, split: str, frechet: str, notes: Notes) -> Record:
    """Of generated to real features. split: what real is, for notes. frechet: what the Fréchet
    distance in these features is called."""
    record: Record = {}
    fewest = min(len(generated), len(real))
    with notes.attempt(f"KID to {split}"):
        record["kid"] = estimate_kid(generated, real)
    if fewest < FEWEST_FRECHET:
        notes.say(
            f"{frechet} to {split}: left out, {fewest} images on one side; it wants "
            f"{ENOUGH_FRECHET}, and means nothing below {FEWEST_FRECHET}"
        )
    else:
        if fewest < ENOUGH_FRECHET:
            notes.say(
                f"{frechet} to {split}: {fewest} images on one side, and it wants "
                f"{ENOUGH_FRECHET}: it is too high by a bias that depends on the images; compare "
                "KID"
            )
        record["frechet"] = frechet_distance(generated, real)
        record["frechet_infinity"] = frechet_infinity(generated, real)
    prdc = f"precision, recall, density and coverage of {split}"
    if fewest < FEWEST:
        notes.say(
            f"{prdc}: left out, {fewest} images on one side; below {FEWEST} the balls around so "
            "few images reach so far that images without any detail lie in most of them"
        )
    else:
        with notes.attempt(prdc):
            record |= manifold(real, generated)
    return record


def estimate_kid(x: Tensor, y: Tensor) -> Estimate:
    return estimate(kid(x, y), kid_replicates(x, y), min(len(x), len(y)))


def measure_memorization(
    generated: ImageFeatures, train: ImageFeatures, test: ImageFeatures | None, notes: Notes
) -> Record:
    """Whether the generated images are those that were trained on, by features and by pixels."""
    record: Record = {}
    for space in ("features", "pixels"):
        ours, theirs = getattr(generated, space), getattr(train, space)
        held_out = ours[:0] if test is None else getattr(test, space)
        record[space] = memorization(ours, theirs, held_out, None if test is None else test.groups)
        for line in record[space].pop("notes"):
            notes.say(f"by {space}: {line}")
    return record


def compare_baselines(
    train: ImageFeatures,
    test: ImageFeatures | None,
    others: dict[str, ImageFeatures],
    frechet: str,
) -> Record:
    """Real images as if they had been generated, and generators that nobody wants. others: name ->
    images, such as those of the untouched source."""
    notes = Notes()  # said of the generated images already
    found: Record = {
        name: {
            "quality": compare_quality(features, train, test, frechet, notes),
            "memorization": measure_memorization(features, train, test, notes),
        }
        for name, features in {"memoriser": train, **others}.items()
    }
    if test is not None:
        found["train against test"] = {"quality": {"test": found["memoriser"]["quality"]["test"]}}
        if len(test.features) >= 4:
            half = len(test.features) // 2
            order = torch.randperm(len(test.features), generator=generator("halves"))
            one, other = test.features[order[:half]], test.features[order[half:]]
            distances = _distances(one, other, "the held-out images", frechet, notes)
            found["half of test against the other half"] = {"quality": {"test": distances}}
    return found


def noise_images(n: int, shape: Sequence[int]) -> np.ndarray:
    """n images of nothing but noise, [n, H, W, C] uint8: what sampling begins with."""
    draws = [generator("noise floor", k) for k in range(n)]
    noise = torch.stack([torch.randn(*shape, generator=draw) for draw in draws])
    return to_uint8(noise.permute(0, 3, 1, 2)).numpy()
