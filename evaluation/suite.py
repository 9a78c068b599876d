"""One set of generated images against the images of a run: the part of an evaluation that needs feature matrices alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from metrics.estimate import estimate
from metrics.frechet import frechet_distance, frechet_infinity
from metrics.inception_score import inception_score
from metrics.intra_cluster import intra_distance
from metrics.kid import kid, kid_replicates
from metrics.memorization import memorization
from metrics.prdc import FEWEST, manifold
from runtime.errors import UserError

FEWEST_FRECHET, ENOUGH_FRECHET = 30, 2000  # images on each side: below the first none is given, below the second it is said to be biased

Record = dict[str, Any]


class Seen(NamedTuple):
    """A set of images as each kind of features sees it, [N, D] each. logits: of Inception. perceptual: for the distance within clusters."""

    features: Tensor
    pixels: Tensor
    logits: Tensor | None = None
    perceptual: Tensor | None = None


class Notes(list):
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


def against(generated: Tensor, real: Tensor, split: str, frechet: str, notes: Notes) -> Record:
    """Distances of generated to real features. split: what real is, for notes. frechet: what the Fréchet distance in these features is
    called."""
    record: Record = {}
    fewest = min(len(generated), len(real))
    notes.attempt(record, "kid", f"KID to {split}", lambda: estimate(kid(generated, real), kid_replicates(generated, real), fewest))
    if fewest < FEWEST_FRECHET:
        notes.say(f"{frechet} to {split}: left out, {fewest} images on one side; it wants {ENOUGH_FRECHET}, and means nothing below "
                  f"{FEWEST_FRECHET}")
    else:
        if fewest < ENOUGH_FRECHET:
            notes.say(f"{frechet} to {split}: {fewest} images on one side, and it wants {ENOUGH_FRECHET}: it is too high by a bias that "
                      "depends on the images; compare KID")
        notes.attempt(record, "frechet", f"{frechet} to {split}", lambda: frechet_distance(generated, real))
        notes.attempt(record, "frechet_infinity", f"{frechet} to {split}, extrapolated", lambda: frechet_infinity(generated, real))
    found: Record = {}
    if fewest < FEWEST:
        notes.say(f"precision, recall, density and coverage of {split}: left out, {fewest} images on one side; below {FEWEST} the balls "
                  "around so few images reach so far that images without any detail lie in most of them")
    else:
        notes.attempt(found, "manifold", f"precision, recall, density and coverage of {split}", lambda: manifold(real, generated))
    return record | found.get("manifold", {})


def quality(generated: Seen, train: Seen, test: Seen | None, frechet: str, notes: Notes) -> Record:
    """How near the generated images are to those that were held out, and to those that were trained on."""
    record: Record = {"train": against(generated.features, train.features, "the training images", frechet, notes)}
    if test is not None:
        record["test"] = against(generated.features, test.features, "the held-out images", frechet, notes)
    if generated.logits is not None:
        found: Record = {}
        notes.attempt(found, "is", "Inception score", lambda: inception_score(generated.logits))
        if "is" in found:
            record["inception_score"] = dict(zip(("mean", "std"), found["is"], strict=True))
    if generated.perceptual is not None and train.perceptual is not None:
        notes.attempt(record, "intra", "distance within clusters",
                      lambda: intra_distance(generated.perceptual, train.perceptual)._asdict())
    return record


def remembered(generated: Seen, train: Seen, test: Seen | None, notes: Notes) -> Record:
    """Whether the generated images are those that were trained on, by features and by pixels."""
    record: Record = {}
    for space in ("features", "pixels"):
        sets = [getattr(generated, space), getattr(train, space), getattr(generated, space)[:0] if test is None else getattr(test, space)]
        notes.attempt(record, space, f"memorization by {space}", lambda sets=sets: memorization(*sets))
        for line in record.get(space, {}).pop("notes", []):
            notes.say(f"by {space}: {line}")
    return record


def judged(generated: Seen, train: Seen, test: Seen | None, frechet: str, notes: Notes) -> Record:
    return {"quality": quality(generated, train, test, frechet, notes), "memorization": remembered(generated, train, test, notes)}


def floors(train: Seen, test: Seen | None, halves: tuple[Tensor, Tensor] | None, others: dict[str, Seen], frechet: str) -> Record:
    """What the numbers beside are worth: real images judged as if they had been generated, and the generators that nobody wants.
    halves: the held-out features, cut in two. others: name -> images, such as those of the untouched source."""
    notes = Notes()  # said of the generated images already
    found = {name: judged(seen, train, test, frechet, notes) for name, seen in {"memoriser": train, **others}.items()}
    if test is not None:
        found["train against test"] = {"quality": {"test": found["memoriser"]["quality"]["test"]}}
    if halves is not None:
        found["half of test against the other half"] = {"quality": {"test": against(*halves, "the held-out images", frechet, notes)}}
    return found
