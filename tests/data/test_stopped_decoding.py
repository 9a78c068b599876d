"""A start that is stopped while it decodes: the next one goes on from there, to the same bytes."""

from __future__ import annotations

import json
import os
import signal
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data.memory_map
from data.decoded_so_far import BLOCK
from data.image_reader import ImageReader
from data.memory_map import open_memory_map
from data.settings import DataSettings
from data.sources.folder import Folder
from runtime.content import sha256_of
from runtime.errors import UserError
from runtime.signals import Preempted
from tests.helpers.runs import PATIENCE
from tests.helpers.runs import _context as processes

EIGHT = DataSettings(Folder, 8, 3, False)
COUNT = 1000  # more than are given to the threads at a time
STOPS = 600
ODD = 10  # what a library warns of


class Images(ImageReader):
    """Every read is noted. stop: called with each item."""

    name, classes = "images", ()

    def __init__(self, stop=lambda item: None, broken=()):
        self.stop, self.broken, self.read = stop, broken, []
        self.fingerprint = sha256_of(["images", COUNT])
        self.splits = {"train": range(COUNT), "validation": (), "test": ()}
        self.labels = [0] * COUNT

    def __len__(self) -> int:
        return COUNT

    def read_image(self, item: int) -> Image.Image:
        self.stop(item)
        self.read.append(item)
        if item in self.broken:
            raise UserError("it is broken")
        if item == ODD:
            warnings.warn("an odd file", stacklevel=1)
        pixels = np.random.default_rng(item).integers(0, 256, (8 + item % 3, 9, 3), np.uint8)
        return Image.fromarray(pixels)


def killed(cache: Path) -> None:
    def stop(item: int) -> None:
        if item == STOPS:
            os.kill(os.getpid(), signal.SIGKILL)

    open_memory_map(Images(stop), EIGHT, cache)


@pytest.fixture(autouse=True)
def all_is_said(caplog):
    caplog.set_level("INFO")


@pytest.fixture
def stopped(tmp_path) -> Path:
    """The cache of a start that was killed."""
    process = processes.Process(target=killed, args=(tmp_path / "cache",))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    return tmp_path / "cache"


def finished(cache: Path) -> tuple[bytes, dict]:
    (path,) = cache.glob("*.npy")
    assert not list(cache.glob("*.partial*"))
    return path.read_bytes(), json.loads(path.with_suffix(".json").read_text())


@pytest.fixture
def undisturbed_map(tmp_path) -> tuple[bytes, dict]:
    open_memory_map(Images(), EIGHT, tmp_path / "undisturbed")
    return finished(tmp_path / "undisturbed")


def test_only_what_is_left_is_decoded(stopped, undisturbed_map, caplog):
    reader = Images()
    open_memory_map(reader, EIGHT, stopped)
    before = COUNT - len(reader.read)
    # whole blocks, but for those of the images that the threads were at
    assert STOPS - 2 * BLOCK - (os.cpu_count() or 1) <= before <= STOPS + 256
    assert len({*reader.read}) == len(reader.read) and ODD not in reader.read
    assert finished(stopped) == undisturbed_map
    assert f"{before} of {COUNT} images were decoded by an earlier start" in caplog.text
    assert any("an odd file" in message for message in caplog.messages)


def test_what_did_not_come_to_the_disk_is_decoded_again(stopped, undisturbed_map):
    (partial,), (noted,) = stopped.glob("*.partial"), stopped.glob("*.partial.txt")
    images = np.lib.format.open_memmap(partial, mode="r+")
    images[3] = 0
    images.flush()
    noted.write_text(noted.read_text()[:-5])
    reader = Images()
    open_memory_map(reader, EIGHT, stopped)
    assert {*range(BLOCK)} <= {*reader.read} and len(reader.read) < COUNT
    assert finished(stopped) == undisturbed_map


def test_of_a_cut_file_all_is_decoded_again(stopped, undisturbed_map):
    (partial,) = stopped.glob("*.partial")
    os.truncate(partial, 1000)
    reader = Images()
    open_memory_map(reader, EIGHT, stopped)
    assert len(reader.read) == COUNT and finished(stopped) == undisturbed_map


def test_a_signal_and_then_images_that_cannot_be_read(tmp_path, monkeypatch):
    """They are tried again, and an error that is no signal leaves nothing."""

    def preempted(*arguments):
        found = decode_all(*arguments)
        raise Preempted(signal.SIGTERM) if found else AssertionError

    decode_all, skipping = data.memory_map.decode_all, replace(EIGHT, skip_broken=True)
    broken, cache = [5, 70], tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(data.memory_map, "decode_all", preempted)
        with pytest.raises(Preempted):
            open_memory_map(Images(broken=broken), skipping, cache)
    again = Images(broken=broken)
    assert [*open_memory_map(again, skipping, cache)[1]] == broken and again.read == broken
    with pytest.raises(UserError, match="2 of 1000 images"):
        open_memory_map(Images(broken=broken), EIGHT, tmp_path / "other")
    assert not list((tmp_path / "other").glob("*.partial*"))
