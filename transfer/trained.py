"""Trained weights as a plain network has them: what was injected is merged, and a difference from a source is laid on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from models.network import build_network
from models.pretrained import Trained, open_pretrained, open_with
from runtime.build import build
from runtime.checkpoint import EMA, FILES, MODEL
from runtime.errors import UserError
from runtime.files import Damaged, put_aside, read_sealed, sha256, write_sealed
from runtime.randomness import derive
from transfer.fit import Fit, fit
from transfer.inject import inject, load, merge

SOURCE = "source.json"  # of a run: where its weights came from, and what became of every tensor
DIFFERENCE = "difference from a source"  # the one metadata key of such a file


def open_plain(name: str, config: dict[str, Any] | None = None) -> Trained:
    """open_pretrained, and what export.py writes, as a plain network has them."""
    return open_difference(name, None) if is_difference(name) else plain(open_pretrained(name, config))


def open_named(name: str, trained_as: str | None, overrides: Sequence[str], source: str | None) -> Trained:
    """open_plain for a command line: open_with, or open_difference."""
    return open_difference(name, source) if is_difference(name) else plain(open_with(name, trained_as, overrides))


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
        return self.found.state | {"config": _with_nothing_injected(self.found.state["config"])}

    def weights(self, which: str = EMA) -> dict[str, Tensor]:
        return merged(self.found.state["config"], self.found.weights(which))


def _with_nothing_injected(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"transfer": config["transfer"] | {"inject": []}}


def merged(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the plain network that equals the one with these tensors."""
    network = build_network(config)
    network.load_state_dict({name: tensors[name] for name in network.state_dict()})  # before, as what is injected may be made of them
    inject(network, [build(node, ["transfer"], f"transfer.inject[{k}]") for k, node in enumerate(config["transfer"].get("inject", []))])
    load(network, tensors)
    merge(network)
    return network.state_dict()


def fitted(config: dict[str, Any], network: nn.Module, source: Trained) -> tuple[dict[str, Tensor], list[Fit]]:
    """The source's weights in the shapes of a run's network, which is as it was initialized, and what became of each tensor."""
    settings = build({"_target_": "transfer.fit.SourceSettings", **config["source"]}, ["transfer"], "source")
    kept = settings.kept(source.state["config"])
    return fit(source.weights(FILES[settings.weights]), network.state_dict(), settings, kept, config["seed"])


def start_of(config: dict[str, Any], source: Trained) -> dict[str, Tensor]:
    """The weights that a run with this config started from."""
    torch.manual_seed(derive(config["seed"], "weights"))
    return fitted(config, build_network(config), source)[0]


def source_of(origin: dict[str, Any], config: dict[str, Any], elsewhere: str | None) -> Trained:
    """The source that a run with this config started from, at its path or elsewhere. origin: the run's source.json. Raises UserError where
    it is gone or is another one."""
    where = elsewhere or origin["path"]
    try:
        found = open_plain(where, config)
    except UserError as error:
        raise UserError(f"the source of this run is needed, and was in {origin['path']}: {error}\nIf it was moved, move "
                        "it back, or say where to: source=PATH.") from error
    if found.state["sha256"][origin["weights"]] != origin["sha256"]:
        raise UserError(f"{where} is not the source of this run: its weights have another sha256. Say where that one is: source=PATH.")
    if left_without_classes(config, found.state["config"]) and "null_row" not in origin:
        raise UserError(f"this run started from {where} without the null row of its class table, as an older version of this code did, and "
                        "its start cannot be made again: train it anew.")
    return found


def write_origin(run: Path, origin: dict[str, Any], tensors: Sequence[Fit]) -> None:
    """tensors: what became of each."""
    write_sealed(run / SOURCE, origin | {"tensors": [row._asdict() for row in tensors]}, indent=1)


def left_without_classes(config: dict[str, Any], source: dict[str, Any]) -> bool:
    """Whether a source with classes goes to a network without."""
    return bool(source["model"].get("classes", 0)) and not config["model"].get("classes", 0)


def read_origin(run: Path) -> dict[str, Any] | None:
    """source.json of a run; None where it had no source. Raises Damaged."""
    path = run / SOURCE
    if not path.is_file():
        return None
    return read_sealed(path, "copy it again from where the run was trained", ["path", "weights", "sha256", "tensors"], unsealed=True)


def has_origin(run: Path) -> bool:
    """Whether source.json is there and whole. One that is damaged is put aside: a run that goes on makes it again, of its source."""
    try:
        return read_origin(run) is not None
    except Damaged as error:
        put_aside(run / SOURCE, str(error).split(": copy it")[0])
        return False


def origin_of(run: Path) -> dict[str, Any]:
    """The same. Raises UserError where it had no source."""
    origin = read_origin(run)
    if origin is None:
        raise UserError(f"{run} was not started from a source (it has no {SOURCE}).")
    return origin


def difference(found: Trained, origin: dict[str, Any], names: Collection[str]) -> bytes:
    """A file of the tensors `names`, the average, with all that it takes to lay them on the source again."""
    average = found.weights(EMA)
    tensors = {name: average[name].contiguous() for name in names}
    about = {"config": found.state["config"], "step": found.step, "classes": list(found.state["classes"]), "sha256": _digest(tensors),
             "source": {key: value for key, value in origin.items() if key != "tensors"}}
    return safetensors.torch.save(tensors, {DIFFERENCE: json.dumps(about, sort_keys=True)})


def _digest(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(safetensors.torch.save(dict(sorted(tensors.items())))).hexdigest()


def is_difference(name: str) -> bool:
    """Raises UserError for a damaged file of tensors, which may be one."""
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
    about: dict[str, Any]
    step: None = None

    def weights(self, which: str = EMA) -> dict[str, Tensor]:
        tensors, config = safetensors.torch.load_file(self.path), self.about["config"]
        if _digest(tensors) != self.about["sha256"]:
            raise UserError(f"{self.path}: damaged: its tensors do not have the sha256 that it says. Copy or make it again.")
        return merged(config, self.start() | tensors)

    def start(self) -> dict[str, Tensor]:
        """What its run started from."""
        return start_of(self.about["config"], self.source)


def open_difference(name: str, elsewhere: str | None) -> Laid:
    """A file that difference() made. elsewhere: where the source is, if not where it was. Raises UserError where the source is gone."""
    path = Path(name).expanduser()
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads(file.metadata()[DIFFERENCE])
        config, digest, origin = about["config"], sha256(path), about["source"]
        state = {"step": about["step"], "classes": about["classes"], "sha256": {MODEL: digest, EMA: digest},
                 "config": _with_nothing_injected(config)}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged: what it says of itself cannot be read ({error}). Copy or make it again.") from error
    return Laid(path, source_of(origin, config, elsewhere), state, about)
