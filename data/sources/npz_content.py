"""What an .npz holds, read without running anything in it."""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from runtime.errors import UserError

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


def list_headers(headers: dict[str, Header]) -> str:
    shown = [f"{key} {header}" for key, header in list(headers.items())[:12]]
    return ", ".join(shown) + (", ..." if len(headers) > 12 else "")
