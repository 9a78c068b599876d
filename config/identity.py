"""What a run is: everything that changes its numbers, and nothing else."""

from typing import Any

from config.old_spelling import as_then
from config.run_config import RunConfig
from data.settings import reader_keys
from runtime.content import sha256_of

NUMBERS = (
    "seed",
    "data",
    "model",
    "schedule",
    "network_schedule",
    "parameterization",
    "variance",
    "loss",
    "timesteps",
    "optimizer",
    "train",
    "transfer",
    "source",
)
# section: keys that came after runs had names, and their defaults, which are no part of a name
LATER: dict[str, dict[str, Any]] = {
    "data": {
        "subset_seed": None,
        "fit": "crop",
        "bands": None,
        "fold": None,
        "validation_of_train": None,
    },
    "train": {"ema_lengths": []},
}
# the same of whole sections
LATER_SECTIONS: dict[str, dict[str, Any]] = {
    "learning_rate": {"_target_": "training.learning_rate.Constant"},
}
PICTURES = ("shown",)  # keys of section data that are about pictures alone


def identity(config: RunConfig, images: str) -> dict[str, Any]:
    """The part of a config that decides the weights. images: their fingerprint, which counts, not
    their path. The number of steps does not count, so that a larger one continues a run: a learning
    rate that depends on it has it among its own settings."""
    chosen = as_then({section: config.raw[section] for section in NUMBERS})
    reader = reader_keys(config.raw["data"])
    chosen["data"] = _without(chosen["data"], "_target_", *reader, *PICTURES) | {"images": images}
    chosen["train"] = _without(chosen["train"], "steps")
    chosen["source"] = _without(chosen["source"], "train")
    if config.augmentation.on:
        chosen["augmentation"] = config.augmentation.counted()
    for section, default in LATER_SECTIONS.items():
        if (node := config.raw.get(section, default)) != default:
            chosen[section] = node
    for section, defaults in LATER.items():
        at_default = [key for key, value in defaults.items() if chosen[section].get(key) == value]
        chosen[section] = _without(chosen[section], *at_default)
    return chosen


def _without(section: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in keys}


def digest(identity: dict[str, Any]) -> str:
    return sha256_of(identity)[:8]
