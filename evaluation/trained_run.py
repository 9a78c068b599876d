"""A run that has been trained, opened again to be judged: its network, its images, what it started from and its source's images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from config.old_spelling import refuse_old_override
from config.run_config import RunConfig, reader_keys
from data.dataset import Dataset, open_dataset
from data.settings import DataSettings
from data.splits import spread
from diffusion.denoiser import Denoiser
from runtime.checkpoint import Checkpoint, Which
from runtime.directory import IDENTITY
from runtime.errors import UserError
from runtime.files import read_json
from runtime.seeds import generator
from transfer.source_images import own_images
from transfer.trained_weights import TrainedWeights, of_checkpoint, read_origin, source_of, start_of

NULL_CLASS = "null_class"
ENOUGH, MOST = 100, 2000  # images of the source: so few are not judged on while it has others, and no more than so many


@dataclass(frozen=True)
class Finished:
    """checkpoint: of the run. overrides: of the section data, where its images have moved. elsewhere: where its source is, if that moved.
    cache: of decoded images."""

    checkpoint: Checkpoint
    weights: Which
    overrides: Sequence[str]
    elsewhere: str | None
    cache: Path

    @property
    def directory(self) -> Path:
        return self.checkpoint.path.parent.parent

    @cached_property
    def trained(self) -> TrainedWeights:
        """With its adapters merged."""
        return of_checkpoint(self.checkpoint)

    @property
    def config(self) -> RunConfig:
        return self.trained.config

    @cached_property
    def trained_weights(self) -> dict[str, torch.Tensor]:
        return self.trained.load(self.weights)

    def denoiser(self, device: torch.device) -> Denoiser:
        return self.config.frozen_denoiser(self.trained_weights, device)

    @cached_property
    def data(self) -> DataSettings:
        content = {"data": self.config.raw["data"]}
        images = tuple(f"data.{key}=" for key in reader_keys(content["data"]))
        for line in self.overrides:
            refuse_old_override(line)
            if not line.startswith(images):
                raise UserError(f"overrides={line}: they are of the run's images, such as 'overrides=[\"data.path=DIR\"]'.")
        try:
            merged: Any = OmegaConf.to_container(OmegaConf.merge(content, OmegaConf.from_dotlist(list(self.overrides))))
        except OmegaConfBaseException as error:
            raise UserError(f"overrides={list(self.overrides)}: {error}") from error
        return self.config.with_sections(data=merged["data"]).data

    @cached_property
    def images(self) -> tuple[Dataset, list[Any]]:
        """What the run was trained on and what was held out, and what decides their pixels."""
        data = self.data
        try:
            reader = data.open_reader(self.cache)
            self._check_same(reader.fingerprint)
            return (open_dataset(data, reader, self.config.seed, self.cache),
                    [reader.fingerprint, data.height_width, data.channels, data.resample, data.upscale])
        except UserError as error:
            raise UserError(f"the images of {self.directory}: {error}\nWhere they are: 'overrides=[\"data.path=DIR\"]'") from error

    def _check_same(self, fingerprint: str) -> None:
        """Of other images the split would be another one, with images that were trained on among those held out."""
        path = self.directory / IDENTITY
        said = read_json(path, "copy it again from where the run was trained") if path.is_file() else {}
        if said.get("data", {}).get("images", fingerprint) != fingerprint:
            raise UserError("these are not the images that it was trained on: some were added, removed, renamed or changed since, or "
                            "another folder was given. Put them back as they were, or judge images=DIR against folders train=DIR test=DIR.")

    @property
    def has_source(self) -> bool:
        return read_origin(self.directory) is not None

    @cached_property
    def source(self) -> TrainedWeights | None:
        """What the run started from; None where it had no source. Raises UserError where that is gone."""
        origin = read_origin(self.directory)
        return source_of(origin, self.config, self.elsewhere) if origin else None

    @cached_property
    def start(self) -> dict[str, torch.Tensor]:
        """The weights that it started from, of a run that had a source."""
        return start_of(self.config, self.source)

    @cached_property
    def untouched(self) -> dict[str, torch.Tensor]:
        """The whole source in the shapes of this run, of a run that had one: what there was to forget, whichever of it the run copied."""
        whole = self.config.raw["source"] | {"include": ["*"], "depth": None, "copy": None}
        return start_of(self.config.with_sections(source=whole), self.source)

    def source_images(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, str]:
        """(images [*, H, W, C] uint8, labels as this network knows them or None for its null class, rows, their split) of the source, at
        this run's size and channels: of its test images, or its validation images, or, where either are fewer than 100, of those it was
        trained on; at most 2,000, of every class its share, the same for every run. Raises UserError where the source does not say its
        images, or they are gone."""
        theirs = own_images(self.source, self.data, self.cache)
        split = next((s for s in ("test", "validation") if len(theirs.splits[s]) >= ENOUGH), "train")
        rows = spread(theirs.splits[split], MOST, theirs.labels)
        kept = self.config.kept_classes(self.source.config)
        first = self.config.classes - kept
        return theirs.images, theirs.labels + first if kept else None, rows, split


def classes_of(label: int | str | None, known: int, dataset: Dataset) -> int | str | list[int] | None:
    """The class of each image, a list in turn; None for the null class. label: as in conf/evaluate.yaml. known: to the network, those of
    its source that it keeps included, which are none of the images' that the generated ones are compared with."""
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
