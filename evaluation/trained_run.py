"""A run that has been trained, opened again: its network, its images, what it started from and its
source's images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from config.old_spelling import refuse_old_override
from config.run_config import RunConfig
from data.dataset import Dataset, open_dataset
from data.image_reader import ImageReader
from data.settings import DataSettings, reader_keys
from data.splits import spread
from diffusion.denoiser import Denoiser
from runtime.checkpoint import Checkpoint, Which
from runtime.errors import UserError
from runtime.files import read_json
from runtime.seeds import generator
from sampling.pipeline import NULL_CLASS
from training.run_directory import IDENTITY
from transfer.source_images import own_images
from transfer.trained_weights import (
    TrainedWeights,
    average_of,
    of_checkpoint,
    origin_of,
    read_origin,
    source_of,
    start_of,
)

# images of the source: so few are not measured on while it has others, and no more than so many
ENOUGH, MOST = 100, 2000
MOVED = "'overrides=[\"data.path=DIR\"]'"


class SourceImages(NamedTuple):
    """images: [*, H, W, C] uint8. labels: [*] as the run's network knows them, or None for its null
    class. rows: those that count, of this split. groups: [*], see data.dataset.Dataset."""

    images: np.ndarray
    labels: np.ndarray | None
    rows: np.ndarray
    split: str
    groups: np.ndarray | None


@dataclass(frozen=True)
class TrainedRun:
    """checkpoint: of the run. overrides: of the section data, where its images have moved.
    elsewhere: where its source is, if that moved. cache: of decoded images."""

    checkpoint: Checkpoint
    which: Which
    overrides: Sequence[str]
    elsewhere: str | None
    cache: Path

    @property
    def directory(self) -> Path:
        return self.checkpoint.path.parent.parent

    @cached_property
    def trained(self) -> TrainedWeights:
        """With its adapters merged."""
        averaged = self.which == "average"
        return average_of(self.directory) if averaged else of_checkpoint(self.checkpoint)

    @property
    def config(self) -> RunConfig:
        return self.trained.config

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return self.trained.load(self.which)

    def build_denoiser(self, device: torch.device) -> Denoiser:
        return self.config.frozen_denoiser(self.weights, device)

    @cached_property
    def data(self) -> DataSettings:
        images = tuple(f"data.{key}=" for key in reader_keys(self.config.raw["data"]))
        for line in self.overrides:
            refuse_old_override(line, self.config.raw["data"]["_target_"])
            if not line.startswith(images):
                raise UserError(f"overrides={line}: they are of the run's images, such as {MOVED}.")
        try:
            changes = OmegaConf.from_dotlist(list(self.overrides))
            merged: Any = OmegaConf.to_container(
                OmegaConf.merge({"data": self.config.raw["data"]}, changes)
            )
        except OmegaConfBaseException as error:
            raise UserError(f"overrides={list(self.overrides)}: {error}") from error
        return self.config.with_sections(data=merged["data"]).data

    @cached_property
    def reader(self) -> ImageReader:
        return self.data.open_reader(self.cache)

    @cached_property
    def images(self) -> tuple[Dataset, list[Any]]:
        """What the run was trained on and what was held out, and what decides their pixels."""
        data = self.data
        try:
            reader = self.reader
            self._check_same(reader.fingerprint)
            dataset = open_dataset(data, reader, self.config.seed, self.cache)
        except UserError as error:
            raise UserError(
                f"the images of {self.directory}: {error}\nWhere they are: {MOVED}"
            ) from error
        later = data.resizing[4:]  # fit and bands, where they are not at their defaults
        shape = [data.height_width, data.channels, data.resample, data.upscale, *later]
        return dataset, [reader.fingerprint, *shape]

    def _check_same(self, fingerprint: str) -> None:
        """Of other images the split would be another one, with images that were trained on among
        those held out."""
        path = self.directory / IDENTITY
        if not path.is_file():
            return
        said = read_json(path, "copy it again from where the run was trained")
        if said.get("data", {}).get("images", fingerprint) != fingerprint:
            raise UserError(
                "these are not the images that it was trained on: some were added, removed, "
                "renamed or changed since, or another folder was given. Put them back as they "
                "were, or judge images=DIR against folders train=DIR test=DIR."
            )

    @property
    def has_source(self) -> bool:
        return read_origin(self.directory) is not None

    @cached_property
    def source(self) -> TrainedWeights:
        """What the run started from, of a run that had a source. Raises UserError where that is
        gone."""
        return source_of(origin_of(self.directory), self.config, self.elsewhere)

    @cached_property
    def untouched_weights(self) -> dict[str, Tensor]:
        """The whole source in the shapes of this run, of a run that had one: what there was to
        forget, whichever of it the run copied."""
        whole = self.config.raw["source"] | {"include": ["*"], "depth": None, "copy": None}
        return start_of(self.config.with_sections(source=whole), self.source)

    def source_images(self) -> SourceImages:
        """Images of the source, at this run's size and channels: of its test images, or its
        validation images, or, where either are fewer than 100, of those it was trained on; at most
        2,000, of every class its share, the same for every run.

        Raises:
            UserError: where the source does not say its images, or they are gone.
        """
        theirs = own_images(self.source, self.data, self.cache)
        splits = (s for s in ("test", "validation") if len(theirs.splits[s]) >= ENOUGH)
        split = next(splits, "train")
        rows = spread(theirs.splits[split], MOST, theirs.labels)
        kept = self.config.kept_classes(self.source.config)
        labels = theirs.labels + (self.config.classes - kept) if kept else None
        return SourceImages(theirs.images, labels, rows, split, theirs.groups)


def image_classes(
    label: int | str | None, known: int, dataset: Dataset
) -> int | str | list[int] | None:
    """The class of each image, a list in turn; None for the null class.

    Args:
        label: as in conf/evaluate.yaml.
        known: to the network, those of its source that it keeps included, which are none of the
            images' that the generated ones are compared with.
    """
    if label == NULL_CLASS:
        return None
    if not known:
        return label
    if label == "all":
        return list(range(max(1, len(dataset.classes))))
    if label is None:
        train = dataset.labels[dataset.splits["train"]]
        return train[torch.randperm(len(train), generator=generator("classes")).numpy()].tolist()
    return label
