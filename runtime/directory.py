"""A run's directory: whose it is, and what describes it."""

from __future__ import annotations

import csv
import io
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from runtime.content import differences
from runtime.device import PRECISIONS, pick_precision
from runtime.errors import UserError
from runtime.files import Damaged, put_aside, read_json, write_atomically

IDENTITY, ENVIRONMENT = "identity.json", "environment.json"
PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "numpy",
    "hydra-core",
    "omegaconf",
    "safetensors",
    "pillow",
    "scikit-image",
    "wandb",
)


def claim(directory: Path, identity: dict[str, Any]) -> None:
    """Makes the directory, or checks that it belongs to this very run. Raises UserError, with the
    difference, where it does not."""
    path, begun, theirs = directory / IDENTITY, any(directory.glob("checkpoints/step_*")), None
    directory.mkdir(parents=True, exist_ok=True)
    if path.exists():
        try:
            theirs = read_json(path)
        except Damaged as error:
            if begun:
                raise UserError(
                    f"{error}. It says whose the checkpoints beside it are: put back a copy of "
                    f"it, or move {directory} away, and the same command begins anew."
                ) from error
            put_aside(path, str(error))
    if theirs is None and begun:
        raise UserError(
            f"{directory} has checkpoints but no {IDENTITY}, so whose they are is unknown: move "
            "it away."
        )
    if theirs is None:
        write_json(path, identity)
    elif lines := differences(identity, theirs):
        raise UserError(
            f"{directory} holds a run with another config. There -> here:\n  "
            + "\n  ".join(lines)
            + "\nGive this one its own run.directory, or leave run.directory out."
        )


def describe(directory: Path, config: dict[str, Any], precision: str, device: torch.device) -> None:
    """config.yaml and environment.json."""
    write_atomically(directory / "config.yaml", OmegaConf.to_yaml(config))
    write_json(
        directory / ENVIRONMENT,
        {"precision": precision, **machine(device), "command": " ".join(sys.argv)},
    )


def machine(device: torch.device) -> dict[str, Any]:
    """What numbers depend on beside their settings: the code, its packages, and what they ran
    on."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": commit(),
        "packages": versions(),
    }


def kept_precision(directory: Path, asked: str, device: torch.device) -> str:
    """The precision with which this run was begun. asked: train.precision. Where environment.json
    is gone or damaged it is made anew if it follows from these; auto on a GPU does not, as the run
    may have begun on another one, and that raises UserError."""
    path = directory / ENVIRONMENT
    try:
        found = read_json(path, keys=["precision"])["precision"]
        if found in PRECISIONS:
            return found
        why = f"{path} is damaged (precision {found})"
    except FileNotFoundError:
        why = f"{path} is missing"
    except Damaged as error:
        why = str(error)
    if asked == "auto" and device.type != "cpu":
        raise UserError(
            f"{why}. It says the precision that train.precision=auto came to, with which the "
            "run has to go on. log.txt beside "
            'it has it too, such as "cuda, bf16, 90 training images": write {"precision": '
            '"bf16"} into the file. Or '
            f"move {directory} away, and the same command begins anew."
        )
    if path.exists():
        put_aside(path, why)
    return pick_precision(asked, device)


def device_name(device: torch.device) -> str:
    """The model of the GPU, or "cpu (MODEL, INSTRUCTION SET)", as another CPU gives other last
    digits."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({cpu_model()}, {torch.backends.cpu.get_cpu_capability()})"


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (
        line.split(":", 1)[1].strip()
        for line in lines
        if line.startswith("model name") and ":" in line
    )
    return next(filter(None, named), platform.processor() or platform.machine())


@cache
def versions() -> dict[str, str]:
    def version(name):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "absent"

    return {name: version(name) for name in PACKAGES}


@cache
def commit() -> str | None:
    """The git commit of this code, "+" behind it where files were changed since, as the process
    first asked for it: what it runs."""

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
        )

    try:
        head, status = (
            git("rev-parse", "HEAD"),
            git("status", "--porcelain", "--untracked-files=no"),
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (
        head.stdout.strip() + ("+" if status.stdout.strip() else "")
        if head.returncode == 0
        else None
    )


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    write_atomically(path, buffer.getvalue())
