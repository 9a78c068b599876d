"""Trained weights as a plain network has them: what was injected is merged, and a difference from a source is laid on it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from models.network import build_network
from models.pretrained import Trained, open_pretrained
from runtime.build import build
from runtime.checkpoint import EMA, MODEL
from runtime.errors import UserError
from runtime.files import sha256
from runtime.randomness import derive
from transfer.fit import SourceSettings, fit
from transfer.inject import inject, load, merge

SOURCE = "source.json"  # of a run: where its weights came from, and what became of every tensor
DIFFERENCE = "difference from a source"  # the one metadata key of such a file


def plain(found: Trained) -> Trained:
    """The same with its injected parameters merged, where it has some."""
    return Merged(found) if found.state["config"].get("transfer", {}).get("inject") else found


@dataclass(frozen=True)
class Merged:
    """A checkpoint of a network with injected parameters, which its weights() have merged into the plain ones."""

    found: Trained

    @property
    def path(self) -> Path:
        return self.found.path

    @property
    def step(self) -> int | None:
        return self.found.step

    @property
    def state(self) -> dict[str, Any]:
        config = self.found.state["config"]
        return self.found.state | {"config": config | {"transfer": config["transfer"] | {"inject": []}}}

    def weights(self, which: str = EMA) -> dict[str, Tensor]:
        return merged(self.found.state["config"], self.found.weights(which))


def merged(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the plain network that equals the one with these tensors."""
    network = build_network(config)
    network.load_state_dict({name: tensors[name] for name in network.state_dict()})  # before, as what is injected may be made of them
    inject(network, [build(node, ["transfer"], f"transfer.inject[{k}]") for k, node in enumerate(config["transfer"].get("inject", []))])
    load(network, tensors)
    merge(network)
    return network.state_dict()


def start_of(config: dict[str, Any], source: Trained) -> dict[str, Tensor]:
    """The weights that a run with this config started from: the source's in the target's shapes."""
    settings = build({"_target_": "transfer.fit.SourceSettings", **config["source"]}, ["transfer"], "source")
    torch.manual_seed(derive(config["seed"], "weights"))
    network = build_network(config)
    kept = source.state["config"]["model"].get("classes", 0) if settings.keep_classes else 0
    return fit(source.weights(file_of(settings)), network.state_dict(), settings, kept, config["seed"])[0]


def file_of(settings: SourceSettings) -> str:
    return EMA if settings.weights == "ema" else MODEL


def source_of(origin: dict[str, Any], elsewhere: str | None) -> Trained:
    """The source that a run started from, at its path or elsewhere. origin: the run's source.json. Raises UserError where it is gone or
    is another one."""
    where = elsewhere or origin["path"]
    try:
        found = plain(open_pretrained(where))
    except UserError as error:
        raise UserError(f"the source of this run is needed, and was in {origin['path']}: {error}\nIf it was moved, move "
                        "it back, or say where to: source=PATH, of sample.py and export.py.") from error
    if found.state["sha256"][origin["weights"]] != origin["sha256"]:
        raise UserError(f"{where} is not the source of this run: its weights have another sha256. Say where that one is: source=PATH.")
    return found


def origin_of(run: Path) -> dict[str, Any]:
    """source.json of a run. Raises UserError where it had no source."""
    path = run / SOURCE
    if not path.is_file():
        raise UserError(f"{run} was not started from a source (it has no {SOURCE}).")
    return json.loads(path.read_text())


def difference(found: Trained, origin: dict[str, Any], names: Collection[str]) -> bytes:
    """A file of the tensors `names`, the average, with all that it takes to lay them on the source again."""
    about = {"config": found.state["config"], "step": found.step, "classes": list(found.state["classes"]),
             "source": {key: value for key, value in origin.items() if key != "tensors"}}
    tensors = found.weights(EMA)
    return safetensors.torch.save({name: tensors[name].contiguous() for name in names}, {DIFFERENCE: json.dumps(about, sort_keys=True)})


def is_difference(name: str) -> bool:
    """Whether difference() made this file. Raises UserError where it is cut short."""
    path = Path(name).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safetensors.safe_open(path, "pt") as file:
            return DIFFERENCE in (file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: damaged, or no file of weights: {error}. Copy or download it again.") from error


@dataclass(frozen=True)
class Laid:
    """A difference, laid on its source."""

    path: Path
    source: Trained
    state: dict[str, Any]
    config: dict[str, Any]
    step: None = None

    def weights(self, which: str = EMA) -> dict[str, Tensor]:
        return merged(self.config, start_of(self.config, self.source) | safetensors.torch.load_file(self.path))


def open_difference(name: str, elsewhere: str | None) -> Laid:
    """A file that difference() made. elsewhere: where the source is, if not where it was. Raises UserError where the source is gone."""
    path = Path(name).expanduser()
    with safetensors.safe_open(path, "pt") as file:
        about = json.loads(file.metadata()[DIFFERENCE])
    config, digest = about["config"], sha256(path)
    state = {"step": about["step"], "classes": about["classes"], "sha256": {MODEL: digest, EMA: digest},
             "config": config | {"transfer": config["transfer"] | {"inject": []}}}
    return Laid(path, source_of(about["source"], elsewhere), state, config)
