"""A file of results, one JSON line each: what was measured, on which machine, by which code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import PACKAGES, nvidia_smi, version
from runtime.environment import commit, device_name

Record = dict[str, Any]
RESULTS = "results.jsonl"
# what runs: other folders may be of results, which grow meanwhile
OURS = "benchmarks conf config data diffusion evaluation kernels metrics models reporting runtime"
OURS += " sampling tests training transfer"


@cache
def code() -> str:
    """A hash of the files that run: a commit does not tell two changed trees apart, and may be
    unknown."""
    root, told = Path(__file__).parent.parent, hashlib.sha256()
    for path in (path for name in OURS.split() for path in sorted((root / name).rglob("*"))):
        if path.suffix in (".py", ".json", ".yaml"):
            told.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return told.hexdigest()[:12]


class Results:
    """DIR/results.jsonl: what this commit has told on this device, and where more is added."""

    def __init__(self, out: Path, device: torch.device):
        out.mkdir(parents=True, exist_ok=True)
        self.path, self.device = out / RESULTS, device
        self.where = {
            "device": device_name(device),
            "commit": commit() or "unknown",
            "code": code(),
            "torch": torch.__version__,
            **{name: version(name) for name in PACKAGES},
        }

    def lines(self) -> int:
        """How many there are, of whatever code."""
        return len(self.path.read_text().splitlines()) if self.path.exists() else 0

    def records(self) -> list[Record]:
        """A line that a kill has torn is left out."""
        found = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if self.where.items() <= record.items():
                    found.append(record)
        return found

    def add(self, step: str, **values: Any) -> Record:
        record = {"step": step, **values, **self.where}
        if values["state"] != "begun":
            driver, *now = nvidia_smi(self.device, "driver_version", "clocks.sm", "clocks.mem")
            record |= {"driver": driver, "clocks": now}
        record["at"] = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())  # UTC
        torn = self.path.exists() and not self.path.read_text().endswith("\n")
        with open(self.path, "a") as file:
            file.write("\n" * torn + json.dumps(record) + "\n")
        return record

    def known(self, step: str) -> set[str]:
        """The names of a step's results that are there: measured, or failed."""
        of_step = (r for r in self.records() if r["step"] == step and r["name"])
        return {r["name"] for r in of_step if r["state"] != "begun"}

    def ended(self) -> set[str]:
        """Steps that are done, or could not begin."""
        return {r["step"] for r in self.records() if r["name"] is None}

    def interrupted(self, step: str) -> str | None:
        """The name of what was begun and did not end."""
        begun = [r["name"] for r in self.records() if r["step"] == step and r["name"]]
        return begun[-1] if begun and begun[-1] not in self.known(step) else None

    def tries(self, step: str, name: str) -> int:
        """How often a part was begun."""
        begun = (r for r in self.records() if r["state"] == "begun")
        return sum((r["step"], r["name"]) == (step, name) for r in begun)


def spoken(found: Record) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in found.items()
    )
