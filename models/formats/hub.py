"""Folders of the Hugging Face Hub, by their names."""

import logging
import os
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from models.formats.diffusers import INDEX, SCHEDULER, UNET, WEIGHTS
from runtime.errors import UserError
from runtime.files import sha256
from runtime.receive import NoNetwork
from runtime.signals import Preempted

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
SHA256 = re.compile(r"[0-9a-f]{64}")  # by which the Hub's cache names a large file
CLIENTS = ("httpx", "httpx2", "requests", "urllib3")  # of its library, by version
CONFIGS = (INDEX, UNET, SCHEDULER, f"unet/{UNET}", f"scheduler/{SCHEDULER}")
REASONS = {
    "RepositoryNotFoundError": "there is no such name, or it is private",
    "GatedRepoError": "its owner has to grant access",
}
log = logging.getLogger(__name__)


def download(name: str) -> Path:
    """The folder of OWNER/NAME in the Hub's cache, with the configs and one file of weights,
    downloaded where it is not there yet.

    Raises:
        NoNetwork: where the Hub does not answer.
        UserError: where it cannot be had, or has not the sha256 that the Hub states; with the way
            by hand.
    """
    log.info(
        "%s: no folder here, so it is taken from the Hugging Face Hub (or from its cache)", name
    )
    for client in CLIENTS:  # which tell of each request
        logging.getLogger(client).setLevel(logging.WARNING)
    # .bin is code as well as weights, and only the second choice
    for suffix in ("safetensors", "bin"):
        files = [f"{folder}{WEIGHTS}.{suffix}" for folder in ("", "unet/")]
        path = _snapshot(name, [*CONFIGS, *files])
        for file in files:
            if (path / file).is_file():
                _check(path / file, name)
                return path
    return path


def _snapshot(name: str, patterns: list[str]) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except Preempted:
        raise
    except Exception as error:  # of the network and of the Hub, from several packages
        said = (str(error).splitlines() or [""])[0].rstrip(".").removeprefix("Got: ")
        reason = REASONS.get(type(error).__name__, said or type(error).__name__)
        kind = NoNetwork if _is_silence(error) else UserError
        raise kind(
            f"{name}: no such folder or file here, and the download from the Hugging Face Hub "
            f"failed: {'no network: ' if kind is NoNetwork else ''}{reason}. By hand: hf download "
            f"{name} --local-dir DIR where there is a network, copy DIR here, and give that folder "
            "in place of the name."
        ) from error


def _is_silence(error: Exception) -> bool:
    """Whether nothing answered, or no more: not an answer of the Hub's, nor a fault of the disk."""
    answered = (getattr(each, "response", None) for each in (error, error.__cause__))
    if any(answer is not None for answer in answered):
        return False
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return True
    of_client = type(error).__module__.split(".")[0] in CLIENTS
    return of_client or isinstance(error, ConnectionError | TimeoutError)


def _check(file: Path, name: str) -> None:
    """Compares a file with the sha256 that the Hub states, which its library does not do.

    Raises:
        UserError: where it is another, which is put aside.
    """
    kept = file.resolve()
    if SHA256.fullmatch(kept.name) and (found := sha256(kept)) != kept.name:
        os.replace(kept, kept.with_name(f"{kept.name}.wrong"))
        file.unlink()
        raise UserError(
            f"{name}: {file.name} has the sha256 {found}, and the Hub states {kept.name}. It is "
            f"put aside as {kept}.wrong; the same command downloads it again."
        )
