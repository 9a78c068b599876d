from __future__ import annotations

import atexit
import gc
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import runs


def pytest_configure() -> None:
    """No test sees a network, or what this user has fetched; none has the machine fail, so that no
    disk need be waited for."""
    os.fsync = lambda fd: None
    nothing = tempfile.mkdtemp(prefix="nothing_fetched_")
    atexit.register(shutil.rmtree, nothing, ignore_errors=True)
    os.environ |= dict.fromkeys(("TORCH_HOME", "HF_HOME"), nothing)
    os.environ |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    os.environ["no_proxy"] = "127.0.0.1,localhost"


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection of garbage need look at it again."""
    gc.freeze()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Callable[..., Path]:
    """undisturbed(*arguments): the directory of a tiny run that nothing disturbed. Each is made
    once for all tests."""
    made: dict[tuple[str, ...], Path] = {}

    def directory(*arguments: str) -> Path:
        if arguments not in made:
            made[arguments] = runs.finish(tmp_path_factory.mktemp("undisturbed"), arguments)
        return made[arguments]

    return directory


@pytest.fixture
def own_log() -> Iterator[None]:
    """What a script logs to the terminal, in this process, is no matter of the tests after it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
