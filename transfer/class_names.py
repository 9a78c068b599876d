"""The rows of a run's class table: those of its images, then those kept of its source."""

import logging
from collections.abc import Sequence

import numpy as np

from config.run_config import RunConfig
from data.dataset import Dataset
from data.image_reader import ImageReader
from runtime.errors import UserError
from transfer.trained_weights import TrainedWeights

log = logging.getLogger(__name__)
TOLD = 20  # classes in a line of the log


def class_names(
    config: RunConfig, images: Sequence[str], origin: TrainedWeights | None
) -> list[str]:
    """Of the rows of the class table, where there is one: the images' classes, or "new" for images
    that have none, then the source's that are kept. Of a network without classes, the images'."""
    if not config.classes:
        return list(images)
    kept = (
        [f"source/{name}" for name in origin.classes]
        if origin and config.source.keep_classes
        else []
    )
    return [*(images or ["new"]), *kept]


def check_number_of_classes(
    config: RunConfig, images: ImageReader, source: RunConfig | None
) -> None:
    """Checks that the class table has the rows that the images and the source ask for.

    Raises:
        UserError: where it has others.
    """
    classes, kept = config.classes, config.kept_classes(source)
    new = max(1, len(images.classes)) if classes else 0
    if classes and classes != new + kept:
        raise UserError(
            f"model.classes={classes}, but {images.name} has {len(images.classes)} classes"
            + (f" and {kept} of the source are kept" if kept else "")
            + f": set model.classes to {new + kept if images.classes or kept else 0}, or to auto."
        )
    if kept and not classes:
        raise UserError(
            f"source.keep_classes=true keeps the {kept} classes of the source in a class table, "
            "and a network with model.classes=0 has none: set model.classes=auto, or "
            "source.keep_classes=false."
        )


def warn_of_renamed_classes(source: Sequence[str], target: Sequence[str], classes: int) -> None:
    """Says where the rows of the source's class table went to classes of other names."""
    if classes and len(source) == len(target) and list(source) != list(target):
        log.warning(
            "the source's classes have other names, and each starts as that of its number: %s",
            ", ".join(
                f"{theirs} -> {ours}" for theirs, ours in list(zip(source, target, strict=True))[:8]
            ),
        )


def tell_classes(dataset: Dataset, classes: int) -> None:
    """Logs the images' classes and how many images of each are trained on: "3 classes: A (40), B
    (30), C (30)"; a warning where the network is not told of them.

    Args:
        classes: of the network.
    """
    if not dataset.classes:
        return
    counts = np.bincount(dataset.labels[dataset.splits["train"]], minlength=len(dataset.classes))
    named = [f"{name} ({count})" for name, count in zip(dataset.classes, counts, strict=True)]
    log.log(
        logging.INFO if classes else logging.WARNING,
        "%d classes: %s%s%s",
        len(named),
        ", ".join(named[:TOLD]),
        f" and {len(named) - TOLD} more" if len(named) > TOLD else "",
        ""
        if classes
        else ", which the network is not told, as model.classes is 0; model.classes=auto tells it",
    )
