"""A run's directory: whose it is, and what describes it."""

from __future__ import annotations

import csv
import io
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from runtime.config import differences
from runtime.errors import UserError
from runtime.files import write_atomically

IDENTITY = "identity.json"
PACKAGES = ("torch", "torchvision", "triton", "numpy", "hydra-core", "omegaconf", "safetensors", "pillow", "scikit-image", "wandb")


def claim(directory: Path, identity: dict[str, Any]) -> None:
    """Makes the directory, or checks that it belongs to this very run. Raises UserError, with the difference, where it does not."""
    path = directory / IDENTITY
    directory.mkdir(parents=True, exist_ok=True)
    if path.exists():
        if lines := differences(identity, json.loads(path.read_text())):
            raise UserError(f"{directory} holds a run with another config. There -> here:\n  " + "\n  ".join(lines)
                            + "\nGive this one its own run.directory, or leave run.directory out.")
    elif any(directory.glob("checkpoints/step_*")):
        raise UserError(f"{directory} has checkpoints but no {IDENTITY}, so whose they are is unknown: move it away.")
    else:
        write_json(path, identity)


def describe(directory: Path, config: dict[str, Any], precision: str, device: torch.device) -> None:
    """config.yaml and environment.json."""
    write_atomically(directory / "config.yaml", OmegaConf.to_yaml(config))
    write_json(directory / "environment.json", {"precision": precision, **machine(device), "command": " ".join(sys.argv)})


def machine(device: torch.device) -> dict[str, Any]:
    """What numbers depend on beside their settings: the code, its packages, and what they ran on."""
    return {"device": device_name(device), "threads": torch.get_num_threads(), "python": platform.python_version(),
            "platform": platform.platform(), "commit": commit(), "packages": versions()}


def kept_precision(directory: Path) -> str | None:
    """The precision with which this run was begun."""
    path = directory / "environment.json"
    return json.loads(path.read_text())["precision"] if path.exists() else None


def device_name(device: torch.device) -> str:
    """The model of the GPU, or "cpu (MODEL, INSTRUCTION SET)", as another CPU gives other last digits."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({cpu_model()}, {torch.backends.cpu.get_cpu_capability()})"


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name") and ":" in line)
    return next(filter(None, named), platform.processor() or platform.machine())


def versions() -> dict[str, str]:
    def version(name):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "absent"

    return {name: version(name) for name in PACKAGES}


def commit() -> str | None:
    """The git commit of this code, "+" behind it where files were changed since."""
    def git(*arguments):
        return subprocess.run(["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, timeout=20)

    try:
        head, status = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if status.stdout.strip() else "") if head.returncode == 0 else None


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    write_atomically(path, buffer.getvalue())
