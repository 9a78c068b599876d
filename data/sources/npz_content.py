"""What an .npz holds, read without running anything in it: its headers, which arrays are images and
labels, and in which layout."""

import logging
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

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
BROKEN = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError, KeyError)


class Header(NamedTuple):
    """What an array is, known without reading it."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{list(self.shape)} {self.dtype}"


def read_headers(path: Path, given: str) -> dict[str, Header]:
    """What arrays a file holds, not decompressed.

    Raises:
        UserError: where it is no .npz.
    """
    if not path.is_file():
        state, folder = (
            ("a folder", path) if path.is_dir() else ("there is no such file", path.parent)
        )
        beside = ", ".join(sorted(map(str, folder.glob("*.npz")))[:10])
        raise UserError(
            f"data.path={given}: {state}. Set data.path to the .npz file "
            f"({beside or 'there is none in that folder'})."
        )
    headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".npy"):
                    with archive.open(name) as file:
                        headers[name.removesuffix(".npy")] = _read_header(file)
    except BROKEN as error:
        raise UserError(
            f"{path} cannot be read as an .npz: {_instead(path)} ({error}). Make or download it "
            "again."
        ) from error
    if not headers:
        raise UserError(
            f"{path}: a zip file without arrays, so not of numpy.savez. Unpack images with "
            "unzip and use data=folder."
        )
    return headers


def _read_header(file: IO[bytes]) -> Header:
    first = npy.read_magic(file) == (1, 0)
    read = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return Header(shape, dtype)


def _instead(path: Path) -> str:
    """What a file that is no zip seems to be."""
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"\x93NUMPY"):
        return "it is a single .npy, which numpy.savez(FILE, images=numpy.load(IT)) turns into one"
    if start.lstrip().startswith(b"<"):
        return "it is a web page, saved in place of the file"
    return (
        "it is cut short or damaged" if start.startswith(b"PK") else "it is a file of another kind"
    )


def read_array(path: Path, key: str) -> np.ndarray:
    """Never unpickles, as that can run code.

    Raises:
        UserError: for a damaged or too large array.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[key]
    except MemoryError as error:
        raise UserError(
            f"{path}: {key} does not fit into memory ({error}). Save it as uint8, or as files "
            "for data=folder."
        ) from error
    except BROKEN as error:
        raise UserError(
            f"{path}: the array {key} is damaged or cut short ({error}). Make or download the "
            "file again."
        ) from error


def of_array(key: str, compute: Callable[[np.ndarray], Any]) -> Callable[[Path], Any]:
    """For FileCache, what compute says of an array; None of a damaged one, which is told when it is
    read."""

    def of_file(path: Path) -> Any:
        try:
            return compute(read_array(path, key))
        except UserError:
            return None

    return of_file


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


def list_headers(headers: dict[str, Header]) -> str:
    shown = [f"{key} {header}" for key, header in list(headers.items())[:12]]
    return ", ".join(shown) + (", ..." if len(headers) > 12 else "")


# One array of images


MOST_CHANNELS = 64  # more are perhaps the rows of a small image


def channels_axis(shape: Sequence[int]) -> int | None:
    """Which axis of an image of three axes is that of its channels, 0 or 2; None where none or both
    may be: 1 or 3 is gray or colour, and others are fewer than rows and columns, or beside as many
    columns as rows."""
    first, middle, last = shape
    usual = [axis for axis in (0, 2) if shape[axis] in (1, 3)]
    square = {0: middle == last != first, 2: first == middle != last}
    fewer = {0: first < min(middle, last), 2: last < min(first, middle)}
    likely = [
        axis for axis in (0, 2) if shape[axis] <= MOST_CHANNELS and (square[axis] or fewer[axis])
    ]
    found = usual or likely
    return found[0] if len(found) == 1 else None


def count_channels(shape: Sequence[int]) -> int:
    """Of an array of images."""
    axis = channels_axis(shape[1:]) if len(shape) == 4 else None
    return 1 if axis is None else shape[1 + axis]


def channels_last(images: np.ndarray) -> np.ndarray:
    """[N, H, W], or with its channels behind N or at the end, as [N, H, W, C]."""
    if images.ndim == 3:
        return images[..., None]
    return np.moveaxis(images, 1, -1) if channels_axis(images.shape[1:]) == 0 else images


def check_images(header: Header, where: str) -> None:
    """Whether rows of the array are images, as channels_last takes them.

    Raises:
        UserError: for what is no array of images, or could be two.
    """
    shape, dtype = header.shape, header.dtype
    if dtype.hasobject:
        raise UserError(
            f"{where} holds Python objects, which are pickled; a pickle can run code, so it is "
            "not opened. Save the images as one array of numbers, all of one size: "
            "numpy.savez(FILE, images=numpy.stack(LIST))."
        )
    if dtype.kind not in "uifb":
        raise UserError(
            f"{where} is {header}, and images are numbers. Name another array by data.images=KEY."
        )
    if 0 in shape:
        raise UserError(f"{where} is {header}: there are no images in it.")
    if len(shape) == 3 and shape[2] not in (1, 3, 4):
        return
    known = len(shape) == 4 and channels_axis(shape[1:]) is not None
    if known and (count_channels(shape) in (1, 3) or shape[0] not in (1, 3)):  # or [C, H, W, N]
        return
    if len(shape) == 4 and {shape[1], shape[3]} <= {1, 3}:
        raise UserError(
            f"{where} is {header}: which number is the channels. Save it in another size or as "
            "[N, H, W]."
        )
    raise UserError(f"{where} is {header}: {_why_no_images(shape)}.")


def _why_no_images(shape: tuple[int, ...]) -> str:
    """Why an array of this shape cannot be read, and what would be."""
    if len(shape) == 3:
        return (
            "this is perhaps one image [H, W, channels]; save images as [N, H, W] or [N, H, W, 3]"
        )
    if len(shape) == 4 and (shape[2] in (1, 3) or shape[0] in (1, 3)):
        order, axes = (
            ("[H, W, C, N]", (3, 0, 1, 2)) if shape[2] in (1, 3) else ("[C, H, W, N]", (3, 1, 2, 0))
        )
        return f"this is perhaps {order}; save images.transpose{axes}, which is [N, H, W, C]"
    if len(shape) in (4, 5):
        return (
            "volumes [N, D, H, W], and this code learns images of two dimensions; save slices as "
            "[N, H, W], such as volumes[:, D // 2] for the middle one of each, with the slices of "
            "one volume in one split"
        )
    return "images are [N, H, W], [N, H, W, 3] or [N, 3, H, W]; reshape it and save it again"


# Labels


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
