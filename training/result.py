"""What a run came to, read from its directory: a line in the tables of report.py and of a sweep."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from config.identity import LATER_SECTIONS, NUMBERS, digest
from config.old_spelling import translate
from config.overrides import CONF
from config.run_config import RunConfig
from runtime.content import canonical, leaves
from runtime.errors import UserError
from runtime.files import read_json, read_sealed
from training.run_directory import IDENTITY

RESULT = "result.json"  # written at each evaluation
MISSING = "-"
IMAGES = "data.images"  # a setting that no command line has: which images there were


@dataclass(frozen=True)
class Result:
    """What a run came to so far.

    Args:
        config: of the run, or its identity where it has not begun.
        values: of result.json, {} where there is none yet.
        kind: a hash of all that decides its numbers but for the seeds, also of the images and of
            the source's weights, which no config has.
        images: their fingerprint, "" where it is not known.
    """

    directory: Path
    config: dict[str, Any]
    values: dict[str, Any]
    kind: str = ""
    images: str = ""

    @property
    def strategy(self) -> str:
        return self.config.get("transfer", {}).get("name", MISSING)

    @property
    def seed(self) -> int | str:
        return self.config.get("seed", MISSING)

    @property
    def subset(self) -> int | str | None:
        """What its training images were drawn by; None where it takes all."""
        data = self.config.get("data", {})
        if data.get("n_train") is None:
            return None
        return self.seed if data.get("subset_seed") is None else data["subset_seed"]

    @property
    def loss(self) -> float | None:
        return self.values.get("held_out_loss")

    @property
    def finished(self) -> bool:
        return self.values.get("step", -1) >= self.steps

    @property
    def steps(self) -> float:
        """That it is asked for."""
        return self.config.get("train", {}).get("steps", math.inf)

    def settings(self) -> dict[str, Any]:
        """Path -> value of all that decides the numbers, but for the seed and that of the
        subset."""
        sections = [s for s in NUMBERS if s != "seed"]
        found = leaves(canonical({s: self.config[s] for s in sections if s in self.config}))
        settings = {path: value for path, value in found if path != "data.subset_seed"}
        # one text of a dozen numbers; it follows from it whether the network is told
        settings.pop("model.augmentations", None)
        if self.images:
            settings[IMAGES] = self.images[:8]
        if "model" not in self.config:  # a baseline, which was not trained
            return settings
        later = {s: self.config.get(s, default) for s, default in LATER_SECTIONS.items()}
        settings |= dict(leaves(canonical(later)))
        return settings | {"augmentation": RunConfig(self.config).augmentation.described()}

    def cells(self) -> dict[str, str]:
        """Column -> text, of the table of a sweep."""
        v, step = self.values, self.values.get("step")
        alone = self.subset in (None, self.seed)
        left = "" if self.finished or self.steps == math.inf else f" of {self.steps}"
        all_from = f", all from step {v['all_from']}" if v.get("all_from") else ""
        of_first = self.loss is not None and "held_out_grid" not in v
        device = "CPU" if str(v.get("device")).startswith("cpu") else "GPU"
        hours = v.get("hours")
        return {
            "strategy": self.strategy,
            "seed": str(self.seed) if alone else f"{self.seed}, images by {self.subset}",
            "trained": percent(v.get("trained_share")) + all_from,
            "steps": MISSING if step is None else f"{step}{left}",
            "held-out loss": (MISSING if self.loss is None else f"{self.loss:.4f}")
            + " (of the first files)" * of_first,
            "hours": MISSING if hours is None else f"{hours:.2f} {device}-hours",
        }


def read_result(directory: Path) -> Result:
    config, values, kind, images = {}, {}, "", ""
    begin = "delete its directory and give the command of the run again"
    if (path := directory / IDENTITY).exists():
        config = read_json(path, begin)
        data = config.get("data", {}) | {"subset_seed": None}
        kind, images = digest(config | {"seed": None, "data": data}), data.get("images", "")
        # spelled out there, with every default, as no config is
        config.get("transfer", {}).pop("rules", None)
    if (path := directory / "config.yaml").exists():
        mend = "delete it; the command of the run writes it anew where it goes on, or "
        config = _read_yaml(path, mend + begin)
    if (path := directory / RESULT).exists():
        mend = "delete it; the next evaluation of the run writes it anew, or "
        values = read_sealed(path, mend + begin, unsealed=True)
    return Result(directory, translate(config), values, kind, images)


def _read_yaml(path: Path, mend: str) -> dict[str, Any]:
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(path))
        if not all(isinstance(config[key], dict) for key in ("train", "transfer")):
            raise ValueError("train or transfer is no mapping")
    # OmegaConf's own, of what is no mapping, is an OSError
    except (
        YAMLError,
        OmegaConfBaseException,
        ValueError,
        LookupError,
        TypeError,
        OSError,
    ) as error:
        raise UserError(
            f"{path} is damaged ({str(error).partition(chr(10))[0]}): {mend}"
        ) from error
    return config


def varied(results: Sequence[Result]) -> list[str]:
    """The settings in which these runs differ, but for those that come with their strategies: what
    differs within one strategy, or between strategies that do not set it themselves. Which images
    there were is one where no other setting tells."""
    values: dict[str, dict[str, set[str]]] = {}
    for r in results:
        for path, value in r.settings().items():  # a run that has not begun knows less of itself
            values.setdefault(path, {}).setdefault(r.strategy, set()).add(json.dumps(value))
    own = {r.strategy: set_by(r.strategy) for r in results}

    def differs(path: str) -> bool:
        by_strategy = values[path]
        others = [by_strategy[s] for s in by_strategy if not path.startswith(own[s])]
        within = any(len(found) > 1 for found in by_strategy.values())
        return within or len(set().union(*others)) > 1

    told = [IMAGES] if images_follow(results) else []
    return [path for path in sorted(values) if path not in told and differs(path)]


def images_follow(results: Sequence[Result]) -> bool:
    """Whether runs with the same settings of the data have the same images."""
    found: dict[str, set[str]] = {}
    for r in results:
        about = {p: v for p, v in r.settings().items() if p.startswith("data.") and p != IMAGES}
        found.setdefault(json.dumps(about), set()).update([r.images] if r.images else [])
    return all(len(images) < 2 for images in found.values())


def set_by(strategy: str) -> tuple[str, ...]:
    """What the paths begin with that a preset sets: its own section, and others that its YAML
    names."""
    path = CONF / "transfer" / f"{strategy}.yaml"
    content: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
    untrained = ["train.steps"] if content.get("rules") == [] else []
    named = [path for path, _ in leaves(content) if path.split(".")[0] in NUMBERS]
    return ("transfer.", *untrained, *named)


def percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.3g}%"


def size(count: float) -> str:
    """Bytes in decimal units, as disks and memory are sold."""
    count = round(count)
    power = min(3, int(math.log10(max(1, count)) // 3))
    return f"{count / 1000**power:.1f} {('B', 'kB', 'MB', 'GB')[power]}"
