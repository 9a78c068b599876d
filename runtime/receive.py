"""One file by HTTP, gone on with where it was cut (RFC 9110, ranges and If-Range)."""

from __future__ import annotations

import http.client
import logging
import re
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from runtime.errors import UserError
from runtime.files import sync, write_atomically

TRIES, PAUSE = 5, 1.0  # without a byte more before it gives up; seconds, doubled each time
LONGEST = 60.0  # seconds that a server may ask to wait
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 18
HEADERS = {"User-Agent": "diffusion-transfer", "Accept-Encoding": "identity"}
TRANSIENT = {408, 429, 500, 502, 503, 504}  # answers after which it is tried again
TEXT = {"text/html", "application/json", "application/xml", "text/xml"}
log = logging.getLogger("download")


class NoNetwork(UserError):
    """Nothing answers: what is missing has to be brought here by hand."""


class _Cut(Exception):
    """The connection ended early. wait: seconds that the server asks for."""

    def __init__(self, why: str, wait: float = 0.0):
        super().__init__(why)
        self.wait = wait


class _Whole(Exception):
    """Nothing is missing."""


@dataclass(frozen=True)
class Download:
    """What is to be received, and where its beginning is kept.

    Args:
        size: in bytes, None where it is unknown.
        checked: whether a checksum will tell a wrong file afterwards. Where none does, a beginning
            is gone on with only if the server says that it is of the same version.
    """

    name: str
    url: str
    part: Path
    size: int | None
    checked: bool

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def validator(self) -> Path:
        """Where the server's name of the version is kept that part is the beginning of."""
        return self.part.with_name(f".{self.part.name}.version")

    @property
    def version(self) -> str:
        return self.validator.read_text() if self.validator.is_file() else ""

    def had(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def forget(self) -> None:
        """The beginning first: what is named as of a version must not be of another."""
        self.part.unlink(missing_ok=True)
        self.validator.unlink(missing_ok=True)


def receive(file: Download) -> None:
    """Receives what is missing, and asks again, from where it was cut, as long as that brings
    anything.

    Raises:
        NoNetwork: where nothing answers; what came is kept.
        UserError: where the file cannot be had there.
    """
    fruitless, had = 0, file.had()
    while True:
        try:
            return _receive(file)
        except _Whole:
            return
        except NoNetwork as error:
            raise NoNetwork(f"{error}{_kept(file)}") from error
        except _Cut as error:
            fruitless, had = (0, file.had()) if file.had() > had else (fruitless + 1, had)
            if fruitless == TRIES:
                why = f"{file.name}: {file.host} stopped answering ({error}).{_kept(file)}"
                raise NoNetwork(why) from None
            log.info("%s: %s; asking again from %s on", file.name, error, megabytes(file.had()))
            time.sleep(max(PAUSE * 2**fruitless, error.wait))


def _kept(file: Download) -> str:
    had = file.had()
    return f" {megabytes(had)} of it are kept, and the same command goes on." if had else ""


def _receive(file: Download) -> None:
    begin = file.had()
    if begin and not file.version and not file.checked:
        file.forget()
        begin = 0
    if begin and begin == file.size:
        raise _Whole
    with _answer(file, begin) as answer:
        begin, total = _extent(file, answer, begin)
        shown = tqdm(
            total=total, initial=begin, unit="B", unit_scale=True, desc=file.name, mininterval=0.5
        )
        with open(file.part, "r+b" if begin else "wb") as to, shown as bar:
            to.seek(begin)
            while block := _read(answer):
                to.write(block)
                bar.update(len(block))
            to.flush()
            sync(to.fileno())
    if total is not None and file.had() < total:
        raise _Cut("the connection was closed early")
    if (total is not None and file.had() > total) or not file.had():
        file.forget()
        raise _Cut("it sent another number of bytes than it said")


def _answer(file: Download, begin: int) -> http.client.HTTPResponse:
    """What the server says to a request of the rest, of which begin bytes are there."""
    headers = dict(HEADERS)
    if begin:
        headers["Range"] = f"bytes={begin}-"
        if file.version:
            headers["If-Range"] = file.version
    request = urllib.request.Request(file.url, headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        raise _refusal(file, error) from error
    except (OSError, http.client.HTTPException) as error:
        raise _failure(file, error) from error


def _extent(file: Download, answer: http.client.HTTPResponse, begin: int) -> tuple[int, int | None]:
    """Where the answer begins in the file, and how long the file is."""
    kind = answer.headers.get_content_type()
    if kind in TEXT or answer.headers.get("Content-Encoding", "identity") != "identity":
        raise UserError(
            f"{file.name}: {file.host} sent {kind} in place of the file, as it does where a quota "
            "is used up or somebody has to log in."
        )
    if answer.status not in (200, 206):
        raise UserError(f"{file.name}: {file.host} answers {answer.status} {answer.reason}.")
    # what a comparison is good for: a strong ETag, else a date
    tag, date = (answer.headers.get(name, "") for name in ("ETag", "Last-Modified"))
    version = date if tag.startswith("W/") or not tag else tag
    if answer.status == 206:
        total = _continued(file, answer, begin, version)
    else:
        total = _number(answer.headers.get("Content-Length")) or file.size
    if file.size not in (None, total):
        raise UserError(
            f"{file.name}: {file.host} has {total} bytes under that name, and the published file "
            f"has {file.size}: it is another one."
        )
    if total is None and not file.checked:
        raise UserError(
            f"{file.name}: {file.host} does not say how long it is, and nobody has published that, "
            "so that a part of it could not be told from all."
        )
    if answer.status == 200:  # from its first byte: it has changed, or ranges are not served
        begin = 0
        file.forget()
        write_atomically(file.validator, version)
    return begin, total


def _continued(
    file: Download, answer: http.client.HTTPResponse, begin: int, version: str
) -> int | None:
    """The length that an answer to a Range says, which has to be the rest of the same version."""
    extent = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    # what was asked for with If-Range need not be named again
    same = version in ("", file.version) or not file.version
    if not extent or int(extent[1]) != begin or not same:
        file.forget()
        raise _Cut("it sent another part than was asked for")
    return _number(extent[2])


def _number(text: str | None) -> int | None:
    return int(text) if text and text.strip().isdecimal() else None


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(_words(error)) from error


def _refusal(file: Download, error: urllib.error.HTTPError) -> Exception:
    """What an answer of 400 and more means."""
    if error.code == 416:
        if error.headers.get("Content-Range") == f"bytes */{file.had()}":
            return _Whole()
        file.forget()  # more is there than the server has
        return _Cut("what was there is no beginning of it")
    said = f"answers {error.code} {_words(error.reason)}"
    if error.code in TRANSIENT:
        wait = _number(error.headers.get("Retry-After")) or 0
        return _Cut(f"it {said}", min(wait, LONGEST))
    return UserError(f"{file.name}: {file.host} {said}.")


def _failure(file: Download, error: Exception) -> Exception:
    """What became of a request that was not answered."""
    cause = getattr(error, "reason", error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return UserError(f"{file.name}: {file.host} cannot be trusted ({_words(cause)}).")
    passing = (ssl.SSLError, TimeoutError, ConnectionResetError, http.client.HTTPException)
    if isinstance(cause, passing):
        return _Cut(_words(cause))
    return NoNetwork(f"{file.name}: no network: {file.host} does not answer ({_words(cause)}).")


def _words(error: object) -> str:
    said = getattr(error, "strerror", None) or str(error)
    return " ".join(said.split()).rstrip(".") or type(error).__name__


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.{0 if size >= 1e7 else 2}f} MB"
