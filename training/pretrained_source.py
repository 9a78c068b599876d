"""Which source a target starts from: what source.from names, found and, where it is small and
missing, trained first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.identity import digest
from config.overrides import composed_of_then, options
from config.run_config import RunConfig
from runtime import checkpoint
from runtime.checkpoint import Which
from runtime.errors import UserError, near
from training.config_checks import check_run_config
from training.resume import is_finished
from training.run_directory import name_run, open_images
from training.start_from_source import check_fits, check_images_known
from transfer.trained_weights import (
    TrainedWeights,
    average_of,
    of_checkpoint,
    open_weights,
    published_config,
    published_settings,
)


@dataclass(frozen=True)
class PretrainedSource:
    """Where a target's weights come from: weights that are there, or the run of an experiment that
    may still have to be trained.

    Args:
        config: its own.
        identity: what it adds to the identity of the target's run, no path among it.
        directory: of the experiment's run.
        which: of its sets of weights is taken.
    """

    name: str
    config: RunConfig
    identity: dict[str, Any]
    weights: TrainedWeights | None = None
    directory: Path = Path()
    which: Which = "ema"

    def find_weights(self) -> TrainedWeights | None:
        """Those to start from: of an experiment, at its last step, or a later one where the run was
        continued."""
        if self.weights:
            return self.weights
        for found in checkpoint.all_checkpoints(self.directory / "checkpoints"):
            if is_finished(found, self.config.train.steps):
                averaged = self.which == "average"
                return average_of(self.directory) if averaged else of_checkpoint(found)
        return None


def find_source(config: RunConfig) -> PretrainedSource | None:
    """The source that config names, without training it yet; None where there is none.

    Raises:
        UserError: where nothing has that name, or its network does not fit.
    """
    name = config.source.from_
    if name is None or not config.source.include:
        return None
    if Path(name).expanduser().exists() or "/" in name or name in published_settings():
        if not Path(name).is_file() and (known := published_config(name)):
            check_fits(config, known)  # before it is fetched
        weights = open_weights(name, config.source.weights, otherwise=config)
        check_fits(config, weights.config)
        check_images_known(config, weights)
        digest_of = f"sha256 {weights.digests[config.source.weights][:16]}"
        return PretrainedSource(name, weights.config, {"from": digest_of}, weights)
    if name not in options("experiment"):
        raise UserError(
            f"source.from={name}: neither a folder or file here, nor a name on the Hugging Face "
            "Hub, which is OWNER/NAME, nor a published file, nor an experiment; "
            f"{near(name, [*options('experiment'), *published_settings()])}"
        )
    return _run_of(name, config)


def _run_of(experiment: str, config: RunConfig) -> PretrainedSource:
    raw = composed_of_then("train", [f"+experiment={experiment}", *config.source.overrides])
    raw["run"] |= {
        key: config.raw["run"].get(key)
        for key in ("root", "cache", "device", "kernels", "compile", "hours")
    }
    own = check_run_config(raw | {"wandb": config.raw["wandb"]})
    if own.source.from_ is not None:
        raise UserError(
            f"source.from={experiment}: that experiment has a source of its own. Train it first "
            "and give source.from= its directory."
        )
    check_fits(config, own)
    try:
        images = open_images(own)
        own = own.with_classes(len(images.classes))
        who, directory = name_run(own, images.fingerprint, None, ())
    except UserError as error:
        raise UserError(
            f"source.from={experiment} needs its images, to be trained or to be found: "
            f"{error}\nWithout them give source.from= a run directory of it or published weights "
            "(docs/pretrained.md), or say where they are: 'source.overrides=[\"data.path=DIR\"]'"
        ) from error
    who = {"run": digest(who), "steps": own.train.steps}
    return PretrainedSource(experiment, own, who, directory=directory, which=config.source.weights)
