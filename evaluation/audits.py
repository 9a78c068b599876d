"""Two questions to a run that no comparison of images answers: whether its network gives away what
it was trained on, and whether its images help a classifier."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm import tqdm

from data.splits import spread
from diffusion.denoiser import Denoiser
from evaluation.network_metrics import NetworkMetrics
from evaluation.protocol import ReferenceImages
from evaluation.suite import Notes
from evaluation.trained_run import TrainedRun, image_classes
from metrics.classification import FEWEST, Labelled, classification, judged_classes
from metrics.estimate import Record
from metrics.membership import (
    IMAGES,
    attack_by_decile,
    errors_at_times,
    loss_attack,
    paired_difference,
)
from metrics.resampling import Groups, groups_of
from runtime.errors import UserError

log = logging.getLogger("evaluate")
MOST = 2000  # test images that a classifier is judged on


def audit_membership(network: NetworkMetrics) -> Record:
    """Whether the loss tells training images from those held out, of the run and of its untouched
    source, which saw neither: what it tells apart is how the two sets differ. {} where nothing was
    held out."""
    run, reference, notes = network.run, network.reference, network.notes
    if not reference.held_out:
        notes.say(
            "membership: left out, there are no held-out images to tell from those trained on"
        )
        return {}
    if reference.held_out == "validation":
        notes.say(
            "membership: those held out are the validation images, by which the checkpoint was "
            "chosen"
        )
    labels = run.images[0].labels
    rows = [spread(reference.rows[split], IMAGES, labels) for split in ("train", "test")]
    groups = groups_of(reference.groups, rows[0]), groups_of(reference.groups, rows[1])
    with notes.attempt("membership: left out"):
        found = _attack(network.denoiser, run, rows, groups, "the run's errors")
        with notes.attempt("membership, by the source"):
            if run.has_source:
                theirs = _attack(network.untouched, run, rows, groups, "the source's errors")
                found["source"] = theirs
                found["excess"] = paired_difference(found["auc"], found["source"]["auc"])
        return found | {"members": len(rows[0]), "non_members": len(rows[1])}
    return {}


def _attack(
    denoiser: Denoiser,
    run: TrainedRun,
    rows: Sequence[np.ndarray],
    groups: tuple[Groups, Groups],
    what: str,
) -> Record:
    """rows, groups: of members and of others."""
    data, errors = run.images[0], []
    with tqdm(total=sum(map(len, rows)), desc=what, unit="image", delay=2) as bar:
        for part in rows:
            errors.append(errors_at_times(denoiser, data.images, data.labels, part, bar.update))
    members, others = errors
    auc = loss_attack(members, others, groups)
    return {"auc": auc, "by_decile": attack_by_decile(members, others)}


def audit_classification(
    make: Callable[[], np.ndarray],
    label: int | str | None,
    run: TrainedRun,
    reference: ReferenceImages,
    device: torch.device,
    notes: Notes,
) -> Record:
    """Whether images of the run help a classifier of its images' classes. {} where there are none
    to tell apart.

    Args:
        make: the generated images [N, H, W, C] uint8, of this label, as in conf/evaluate.yaml.
    """
    data, _ = run.images
    with notes.attempt("classification: left out"):
        if not run.config.classes:
            raise UserError("the network is told no classes, which model.classes=auto is for")
        if label is not None:
            raise UserError(
                f"by label={label} the images are not of the training images' classes as often as "
                "these are"
            )
        real, test, judged = _told_apart(run, reference, notes)
        images, turn = make(), np.array(image_classes(None, run.config.classes, data))
        numbers = np.arange(len(images))
        synthetic = Labelled(images, turn[numbers % len(turn)], numbers)
        log.info("classifiers of %d classes", len(judged))
        found: Record = classification(
            real, synthetic, test, judged, len(data.classes), run.data.flip, device
        )
        return found | {
            "images": {"real": len(real.rows), "synthetic": len(images), "test": len(test.rows)},
            "classes": [data.classes[c] for c in judged],
        }
    return {}


def _told_apart(
    run: TrainedRun, reference: ReferenceImages, notes: Notes
) -> tuple[Labelled, Labelled, list[int]]:
    """Training images, test images of the classes that are judged, and these classes. Raises
    UserError where they are fewer than two."""
    data, _ = run.images
    if not reference.held_out:
        raise UserError("there are no held-out images to judge on")
    real = Labelled(data.images, data.labels, reference.rows["train"], reference.groups)
    rows = spread(reference.rows["test"], MOST, data.labels)
    judged = judged_classes(real, real._replace(rows=rows))
    if len(judged) < 2:
        raise UserError(
            f"of {len(data.classes)} classes {len(judged)} have a training image and {FEWEST} "
            "held-out ones, and it takes two"
        )
    if others := [name for c, name in enumerate(data.classes) if c not in judged]:
        notes.say(
            f"classification: not of {', '.join(others)}, without a training image or {FEWEST} "
            "held-out ones"
        )
    kept = rows[np.isin(data.labels[rows], judged)]
    return real, real._replace(rows=kept), judged
