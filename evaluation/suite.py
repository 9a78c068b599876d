"""All that feature matrices tell of one set of generated images, beside the baselines that say what
the numbers are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.batches import to_uint8
from evaluation.image_features import FeatureExtractor, ImageFeatures, ReferenceImages
from metrics.estimate import estimate
from metrics.frechet import frechet_distance, frechet_infinity
from metrics.inception_score import inception_score
from metrics.intra_cluster import intra_distance
from metrics.kid import kid, kid_replicates
from metrics.memorization import memorization
from metrics.prdc import FEWEST, manifold
from runtime.errors import UserError
from runtime.seeds import generator

# images on each side: below the first no Fréchet distance is given, below the second it is said to
# be biased
FEWEST_FRECHET, ENOUGH_FRECHET = 30, 2000
Record = dict[str, Any]


class Notes(list[str]):
    """What could not be computed, and why; each thing said once."""

    def attempt(self, record: Record, key: str, what: str, compute: Callable[[], Any]) -> None:
        """record[key] = compute(), or a note of why not."""
        try:
            record[key] = compute()
        except UserError as error:
            self.say(f"{what}: {error}")

    def say(self, line: str) -> None:
        if line not in self:
            self.append(line)


def compare_images(
    extractor: FeatureExtractor,
    images: np.ndarray,
    reference: ReferenceImages,
    others: dict[str, ImageFeatures],
    wanted: Sequence[str],
    notes: Notes,
) -> tuple[Record, ImageFeatures, ImageFeatures]:
    """The metrics that are wanted of generated images -> (the record, the features of the generated
    and of the training images). others: generators to compare with, as baselines."""
    frechet = extractor.features.frechet
    generated = extractor.extract(images, np.arange(len(images)), "generated images")
    train = extractor.extract_cached(reference, "train")
    test = extractor.extract_cached(reference, "test") if reference.held_out else None
    if test is None:
        notes.say(
            "there are no held-out images to compare with, so that a generator that copies cannot "
            "be told from a good one"
        )
    if reference.held_out == "validation":
        notes.say(
            "there is no test split: the held-out images are the validation images, by which the "
            "checkpoint was chosen"
        )
    record: Record = extractor.names
    if "quality" in wanted:
        record["quality"] = compare_quality(generated, train, test, frechet, notes)
    if "memorization" in wanted:
        record["memorization"] = measure_memorization(generated, train, test, notes)
    if "baselines" in wanted:
        record["baselines"] = compare_baselines(train, test, others, frechet)
    return record, generated, train


def compare_quality(
    generated: ImageFeatures,
    train: ImageFeatures,
    test: ImageFeatures | None,
    frechet: str,
    notes: Notes,
) -> Record:
    """How near the generated images are to those that were held out, and to those that were trained
    on."""
    record: Record = {
        "train": _distances(
            generated.features, train.features, "the training images", frechet, notes
        )
    }
    if test is not None:
        record["test"] = _distances(
            generated.features, test.features, "the held-out images", frechet, notes
        )
    if (logits := generated.logits) is not None:
        found: Record = {}
        notes.attempt(found, "is", "Inception score", lambda: inception_score(logits))
        if "is" in found:
            record["inception_score"] = dict(zip(("mean", "std"), found["is"], strict=True))
    ours, theirs = generated.perceptual, train.perceptual
    if ours is not None and theirs is not None:
        notes.attempt(
            record,
            "intra",
            "distance within clusters",
            lambda: intra_distance(ours, theirs)._asdict(),
        )
    return record


def _distances(generated: Tensor, real: Tensor, split: str, frechet: str, notes: Notes) -> Record:
    """Of generated to real features. split: what real is, for notes. frechet: what the Fréchet
    distance in these features is called."""
    record: Record = {}
    fewest = min(len(generated), len(real))
    notes.attempt(
        record,
        "kid",
        f"KID to {split}",
        lambda: estimate(kid(generated, real), kid_replicates(generated, real), fewest),
    )
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
        notes.attempt(
            record, "frechet", f"{frechet} to {split}", lambda: frechet_distance(generated, real)
        )
        notes.attempt(
            record,
            "frechet_infinity",
            f"{frechet} to {split}, extrapolated",
            lambda: frechet_infinity(generated, real),
        )
    found: Record = {}
    if fewest < FEWEST:
        notes.say(
            f"precision, recall, density and coverage of {split}: left out, {fewest} images on "
            f"one side; below {FEWEST} the balls around so few images reach so far that images "
            "without any detail lie in most of them"
        )
    else:
        notes.attempt(
            found,
            "prdc",
            f"precision, recall, density and coverage of {split}",
            lambda: manifold(real, generated),
        )
    return record | found.get("prdc", {})


def measure_memorization(
    generated: ImageFeatures, train: ImageFeatures, test: ImageFeatures | None, notes: Notes
) -> Record:
    """Whether the generated images are those that were trained on, by features and by pixels."""
    record: Record = {}
    for space in ("features", "pixels"):
        ours, theirs = getattr(generated, space), getattr(train, space)
        held_out = ours[:0] if test is None else getattr(test, space)
        notes.attempt(
            record, space, f"memorization by {space}", partial(memorization, ours, theirs, held_out)
        )
        for line in record.get(space, {}).pop("notes", []):
            notes.say(f"by {space}: {line}")
    return record


def compare_baselines(
    train: ImageFeatures, test: ImageFeatures | None, others: dict[str, ImageFeatures], frechet: str
) -> Record:
    """Real images as if they had been generated, and generators that nobody wants. others: name ->
    images, such as those of the untouched source."""
    notes, found = Notes(), {}  # notes: said of the generated images already
    for name, features in {"memoriser": train, **others}.items():
        found[name] = {
            "quality": compare_quality(features, train, test, frechet, notes),
            "memorization": measure_memorization(features, train, test, notes),
        }
    if test is not None:
        found["train against test"] = {"quality": {"test": found["memoriser"]["quality"]["test"]}}
        if len(test.features) >= 4:
            order = torch.randperm(len(test.features), generator=generator("halves"))
            halves = (
                test.features[order[: len(order) // 2]],
                test.features[order[len(order) // 2 :]],
            )
            distances = _distances(*halves, "the held-out images", frechet, notes)
            found["half of test against the other half"] = {"quality": {"test": distances}}
    return found


def noise_images(n: int, shape: Sequence[int]) -> np.ndarray:
    """n images of nothing but noise, [n, H, W, C] uint8: what sampling begins with."""
    noise = torch.stack(
        [torch.randn(*shape, generator=generator("noise floor", k)) for k in range(n)]
    )
    return to_uint8(noise.permute(0, 3, 1, 2)).numpy()
