"""Images decoded once into a uint8 memory map, whose name is a hash of what made it."""

import contextlib
import logging
import os
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from data.as_decoded import AsDecoded
from data.decoded_so_far import DecodedSoFar
from data.decoding import decode_all, list_broken
from data.file_cache import whole_stamp
from data.image_reader import ImageReader
from data.resize import Unfit, to_array
from data.settings import DataSettings
from data.threads import threads
from runtime.content import sha256_of
from runtime.errors import UserError
from runtime.files import (
    CANNOT,
    Damaged,
    locked,
    put_aside,
    raise_if_full,
    read_sealed,
    sync,
    sync_directory,
    write_sealed,
)
from runtime.log import recorded
from runtime.signals import Preempted

DECODER = 5  # raise when to_array, or a reader, changes what it makes of a file
HELD_OUT = "held out"  # in the record of a map
BLOCK = 1 << 24  # bytes of a map that have a checksum of their own

log = logging.getLogger("data")


def open_memory_map(
    reader: ImageReader, settings: DataSettings, cache: Path
) -> tuple[np.ndarray, dict[int, str]]:
    """Built first where it is missing or damaged; runs that need the same wait for one builder.

    Returns:
        The map, [N, H, W, C] uint8, and why which items could not be used (none without
        skip_broken).

    Raises:
        UserError: where images cannot be used, without skip_broken, and where all those to train on
            are of one colour.
        Changed: where a file is not what the reader's fingerprint is of; nothing is kept.
    """
    path = _path(reader.fingerprint, settings, cache)
    about = _read_record(path, reader, settings)
    if about is None:
        with locked(path.with_suffix(".lock")):
            about = _read_record(path, reader, settings, put_aside)
            about = about or _decode(reader, settings, path) | {"said": []}  # it was just said
    for line in about["said"]:  # such as a range that was measured
        log.info(line)
    if broken := {int(item): why for item, why in about["broken"].items()}:
        log.warning(
            f"{_listed(reader, broken, 'left out')}\n(remembered in {path.with_suffix('.json')}; "
            "delete it to try these again)"
        )
    images = np.load(path, mmap_mode="r")
    if "one colour" not in about:  # of an earlier version
        about["one colour"] = _of_one_colour(images, broken)
    if about["one colour"]:
        _tell_of_one_colour(reader, about["one colour"], broken)
    return images, broken


def _path(fingerprint: str, settings: DataSettings, cache: Path) -> Path:
    key = sha256_of([DECODER, fingerprint, *settings.resizing])[:16]
    return cache / f"{key}.npy"


def decoded_before(fingerprint: str, settings: DataSettings, cache: Path) -> np.ndarray | None:
    """The map of other images as this version decodes them, where it is still there."""
    try:
        return np.load(_path(fingerprint, settings, cache), mmap_mode="r")
    except (OSError, ValueError):  # it is gone, or cut
        return None


def held_out_before(fingerprint: str, settings: DataSettings, cache: Path) -> list[int] | None:
    """Which of other images were not to train on, where that is still known."""
    try:
        found: list[int] | None = read_sealed(
            _path(fingerprint, settings, cache).with_suffix(".json")
        ).get(HELD_OUT)
        return found
    except (OSError, Damaged):
        return None


def same_images(ours: Iterable[np.ndarray], theirs: Iterable[np.ndarray]) -> int:
    """How many images [H, W, C] two sets have in common, wherever they stand in them."""
    counts = [Counter(hash(image.tobytes()) for image in images) for images in (ours, theirs)]
    return (counts[0] & counts[1]).total()


def _read_record(
    path: Path,
    reader: ImageReader,
    settings: DataSettings,
    tell: Callable[[Path, str], object] = lambda path, why: None,
) -> dict[str, Any] | None:
    """What is known of the map, or None where it has to be built.

    One with gaps is built anew for a run that wants none: what it takes to read them, a decoder
    say, may have been installed since; so is one of a start that could not read how many frames
    there are.

    Args:
        tell: what to do with a file that is damaged.
    """
    record = path.with_suffix(".json")
    if not path.exists() or not record.exists():
        return None
    try:
        about = read_sealed(record)
    except Damaged as error:
        tell(record, str(error))
        return None
    if about["shape"][0] != len(reader) or (about["broken"] and not settings.skip_broken):
        return None
    if damage := _damage(path, about):
        tell(path, damage)
        return None
    return about


def _damage(path: Path, about: dict[str, Any]) -> str | None:
    """What is wrong with the bytes of a map, or None."""
    size = path.stat().st_size
    try:
        found = _checksums(path, whole_stamp(path))
    except OSError as error:  # a bad sector
        return f"{path} cannot be read ({error.strerror or error})"
    if size != about["bytes"]:
        return f"{path} is damaged: it has {size} bytes of {about['bytes']}"
    expected = about["crc32"]
    if wrong := [k for k, crc in enumerate(found) if crc != expected[k]]:
        return (
            f"{path} is damaged: {len(wrong)} of its {len(found)} blocks of {BLOCK >> 20} MiB do "
            f"not have their checksum, the first at byte {wrong[0] * BLOCK}"
        )
    return None


