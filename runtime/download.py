"""Files that others publish, fetched by name. A file is under its name only when it is whole and
has the checksum that conf/downloads.yaml states; one that is cut is gone on with."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from runtime.errors import UserError
from runtime.files import locked, raise_if_full, sync_directory, write_atomically

TABLE = Path(__file__).parent.parent / "conf/downloads.yaml"
TRIES, PAUSE = 5, 1.0  # without a byte more before it gives up; seconds, doubled each time
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 18
HEADERS = {"User-Agent": "diffusion-transfer", "Accept-Encoding": "identity"}
TRANSIENT = {408, 429, 500, 502, 503, 504}  # answers after which it is tried again
log = logging.getLogger("download")


class NoNetwork(UserError):
    """Nothing answers: what is missing has to be brought here by hand."""


class _Cut(Exception):
    """The connection ended early."""


@dataclass(frozen=True)
class PublishedFile:
    """One row of conf/downloads.yaml. What nobody has published, a size or a checksum, is None."""

    name: str
    url: str
    licence: str
    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def checksums(self) -> dict[str, str]:
        """Those that are published, by their kind."""
        both = {"sha256": self.sha256, "md5": self.md5}
        return {kind: checksum for kind, checksum in both.items() if checksum}

    def __str__(self) -> str:
        size = f"{megabytes(self.bytes)}, " if self.bytes else ""
        return f"{self.name} ({size}{self.url})"

    def check(self, path: Path) -> None:
        """Compares the size and the checksum of a file with what is published.

        Raises:
            UserError: where one differs.
        """
        size = path.stat().st_size
        if self.bytes not in (None, size):
            raise UserError(f"{path} has {size} bytes, and {self.name} has {self.bytes}.")
        for kind, expected in self.checksums.items():
            if (found := _digest(path, kind)) != expected:
                raise UserError(
                    f"{path}: its {kind} is {found}, and that of {self.name} {expected}."
                )


def published() -> dict[str, PublishedFile]:
    """All of conf/downloads.yaml, by name."""
    import yaml  # comes with omegaconf; benchmarks run without either

    rows: dict[str, dict[str, Any]] = yaml.safe_load(TABLE.read_text())
    return {name: PublishedFile(name, **row) for name, row in rows.items()}


def weights_named(name: str) -> Path | None:
    """The file of published weights that a name in conf/downloads.yaml means, in torch's folder and
    fetched where it is not there. None for any other name, and for one of a file that is here."""
    if name not in published() or Path(name).is_file():
        return None
    import torch.hub  # the table alone is read without torch

    return fetch(name, Path(torch.hub.get_dir()) / "checkpoints" / name)


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
    checksums = "".join(f" ({kind} {checksum})" for kind, checksum in known.checksums.items())
    by_hand = (
        f"By hand: download {known.url}{checksums} where there is a network, and put it at "
        f"{path}. {instead}"
    ).rstrip()
    part = path.with_name(f"{path.name}.part")
    try:
        with alone(path):
            if path.is_file():  # another process was faster
                return path
            log.info(
                "%s is not there, so it is fetched: %s; licence: %s", path, known, known.licence
            )
            _receive_all(known, part)
            _accept(known, part, path)
    except UserError as error:
        raise type(error)(f"{error} {by_hand}") from error
    except OSError as error:
        raise_if_full(error, part)
        raise UserError(f"{path} cannot be written ({error.strerror or error}).") from error
    return path


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """While no other process makes path; the log says where one is waited for."""
    lock = path.with_name(f".{path.name}.lock")
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(lock, busy="busy"))
        except UserError:
            log.info("%s: another process fetches it; waiting for that", path)
            held.enter_context(locked(lock))
        yield


def _accept(known: PublishedFile, part: Path, path: Path) -> None:
    """Gives what was received its name, or puts it aside."""
    try:
        known.check(part)
    except UserError as error:
        aside = path.with_name(f"{path.name}.wrong")
        os.replace(part, aside)
        raise UserError(
            f"{error} What {known.host} sent is put aside as {aside.name}; the same command "
            "fetches it again."
        ) from error
    if not known.checksums:
        log.warning(
            "%s: nobody has published its checksum, so only its size was compared with the "
            "server's. Its sha256 is %s",
            known.name,
            _digest(part, "sha256"),
        )
    os.replace(part, path)
    _validator(part).unlink(missing_ok=True)
    sync_directory(path.parent)


def _receive_all(known: PublishedFile, part: Path) -> None:
    """Asks again, from where it was cut, as long as that brings anything."""
    fruitless, had = 0, _size(part)
    while True:
        try:
            return _receive(known, part)
        except _Cut as error:
            fruitless, had = (0, _size(part)) if _size(part) > had else (fruitless + 1, had)
            if fruitless == TRIES:
                kept = (
                    f" {megabytes(had)} of it are kept, and the same command goes on."
                    if had
                    else ""
                )
                raise NoNetwork(
                    f"{known.name}: {known.host} stopped answering ({error}).{kept}"
                ) from None
            log.info("%s: %s; asking again from %s on", known.name, error, megabytes(_size(part)))
            time.sleep(PAUSE * 2**fruitless)


def _receive(known: PublishedFile, part: Path) -> None:
    """Receives what part still lacks."""
    begin = _size(part)
    with _answer(known, part, begin) as answer:
        if answer.status == 200:
            begin = 0  # all of it, from its first byte: it has changed, or ranges are not served
            part.unlink(missing_ok=True)  # before it says to be the beginning of this version
            write_atomically(_validator(part), answer.headers.get("ETag", ""))
        length = answer.headers.get("Content-Length")
        total = known.bytes if length is None else begin + int(length)
        if known.bytes not in (None, total):
            raise UserError(
                f"{known.name}: {known.host} has {total} bytes under that name, and the published "
                f"file has {known.bytes}: it is another one."
            )
        shown = tqdm(
            total=total, initial=begin, unit="B", unit_scale=True, desc=known.name, mininterval=0.5
        )
        with open(part, "r+b" if begin else "wb") as file, shown as bar:
            file.seek(begin)
            file.truncate()
            while block := _read(answer):
                file.write(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and _size(part) < total:
        raise _Cut("the connection was closed early")


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(_words(error)) from error


def _answer(known: PublishedFile, part: Path, begin: int) -> http.client.HTTPResponse:
    """What the server says to a request of the rest of a file, of which begin bytes are there."""
    headers = dict(HEADERS)
    if begin:
        headers["Range"] = f"bytes={begin}-"
        if _validator(part).is_file() and (tag := _validator(part).read_text()):
            headers["If-Range"] = tag
    request = urllib.request.Request(known.url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        raise _refusal(known, part, error) from error
    except (OSError, http.client.HTTPException) as error:
        raise _failure(known, error) from error
    if answer.headers.get_content_type() == "text/html":
        answer.close()
        raise UserError(
            f"{known.name}: {known.host} sent a web page in place of the file, as it does where a "
            "quota is used up or somebody has to log in."
        )
    if answer.status == 206 and not answer.headers["Content-Range"].startswith(f"bytes {begin}-"):
        answer.close()
        part.unlink()
        raise _Cut("it sent another part than was asked for")
    return answer


def _refusal(known: PublishedFile, part: Path, error: urllib.error.HTTPError) -> Exception:
    """What an answer of 400 and more means."""
    if error.code == 416:  # more is there than the server has
        part.unlink()
        return _Cut("what was there is no beginning of it")
    said = f"answers {error.code} {error.reason}"
    if error.code in TRANSIENT:
        return _Cut(f"it {said}")
    return UserError(f"{known.name}: {known.host} {said}.")


def _failure(known: PublishedFile, error: Exception) -> Exception:
    """What became of a request that was not answered."""
    cause = getattr(error, "reason", error)
    if isinstance(cause, ssl.SSLError):
        return UserError(f"{known.name}: {known.host} cannot be trusted ({_words(cause)}).")
    if isinstance(cause, TimeoutError | ConnectionResetError | http.client.HTTPException):
        return _Cut(_words(cause))
    return NoNetwork(f"{known.name}: no network: {known.host} does not answer ({_words(cause)}).")


def _validator(part: Path) -> Path:
    """Where the server's name of the version is kept that part is the beginning of."""
    return part.with_name(f".{part.name}.etag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _digest(path: Path, kind: str) -> str:
    with open(path, "rb") as file:
        digest = hashlib.new(kind, usedforsecurity=False)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _words(error: object) -> str:
    said = getattr(error, "strerror", None) or str(error)
    return said.strip().rstrip(".") or type(error).__name__


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.{0 if size >= 1e7 else 2}f} MB"
