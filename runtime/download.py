"""Files that others publish, fetched by name. A file is under its name only when it is whole and
has the checksum that conf/downloads.yaml states."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import Busy, UserError
from runtime.files import locked, raise_if_full, sync_directory
from runtime.receive import Download, megabytes, receive

TABLE = Path(__file__).parent.parent / "conf/downloads.yaml"
WEIGHTS = (".pt", ".pth")
log = logging.getLogger("download")


@dataclass(frozen=True)
class PublishedFile:
    """One row of conf/downloads.yaml. What nobody has published, a size or a checksum, is None."""

    name: str
    url: str
    licence: str
    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None
    mb: int | None = None  # about, where its bytes are not known

    @property
    def checksums(self) -> dict[str, str]:
        """Those that are published, by their kind."""
        both = {"sha256": self.sha256, "md5": self.md5}
        return {kind: checksum for kind, checksum in both.items() if checksum}

    def __str__(self) -> str:
        return f"{self.name} ({self.size}{self.url})"

    @property
    def size(self) -> str:
        if self.bytes:
            return f"{megabytes(self.bytes)}, "
        return f"about {self.mb} MB, " if self.mb else ""

    def check(self, path: Path) -> None:
        """Compares the size and the checksum of a file with what is published.

        Raises:
            UserError: where one differs.
        """
        size = path.stat().st_size
        if self.bytes not in (None, size):
            raise UserError(f"{path} has {size} bytes, and {self.name} has {self.bytes}.")
        for kind, expected in self.checksums.items():
            if (found := digest(path, kind)) != expected:
                raise UserError(
                    f"{path}: its {kind} is {found}, and that of {self.name} {expected}."
                )


def published() -> dict[str, PublishedFile]:
    """All of conf/downloads.yaml, by name."""
    import yaml  # comes with omegaconf; benchmarks run without either

    rows: dict[str, dict[str, Any]] = yaml.safe_load(TABLE.read_text())
    return {name: PublishedFile(name, **row) for name, row in rows.items()}


def weights_named(name: str, instead: str = "") -> Path | None:
    """The file of published weights that a name in conf/downloads.yaml means, in torch's folder and
    fetched where it is not there. None for any other name, and for one of a file that is here.

    Args:
        instead: what else the user can do where it cannot be had.
    Raises:
        NoNetwork, UserError: as fetch; or where what is there is not the published file.
    """
    if Path(name).suffix not in WEIGHTS or name not in published() or Path(name).is_file():
        return None
    import torch.hub  # the table alone is read without torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        try:
            published()[name].check(path)
        except UserError as error:
            raise UserError(
                f"{error} Remove it, and the same command fetches it; or give its path, and it is "
                "taken as it is."
            ) from error
    return fetch(name, path, f"TORCH_HOME=DIR is another place for it. {instead}")


def fetch(name: str, path: Path, instead: str = "") -> Path:
    """The published file of this name at path: what is there is left as it is, what is missing is
    fetched. Processes that want the same file wait for the one that fetches it.

    Args:
        instead: what else the user can do where it cannot be had.
    Raises:
        NoNetwork: where nothing answers.
        UserError: where the file cannot be had, or is not what it should be.
    """
    if path.is_file():
        return path
    known = published()[name]
    checksums = ", ".join(f"{kind} {checksum}" for kind, checksum in known.checksums.items())
    about = f" ({about})" if (about := f"{known.size}{checksums}".strip(", ")) else ""
    by_hand = (
        f"By hand: download {known.url}{about} where there is a network, and put it at "
        f"{path}. {instead}"
    ).rstrip()
    part = path.with_name(f"{path.name}.part")
    wanted = Download(name, known.url, part, known.bytes, bool(known.checksums))
    if path.exists():
        raise UserError(f"{path} is there and is no file: move it away. {by_hand}")
    try:
        with alone(path):
            if path.is_file():  # another process was faster
                return path
            log.info(
                "%s is not there, so it is fetched: %s; licence: %s", path, known, known.licence
            )
            try:
                receive(wanted)
            except KeyboardInterrupt:
                log.info("%s: what came is kept, and the same command goes on", name)
                raise
            _accept(known, wanted, path)
    except UserError as error:
        raise type(error)(f"{error} {by_hand}") from error
    except OSError as error:
        raise_if_full(error, part)
        why = error.strerror or str(error)
        raise UserError(f"{path} cannot be written ({why}). {by_hand}") from error
    return path


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """While no other process makes path; the log says where one is waited for."""
    lock = path.with_name(f".{path.name}.lock")
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(lock, busy="busy"))
        except Busy:
            log.info("%s: another process fetches it; waiting for that", path)
            held.enter_context(locked(lock))
        yield


def _accept(known: PublishedFile, received: Download, path: Path) -> None:
    """Gives what was received its name, or puts it aside."""
    part = received.part
    try:
        known.check(part)
    except UserError as error:
        aside = path.with_name(f"{path.name}.wrong")
        os.replace(part, aside)
        raise UserError(
            f"{error} What {received.host} sent is put aside as {aside.name}; the same command "
            "fetches it again."
        ) from error
    if not known.checksums:
        log.warning(
            "%s: nobody has published its checksum, so only its size was compared, with what the "
            "server says. Its sha256 is %s",
            known.name,
            digest(part, "sha256"),
        )
    os.replace(part, path)
    received.validator.unlink(missing_ok=True)
    sync_directory(path.parent)


def digest(path: Path, kind: str) -> str:
    """The sha256 or md5 of a file."""
    with open(path, "rb") as file:
        of_all = hashlib.new(kind, usedforsecurity=False)
        while block := file.read(1 << 20):
            of_all.update(block)
    return of_all.hexdigest()