@cache
def _checksums(path: Path, stamp: tuple[int, ...]) -> list[int]:
    """crc32 of each block of a file: against accidents, and three times as fast as sha256.

    It costs 0.6 s a GB of a core, so a process reads the bytes once.

    Args:
        stamp: of the file that is there now; another file has other checksums.
    """
    with open(path, "rb") as file, threads() as pool:
        blocks = range(0, os.fstat(file.fileno()).st_size, BLOCK)
        return list(pool.map(lambda at: zlib.crc32(os.pread(file.fileno(), BLOCK, at)), blocks))


def _decode(reader: ImageReader, settings: DataSettings, path: Path) -> dict[str, Any]:
    """Builds the map and its record, all or nothing, but what a start that was stopped has done is
    gone on from."""
    shape = (len(reader), *settings.height_width, settings.channels)
    seen = AsDecoded(len(reader))
    aside, noted = path.with_suffix(".partial"), path.with_suffix(".partial.txt")

    def decode(item: int) -> None:
        if so_far.has(item):
            return
        with so_far.noted(item):
            image = reader.read_image(item)
            seen.note(item, image)
            images[item] = to_array(image, *settings.resizing)

    with _removed_unless_stopped(aside, noted), _full_disk_told(path):
        images = _reserve(aside, shape)
        so_far = DecodedSoFar(noted, images, seen)
        with recorded() as said:
            failures = decode_all(decode, len(reader), f"decoding {reader.name}", reader.item_name)
            if not failures or settings.skip_broken:
                seen.tell(reader, settings.height_width, settings.fit)
        images.flush()
        with open(aside, "rb+") as file:
            sync(file.fileno())
        reader.release()
        if failures and not settings.skip_broken:
            raise _unusable(reader, failures)
        about = {
            "source": reader.name,
            "shape": shape,
            "broken": {item: str(failures[item]) for item in sorted(failures)},
            "one colour": _of_one_colour(images, failures),
            HELD_OUT: sorted({*range(len(reader))}.difference(reader.splits["train"])),
            "said": [record.getMessage() for record in said if record.name == log.name],
            "bytes": aside.stat().st_size,
            "crc32": _checksums(aside, whole_stamp(aside)),
        }
        os.replace(aside, path)  # before what says that it is whole: there may be one with gaps
        sync_directory(path.parent)
        write_sealed(path.with_suffix(".json"), about)
    return about


@contextlib.contextmanager
def _removed_unless_stopped(*files: Path) -> Iterator[None]:
    stopped = False
    try:
        yield
    except (Preempted, KeyboardInterrupt):
        stopped = True
        raise
    finally:
        for file in files if not stopped else ():
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _full_disk_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise_if_full(error, path)
        raise


def _of_one_colour(images: np.ndarray, broken: Collection[int]) -> list[int]:
    """Which images have no information."""
    return [
        k for k in range(len(images)) if k not in broken and (images[k] == images[k, 0, 0]).all()
    ]


def _tell_of_one_colour(reader: ImageReader, items: list[int], broken: Collection[int]) -> None:
    """Raises UserError where nothing else is left to train on."""
    way_out = f", or choose what is black and white: {reader.levels}" if reader.levels else ""
    if set(reader.splits["train"]) <= {*items, *broken}:
        raise UserError(
            f"{reader.name}: all images to train on are of one colour, for one "
            f"{reader.item_name(items[0])}: there is nothing to learn from. They may be "
            "transparent all over (which is shown white), or have their values elsewhere. Mend "
            f"them{way_out}."
        )
    log.warning(
        f"{reader.name}: {len(items)} of {len(reader)} images are of one colour, for one "
        f"{reader.item_name(items[0])}; they are trained on as they are. Remove them{way_out}."
    )


def _unusable(reader: ImageReader, failures: Mapping[int, UserError]) -> UserError:
    cures = dict.fromkeys(error.cure for error in failures.values() if isinstance(error, Unfit))
    cure = "\nMend or remove them, or leave them out with data.skip_broken=true."
    return UserError(" ".join([_listed(reader, failures, "cannot be used") + cure, *cures]))


def _listed(reader: ImageReader, broken: Mapping[int, object], verdict: str) -> str:
    heading = f"{len(broken)} of {len(reader)} images of {reader.name}: {verdict}"
    return list_broken(broken, reader.item_name, heading, reader.file_of)


def _reserve(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Opens the array's file that a start which was stopped has left, or else creates it, with its
    space taken: a full disk says so here, and not by a signal while writing the map."""
    try:
        images = np.lib.format.open_memmap(path, mode="r+")
    except (OSError, ValueError):  # there is none, or it is cut
        images = None
    if images is None or (images.shape, images.dtype) != (shape, np.uint8):
        images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        images.flush()
    with open(path, "rb+") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in CANNOT:
                raise
    return images
