"""Which arrays of an .npz are images and labels, and of which split."""

import logging
from pathlib import Path

from data.sources.npz_content import Header, list_headers
from runtime.errors import UserError, near

log = logging.getLogger("data")

Keys = dict[str, tuple[str, str | None]]  # by split: the array of images and that of their labels
FORMS: list[Keys] = [
    {
        "train": ("train_images", "train_labels"),
        "validation": ("val_images", "val_labels"),
        "test": ("test_images", "test_labels"),
    },
    {
        "train": ("x_train", "y_train"),
        "validation": ("x_val", "y_val"),
        "test": ("x_test", "y_test"),
    },
    {"train": ("images", "labels")},
    # numpy.savez(FILE, images, labels), as guided-diffusion's samples
    {"train": ("arr_0", "arr_1")},
]


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
    only: list[Keys] = [{"train": (key, None)} for key in headers if len(headers) == 1]
    form = next((form for form in FORMS + only if form["train"][0] in headers), None)
    if form is None:
        raise UserError(
            f"{path} holds {held}, none of them train_images, x_train, images or arr_0: name the "
            "array of images by data.images=KEY, and that of the labels, if there is one, by "
            "data.labels=KEY."
        )
    keys = {
        split: (image, label if label in headers else None)
        for split, (image, label) in form.items()
        if image in headers
    }
    used = {key for pair in keys.values() for key in pair}
    if unused := sorted(headers.keys() - used):
        log.warning(f"{path}: not used: {list_headers({key: headers[key] for key in unused})}")
    return keys
