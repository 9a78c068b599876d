"""What numbers depend on beside settings: machine, packages, commit, precision."""

import os
import platform
import re
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from runtime.errors import UserError
from runtime.files import Damaged, put_aside, read_json, write_atomically, write_json
from runtime.precision import PRECISIONS, pick_precision

ENVIRONMENT, FOLDER = "environment.json", "folder"
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


def describe(directory: Path, config: dict[str, Any], precision: str, device: torch.device) -> None:
    """config.yaml and environment.json."""
    from omegaconf import OmegaConf  # which the benchmarks do without on a bare GPU machine

    write_atomically(directory / "config.yaml", OmegaConf.to_yaml(config))
    given = {"command": " ".join(sys.argv), FOLDER: os.getcwd()}
    write_json(directory / ENVIRONMENT, {"precision": precision, **machine(device), **given})


def folder_of(directory: Path) -> str | None:
    """Where the command of this run was given; None where that is not known."""
    try:
        return read_json(directory / ENVIRONMENT).get(FOLDER)
    except (FileNotFoundError, Damaged):
        return None


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
    """The precision with which this run was begun.

    Args:
        asked: train.precision.
    Raises:
        UserError: where environment.json is gone or damaged and does not follow from these: auto on
            a GPU, as the run may have begun on another one.
    """
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
    info = Path("/proc/cpuinfo")
    cpus = info.read_text() if info.exists() else ""
    named = re.search(r"^model name.*?:[ \t]*(\S.*)$", cpus, re.M)
    model = named[1].strip() if named else platform.processor() or platform.machine()
    return f"{device.type} ({model}, {torch.backends.cpu.get_cpu_capability()})"


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
    command = ["git", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+"]
    folder = Path(__file__).parent
    try:
        return subprocess.check_output(
            command, cwd=folder, stderr=subprocess.DEVNULL, text=True, timeout=20
        ).strip()
    except (OSError, subprocess.SubprocessError):
        return None
