"""One run, from its config to its directory: the source is found or trained, the parts are built,
the loop trains."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from config.run_config import RunConfig
from data.batches import Batches
from data.dataset import Dataset, open_dataset
from data.image_reader import ImageReader
from data.pixels import to_picture, to_uint8
from data.splits import spread
from diffusion.denoiser import Denoiser
from diffusion.generate import warn_of_start
from kernels import dispatch
from models.layers import to_channels_last
from runtime.checkpoint import MODEL, Checkpoint
from runtime.device import forget_peak, pick_device, repeat_bits
from runtime.environment import describe, kept_precision
from runtime.errors import UserError, together
from runtime.files import locked, remove_leftovers, write_atomically, write_csv
from runtime.image_grid import captioned_grid, grid, png
from runtime.log import logged_to, recorded
from runtime.precision import arithmetic, pick_precision
from runtime.seeds import derive
from runtime.signals import StopAtOnce
from training.config_checks import check_network, check_run_config
from training.learning_rate import warm_up
from training.loop import Stream, Trainer, streams_of
from training.optimizer import build_optimizer
from training.pretrained_source import PretrainedSource, find_source
from training.resume import is_finished, restore
from training.run_directory import (
    claimed,
    last_checkpoint,
    name_run,
    open_images,
    tell_of_other_runs,
)
from training.start_from_source import (
    facts,
    start_from,
    start_of,
    tell_of_start,
    with_alike_trained,
)
from transfer.adapt_weights import planned_fit
from transfer.adapters import inject
from transfer.class_names import check_number_of_classes, class_names, tell_classes
from transfer.freezing_and_rates import ParameterPlan, rules_of
from transfer.trained_weights import AVERAGES, TrainedWeights, has_origin

log = logging.getLogger("train")
SMALL_GPU_HOURS = 0.2  # a missing source up to here is trained without being asked


def train(raw: dict[str, Any]) -> Path:
    """Trains what a composed config says, from where it was left.

    Returns:
        The run's directory.
    Raises:
        UserError: where the config, the images or the source are wrong, or memory is too small.
        Preempted: after saving, where a signal asked to stop.
    """
    config = check_run_config(raw)
    try:
        return run(config)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the device is out of memory ({str(error).splitlines()[0]}). train.accumulation=2 "
            "(or 4, 8) needs less for the same result; model.gradient_checkpointing=true less "
            "still."
        ) from error


def run(asked: RunConfig, wait: bool = False) -> Path:
    """The same of a config that was checked. wait: for another process that is at it."""
    plan = check_network(asked)
    with recorded() as said:  # before it is known where the run's log is
        source, images = together(lambda: find_source(asked), lambda: open_images(asked))
    config, who, directory = complete_config(asked, images, source)
    busy = (
        f"{directory} is being trained by another process: wait for it, or give this run its own "
        "run.directory."
    )
    with locked(directory / ".lock", None if wait else busy), claimed(directory, who):
        for folder in ("", "checkpoints", "samples", AVERAGES):
            remove_leftovers(directory / folder)
        saved = last_checkpoint(directory, config.run.restart)
        if saved and is_finished(saved, config.train.steps):
            more = config.learning_rate(config.train.steps) > 0
            log.info(
                f"finished: {directory} has {saved.step} steps"
                + " (a larger train.steps continues it)" * more
            )
            return directory
        plan = plan if config == asked else check_network(config)
        begin = f"resuming at step {saved.step}" if saved else "new run"
        log.info(f"{begin}: {directory}, {plan.told()}")
        begun = has_origin(directory) and saved and not config.transfer.needs_source
        origin = source_weights(source, config) if source and not begun else None
        with logged_to(directory / "log.txt", said):
            with StopAtOnce():
                trainer = open_trainer(config, images, directory, saved, origin)
                if not saved:
                    tell_of_other_runs(directory, config, trainer.dataset)
            trainer.train()
        log.info(f"finished: {directory}\n  samples: {directory / 'samples'}")
    return directory


def complete_config(
    asked: RunConfig, images: ImageReader, source: PretrainedSource | None
) -> tuple[RunConfig, dict[str, Any], Path]:
    """The config with what images and source fill in, the run's identity and its directory."""
    theirs = source.config if source else None
    config = asked.with_classes(len(images.classes), asked.kept_classes(theirs)).with_schedule_of(
        theirs
    )
    check_number_of_classes(config, images, theirs)
    table = planned_fit(config, theirs) if theirs else []
    config = with_alike_trained(config, table)
    return config, *name_run(config, images.fingerprint, source, table)


def source_weights(source: PretrainedSource, config: RunConfig) -> TrainedWeights:
    """The source's weights; a small source that is missing is trained first.

    Raises:
        UserError: with the command and the hours, where a missing one is too large for that.
    """
    found = source.find_weights()
    if found is None:
        hours = source.config.raw["gpu_hours"]
        if hours > SMALL_GPU_HOURS and not config.source.train:
            raise UserError(
                f"source.from={source.name}: no finished run of it in {source.directory.parent}, "
                f"and training it takes about {hours:g} GPU-hours. Train it with\n  python "
                f"train.py +experiment={source.name}\nor in this run with source.train=true, or "
                "give source.from= a run directory or a checkpoint."
            )
        log.info(f"source {source.name} is not trained yet: training it first")
        run(source.config, wait=True)
        found = source.find_weights()
        assert found is not None
    log.info(f"source: {found.path}")
    return found


