"""The config of a run as a typed record. What may be built in each section is fixed here: a config
inside a checkpoint is foreign input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from config.old_spelling import translate
from config.sections import RunSettings, SourceSettings, TrainSettings, TransferSettings
from data.augmentation import TOLD, Augmentation
from data.settings import READERS, DataSettings, parse_data
from diffusion.denoiser import Denoiser
from diffusion.generate import SamplerSettings
from diffusion.losses import Loss
from diffusion.parameterization import Parameterization
from diffusion.schedule import NoiseSchedule
from diffusion.timesteps import Timesteps
from diffusion.variance import Variance
from models.layers import to_channels_last
from models.unet import UNet
from runtime.config_schema import bind, build, make, parse, resolve
from runtime.content import canonical
from runtime.environment import folder_of
from runtime.errors import UserError
from runtime.places import find_again
from runtime.wandb_copy import WandbSettings

T = TypeVar("T")
# sections that are nodes, and the packages that define their targets
NODES = {
    "model": ["models"],
    "schedule": ["diffusion"],
    "parameterization": ["diffusion"],
    "variance": ["diffusion"],
    "loss": ["diffusion"],
    "timesteps": ["diffusion"],
    "optimizer": ["torch.optim"],
    "learning_rate": ["training.learning_rate"],
}
PLACES = ("path", "root")  # how its settings are called that say where the images are
SETTINGS = ("data", "augmentation", "train", "transfer", "source", "sampler", "run", "wandb")
OF_STUDIES = ("study", "budget", "size")  # of a study (studies/), and of none of its runs
# what stands beside the sections
VALUES = {
    "experiment": str,
    "seed": int,
    "gpu_hours": float,
    "spacing": dict,
    "network_schedule": dict | None,
}


def _part(section: str, kind: Callable[..., T]) -> cached_property[T]:
    """What the node of a section builds, of this class, on the CPU."""

    def built(config: RunConfig) -> T:
        with torch.device("cpu"):
            return build(config.raw[section], NODES[section], section)

    return cached_property(built)


def _settings(section: str, kind: type[T], *packages: str) -> cached_property[T]:
    return cached_property(lambda config: parse(kind, config.raw[section], packages, section))


@dataclass(frozen=True)
class RunConfig:
    """raw: plain dicts and lists, for saving and for the run's identity. Each section is parsed
    once, where it is first read, and raises UserError where it is wrong; training.config_checks
    reads them all at a start. The config of published weights has some sections alone
    (models.formats.published.SECTIONS; of data the size and channels)."""

    raw: dict[str, Any]

    @classmethod
    def of_saved(cls, raw: dict[str, Any]) -> RunConfig:
        """From a checkpoint or a file that may be of before a spelling changed."""
        return cls(translate(raw))

    def with_sections(self, **sections: Any) -> RunConfig:
        """The same with these sections in place of its own."""
        return RunConfig(self.raw | sections)

    # what a trained network is

    @cached_property
    def model(self) -> Callable[..., UNet]:
        """(out_channels=...) -> the network, on the current default device, weights by the global
        seed."""
        return bind(self.raw["model"], NODES["model"], "model", ["out_channels"])

    schedule = _part("schedule", NoiseSchedule)
    parameterization = _part("parameterization", Parameterization)
    variance = _part("variance", Variance)

    @cached_property
    def network_schedule(self) -> NoiseSchedule | None:
        """The schedule whose timesteps the network knows, where that is not schedule."""
        node = self.raw.get("network_schedule")
        with torch.device("cpu"):
            return node and build(node, NODES["schedule"], "network_schedule")

    @property
    def classes(self) -> int:
        """Rows of the class table, without the null class; 0 for none."""
        return self.raw["model"].get("classes", 0)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W of the images that the network was made for."""
        size, channels = self.raw["data"]["size"], self.raw["data"]["channels"]
        if size is None:
            raise UserError(
                "the config of this network does not say the size of its images: write it there, "
                "as sample_size."
            )
        return (channels, size, size) if isinstance(size, int) else (channels, *size)

    @property
    def shown(self) -> Sequence[int] | None:
        """The channels that pictures show, counted from 1; None: see data.pixels.to_picture."""
        return self.raw["data"].get("shown")

    def build_network(self) -> UNet:
        """Its output channels follow from those of the image and from whether the variance is
        learned."""
        channels = self.raw["model"].get("in_channels", 3)
        return make(self.model, "model", out_channels=self.variance.outputs * channels)

    def shape_network(self) -> UNet:
        """The network without memory: names and shapes."""
        with torch.device("meta"):
            return self.build_network()

    def build_denoiser(self) -> Denoiser:
        """The network inside its schedule and parameterization."""
        return make(
            Denoiser,
            "",
            self.build_network(),
            self.schedule,
            self.parameterization,
            self.variance,
            self.network_schedule,
        )

    def frozen_denoiser(self, weights: dict[str, Tensor], device: torch.device) -> Denoiser:
        """The same with trained weights, to be asked and not trained. The global random stream is
        left alone."""
        with torch.random.fork_rng(devices=[]):
            denoiser = self.build_denoiser()
        denoiser.network.load_state_dict(weights)
        return to_channels_last(denoiser, device).eval().requires_grad_(False)

    # what a run is

    @property
    def experiment(self) -> str:
        """The folder of its runs below run.root."""
        return self.run.experiment or self.raw["experiment"]

    @property
    def seed(self) -> int:
        return self.raw["seed"]

    @cached_property
    def data(self) -> DataSettings:
        return parse_data(self.raw["data"])

    @cached_property
    def augmentation(self) -> Augmentation:
        """Of the training images; off in a config of before there was any."""
        return parse(Augmentation, self.raw.get("augmentation", {}), (), "augmentation")

    train = _settings("train", TrainSettings)
    transfer = _settings("transfer", TransferSettings, "transfer", "diffusion")
    source = _settings("source", SourceSettings, "transfer")
    sampler = _settings("sampler", SamplerSettings, "diffusion")
    run = _settings("run", RunSettings)
    wandb = _settings("wandb", WandbSettings)

    @cached_property
    def loss(self) -> Loss:
        return build(self.raw["loss"], NODES["loss"], "loss")

    @cached_property
    def learning_rate(self) -> Callable[[int], float]:
        """Step, counted from 0 -> the factor of every rate after the warm-up."""
        return build(self.raw["learning_rate"], NODES["learning_rate"], "learning_rate")

    def build_timesteps(self) -> Timesteps:
        return build(
            self.raw["timesteps"], NODES["timesteps"], "timesteps", steps=self.schedule.steps
        )

    # what its images and its source fill in

    @property
    def completed(self) -> RunConfig:
        """A strategy without rules trains nothing, so its run has no steps, and nothing is done to
        images. Where anything is, the network is told."""
        if not self.raw["transfer"]["rules"]:
            return self.with_sections(train=self.raw["train"] | {"steps": 0}, augmentation={})
        if not self.augmentation.on:
            return self
        return self.with_sections(model=self.raw["model"] | {"augmentations": TOLD})

    @property
    def untold(self) -> RunConfig:
        """With a network that is told of no augmentation: the same function, where images are as
        they are."""
        model = {k: v for k, v in self.raw["model"].items() if k != "augmentations"}
        return self.with_sections(model=model)

    def with_classes(self, new: int, kept: int = 0) -> RunConfig:
        """classes=auto and count=auto as numbers: new classes of the images, then those kept of the
        source. Images without classes are one class of their own, where the strategy wants one."""
        new, transfer = max(new, 1), self.raw["transfer"]
        inject = transfer.get("inject", [])
        if isinstance(inject, list):
            inject = [_filled(node, "count", new) for node in inject]
        return self.with_sections(
            model=_filled(self.raw["model"], "classes", new + kept),
            transfer=transfer | {"inject": inject},
        )

    def kept_classes(self, source: RunConfig | None) -> int:
        """How many classes of this source stay in the class table."""
        return source.classes if source and self.source.keep_classes else 0

    def with_schedule_of(self, source: RunConfig | None) -> RunConfig:
        """The network of a source knows the timesteps of the source's schedule, and goes on being
        given those.

        Raises:
            UserError: where what it says means something in its own schedule only.
        """
        if source is None or self.raw["network_schedule"]:
            return self
        known = source.raw.get("network_schedule") or source.raw["schedule"]
        if canonical(known) == canonical(self.raw["schedule"]):
            return self
        for section, target in (("parameterization", "PredictMean"), ("variance", "Learned")):
            ours, theirs = self.raw[section], source.raw[section]
            if ours["_target_"].endswith(f".{target}") and ours == theirs:
                raise UserError(
                    f"{section}={target} is about the steps of the source's schedule, and "
                    f"schedule= is another one: take the source's schedule, or another {section}."
                )
        return self.with_sections(network_schedule=known)


def _filled(node: Any, key: str, number: int) -> Any:
    return node | {key: number} if isinstance(node, dict) and node.get(key) == "auto" else node


def found_images(data: dict[str, Any], run: Path) -> dict[str, Any]:
    """Section data of a run, its images found from any working directory."""
    if "_target_" not in data:
        return data
    target = resolve(data["_target_"], READERS, "data")
    places = {*PLACES, *getattr(target, "places", ())}
    given = {key: data[key] for key in places if isinstance(data.get(key), str)}
    return data | {key: find_again(path, run, folder_of(run)) for key, path in given.items()}
