"""A copy in wandb of what a run keeps. Whatever becomes of it, the run goes on."""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np

from runtime.config_schema import Settings
from runtime.content import sha256_of

NOT_IN_IDS = re.compile(r"[^\w.-]")  # wandb refuses / \ # ? % : ; , ' and blanks at the ends
NOT_IN_PROJECTS = re.compile(r"[/\\#?%:]")
LONGEST = 100  # of 128 characters of an id
log = logging.getLogger("wandb_copy")


@dataclass(frozen=True)
class WandbSettings(Settings):
    """mode offline never touches the network. timeout: seconds that online waits for it at the
    start, and three times so many at the end."""

    mode: Literal["disabled", "offline", "online"]
    project: str
    timeout: int = 20


class WandbCopy:
    """One run in wandb.

    Args:
        directory: of the run.
        part: of it, such as an evaluation, that is a run of wandb's own.
    """

    def __init__(
        self, settings: WandbSettings, directory: Path, config: dict[str, Any], part: str = ""
    ):
        self._settings, self._run = settings, None
        if settings.mode != "disabled":
            with self._attempt():
                self._run = self._begin(directory, config, part)

    def _begin(self, directory: Path, config: dict[str, Any], part: str) -> Any:
        import wandb  # a second of import, only where it is wanted

        settings, name = self._settings, f"{directory.name} {part}".strip()
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", str(3 * settings.timeout))
        os.environ.setdefault("WANDB_FINISH_TIMEOUT_RAISES", "true")
        # with no terminal to read from it does not ask for a key
        with open(os.devnull) as nobody, mock.patch.object(sys, "stdin", nobody):
            return wandb.init(
                project=NOT_IN_PROJECTS.sub("-", settings.project),
                mode=settings.mode,
                dir=str(directory),
                config=config,
                group=directory.parent.name,
                job_type="evaluation" if part else "train",
                name=name,
                id=run_id(directory, part),
                resume="allow" if settings.mode == "online" else None,
                settings=wandb.Settings(init_timeout=settings.timeout, silent=True),
            )

    def metrics(self, step: int, values: dict[str, float]) -> None:
        with self._attempt():
            if self._run:
                self._run.log(values, step=step)

    def samples(self, step: int, pixels: np.ndarray) -> None:
        """pixels: [H, W, C] uint8"""
        with self._attempt():
            if self._run:
                from wandb import Image

                self._run.log({"samples": Image(pixels.squeeze())}, step=step)

    def summary(self, values: dict[str, float]) -> None:
        with self._attempt():
            if self._run:
                self._run.summary.update(values)

    def finish(self) -> None:
        with self._attempt():
            if self._run:
                self._run.finish()

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of all kinds, its settings' and its service's among them
            self._run = None
            log.warning(
                f"wandb.mode={self._settings.mode}: wandb gets nothing more of this run "
                f"({_cause(error)}). "
                "All of it is in the run's own files, and all else goes on."
            )


def _cause(error: Exception) -> str:
    """In one line. Of settings that wandb refuses, the names of their variables; not the values
    that pydantic's own text shows, as one may be a key."""
    if refused := getattr(error, "errors", None):
        return "; ".join(f"{_variable(each['loc'])}: {each['msg']}" for each in refused())
    return " ".join(str(error).split()) or type(error).__name__


def _variable(location: Sequence[str | int]) -> str:
    name = ".".join(map(str, location))
    variable = f"WANDB_{name.upper()}"
    return variable if variable in os.environ else name


def run_id(directory: Path, part: str = "") -> str:
    """Of a run's identity and its place: two copies of a run do not write over each other."""
    place, known = directory.resolve(), directory / "identity.json"
    identity = known.read_text() if known.is_file() else ""
    name = f"{place.name}-{part}" if part else place.name
    return f"{NOT_IN_IDS.sub('-', name)[:LONGEST]}-{sha256_of([identity, str(place), part])[:8]}"