def open_trainer(
    config: RunConfig,
    images: ImageReader,
    directory: Path,
    saved: Checkpoint | None,
    origin: TrainedWeights | None,
) -> Trainer:
    """Everything that one run needs, built, started from its source, and restored from its
    checkpoint where it has one.

    Args:
        origin: the source's weights, where the run starts from them or its strategy asks them.
    """
    repeat_bits(config.run.deterministic)
    device = pick_device(config.run.device)
    forget_peak(device)
    asked = config.train.precision
    precision = kept_precision(directory, asked, device) if saved else pick_precision(asked, device)
    autocast = arithmetic(precision, device)
    dispatch.select(config.run.kernels, device)
    dataset = open_dataset(config.data, images, config.seed, Path(config.run.cache))
    told = dataset.classes if config.classes else []
    show_images(dataset, config.run.samples, directory / "images.png", config.shown, told)
    tell_classes(dataset, config.classes)
    classes = saved.classes if saved else class_names(config, dataset.classes, origin)
    dataset = replace(dataset, classes=classes)
    denoiser = start_denoiser(config, directory, classes, saved, origin)
    to_channels_last(denoiser, device).train()
    plan = ParameterPlan(denoiser.network, rules_of(config))
    tell_of_start(plan, config, directory)
    optimizer = build_optimizer(config, plan.groups())
    describe(directory, config.raw, precision, device)
    write_csv(directory / "plan.csv", plan.rows(optimizer.defaults["lr"]))
    start = None
    if origin and config.transfer.needs_source:
        start = start_of(config, origin, denoiser, dataset, directory)
    batches = Batches(
        dataset, config.train.batch_size, config.data.flip, config.seed, config.augmentation
    )
    tell_augmentation(batches, config.run.samples, directory / "augmented.png", config.shown)
    plain = Stream(batches, config.build_timesteps().to(device), config.loss)
    trainer = Trainer(
        denoiser,
        optimizer,
        plan,
        dataset,
        streams_of(config.transfer, start, plain),
        config,
        directory,
        autocast,
        facts(plan, directory),
    )
    if saved:
        restore(trainer, saved)
    if config.run.compile:
        # in place: names, and the copy that the average is, stay as they are
        denoiser.network.compile()
    if 0 < config.train.steps < config.train.warmup:
        last = config.train.steps - 1
        rate = warm_up(last, config.train.warmup) * config.learning_rate(last)
        log.warning(
            f"train.warmup={config.train.warmup} is longer than train.steps={config.train.steps}: "
            f"the rate ends at {rate:.0%} of optimizer.lr"
        )
    warn_of_start(denoiser.schedule, config.sampler, config.image_shape)
    parameters = sum(p.numel() for p in denoiser.parameters()) / 1e6
    log.info(
        f"{device}, {precision}, {len(dataset.splits['train'])} training images, "
        f"{parameters:.2f}M parameters"
    )
    return trainer


def start_denoiser(
    config: RunConfig,
    directory: Path,
    classes: Sequence[str],
    saved: Checkpoint | None,
    origin: TrainedWeights | None,
) -> Denoiser:
    """On the CPU, with the weights that the run starts from and adapters that change nothing
    yet."""
    torch.manual_seed(derive(config.seed, "weights"))
    denoiser = config.build_denoiser()
    if origin:
        start_from(origin, denoiser, config, directory, classes)
    elif saved:
        weights = saved.weights(MODEL)  # what is injected may be made of them
        plain = {name: weights[name] for name in denoiser.network.state_dict()}
        denoiser.network.load_state_dict(plain)
    inject(denoiser.network, config.transfer.inject, config.seed)
    return denoiser


def show_images(
    dataset: Dataset,
    count: int,
    path: Path,
    shown: Sequence[int] | None = None,
    classes: Sequence[str] = (),
) -> None:
    """A sheet of training images as the network will see them: where a wrong window, orientation or
    crop is noticed. classes: names that stand below the images."""
    if not path.exists():
        rows = spread(dataset.splits["train"], count, dataset.labels)
        pictures = to_picture(dataset.images[rows], shown)
        names = [classes[label] for label in dataset.labels[rows]] if classes else []
        sheet = captioned_grid(pictures, names) if names else grid(pictures)
        write_atomically(path, png(sheet))
        log.info(f"training images as the network sees them: {path}")


def tell_augmentation(
    batches: Batches, count: int, path: Path, shown: Sequence[int] | None = None
) -> None:
    """Logs what is done to training images at random, where anything is, and keeps a sheet of
    those that the network is told of. shown: see data.pixels.to_picture."""
    done = ["half of them mirrored (data.flip=true)"] if batches.flip else []
    if batches.augmentation.on:
        done.append(
            f"{batches.augmentation.described()}; the network is told, so that samples are of "
            f"images as they are: {path}"
        )
        if not path.exists():
            x0, _ = batches.as_trained_on(batches.batch(0))
            pictures = to_picture(to_uint8(x0[:count]).numpy(), shown)
            write_atomically(path, png(grid(pictures)))
    if done:
        log.info(f"training images are augmented: {'; '.join(done)}")
