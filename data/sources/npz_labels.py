"""The classes of the images of an .npz, by its arrays of labels."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.sources.npz_content import Header, read_array
from data.sources.npz_keys import Keys
from runtime.errors import UserError

log = logging.getLogger("data")


class _NoClasses(Exception):
    """Why labels cannot be used as classes."""


def read_labels(
    path: Path, headers: dict[str, Header], keys: Keys, names: Sequence[str] | None
) -> tuple[list[str], list[int]]:
    """Names of the classes and the class of each image; ([], zeros) with a word in the log where
    the labels are no classes.

    Raises:
        UserError: where names do not fit them, and for labels that are not one an image, or are
            pickled.
    """
    labelled = {image: label for image, label in keys.values() if label}
    for image, label in labelled.items():
        if headers[label].shape[:1] != headers[image].shape[:1]:
            raise UserError(
                f"{path}: {image} is {headers[image]} and {label} {headers[label]}: not one label "
                f"an image. {_moved(headers[image], headers[label])}Where {label} is something "
                f"else, data.images={image} alone reads the images without it."
            )
        if headers[label].dtype.hasobject:
            raise UserError(
                f"{path}: {label} holds Python objects, which are pickled; a pickle can run code, "
                "so it is not opened. Save the labels as numbers or as texts: "
                "numpy.asarray(LABELS, dtype=str)."
            )
    without = [image for image, label in keys.values() if not label]
    try:
        if without:
            some = f"{', '.join(without)} without labels"
            raise _NoClasses(some if labelled else "there are no labels")
        found = [_one_an_image(read_array(path, label)) for label in labelled.values()]
        return _numbered(np.concatenate(found), names, path)
    except _NoClasses as why:
        if names is not None:
            raise UserError(f"data.classes={list(names)}: {path} has no classes: {why}.") from why
        if labelled:
            log.info(f"{path}: no classes: {why}")
        return [], [0] * sum(headers[image].shape[0] for image, _ in keys.values())


def _moved(images: Header, labels: Header) -> str:
    """The cure where the labels count another axis than the first."""
    if labels.shape[:1] == images.shape[-1:]:
        return "Images are [N, H, W, ...]: save them as numpy.moveaxis(images, -1, 0). "
    return ""


def _one_an_image(labels: np.ndarray) -> np.ndarray:
    """A whole number or a text each, [N]. Raises _NoClasses where labels are neither."""
    kind, columns = labels.dtype.kind, labels.size // len(labels)
    if columns != 1:
        bits = labels.ndim == 2 and kind in "uifb" and np.isin(labels, (0, 1)).all()
        if not bits or (labels.sum(1) != 1).any():  # one-hot
            raise _NoClasses(
                f"the labels are a table of {columns} columns, several of which may hold for one "
                "image"
            )
        return labels.argmax(1)
    labels = labels.reshape(-1)
    if kind == "S":
        return np.char.decode(labels, errors="replace")
    if kind == "f" and not (labels == np.round(labels)).all():
        raise _NoClasses("the labels are not whole numbers")
    if kind not in "uifbU":
        raise _NoClasses(f"the labels are {labels.dtype}")
    return labels if kind == "U" else labels.astype(np.int64)


def _numbered(
    labels: np.ndarray, names: Sequence[str] | None, path: Path
) -> tuple[list[str], list[int]]:
    known: Sequence[Any] = sorted(set(labels.tolist()))
    if names is not None:
        given = names if labels.dtype.kind == "U" else range(len(names))
        if unknown := [label for label in known if label not in given]:
            raise UserError(
                f"data.classes={list(names)}: {path} has labels beside these: "
                f"{', '.join(map(str, unknown[:10]))}. Name them all in the order of their "
                "numbers from 0, or leave data.classes=null."
            )
        known = given
    position = {label: k for k, label in enumerate(known)}
    return [str(label) for label in names or known], [position[x] for x in labels.tolist()]
