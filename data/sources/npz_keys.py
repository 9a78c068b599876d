"""Which arrays of an .npz are images and labels, and of which split."""

import logging
from collections.abc import Collection
from pathlib import Path

from data.sources.npz_content import Header, list_headers
from runtime.errors import UserError, near

log = logging.getLogger("data")

Keys = dict[str, tuple[str, str | None]]  # by split: the array of images and that of their labels
# keys of images and of their labels, in small letters
FORMS = [
    ("{split}_images", "{split}_labels"),
    ("x_{split}", "y_{split}"),
    ("images", "labels"),
    ("arr_0", "arr_1"),  # numpy.savez(FILE, images, labels), as guided-diffusion's samples
]
SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def choose_keys(
    headers: dict[str, Header], images: str | None, labels: str | None, path: Path
) -> Keys:
    """Which arrays are the images and labels of which split: those that are named, or the first
    form that fits.

    Raises:
        UserError: where none does.
    """
    for option, key in (("images", images), ("labels", labels)):
        if key is not None and key not in headers:
            raise UserError(f"data.{option}={key}: {path} has no such array; {near(key, headers)}")
    if images is not None:
        return {"train": (images, labels)}
    held = list_headers(headers)
    if labels is not None:
        raise UserError(
            f"data.labels={labels} needs data.images=KEY beside it; {path} holds {held}."
        )
    forms = (_of_form(headers, *form) for form in FORMS)
    keys = next((found for found in forms if "train" in found), None)
    if keys is None and len(headers) == 1:
        keys = {"train": (next(iter(headers)), None)}
    if keys is None:
        raise UserError(
            f"{path} holds {held}, none of them train_images, x_train, images or arr_0: name the "
            "array of images by data.images=KEY, and that of the labels, if there is one, by "
            "data.labels=KEY."
        )
    return keys


def _of_form(headers: Collection[str], images: str, labels: str) -> Keys:
    """Those of the splits that are there, in their usual spellings, in small letters or not."""
    known = {**{key.lower(): key for key in headers}, **{key: key for key in headers}}
    found: Keys = {}
    for split, spellings in SPELLINGS.items():
        for word in spellings:
            image, label = (known.get(form.format(split=word)) for form in (images, labels))
            if image and image not in {taken for taken, _ in found.values()}:
                found.setdefault(split, (image, label))
    return found


def tell_unused(headers: dict[str, Header], keys: Keys, owners: str | None, path: Path) -> None:
    """To the log, a warning where they are perhaps images that were meant to be read.

    Args:
        owners: see npz_owners.
    """
    used = {owners, *(key for pair in keys.values() for key in pair)}
    unused = {key: header for key, header in headers.items() if key not in used}
    counts = {headers[image].shape[0] for image, _ in keys.values()}
    like = headers[keys["train"][0]]
    more = {
        key: header
        for key, header in unused.items()
        if header.dtype == like.dtype
        and header.shape[1:] == like.shape[1:]
        and header.shape[0] not in counts  # else of the same images, such as their masks
    }
    if more:
        log.warning(
            f"{path}: not used: {list_headers(more)}, which may be images. Call their array as one "
            "of a split (x_train, x_val, x_test), or leave it out of the file."
        )
    if others := {key: header for key, header in unused.items() if key not in more}:
        log.info(
            f"{path}: not used: {list_headers(others)}; data.images=KEY and data.labels=KEY choose "
            "which arrays are"
        )
