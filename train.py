"""Pretrains a diffusion model, or transfers one to another domain: python train.py --help"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig

from data.batches import Batches
from data.dataset import Dataset, open_dataset
from data.memory import Memory
from data.source import ImageSource
from diffusion.denoiser import Denoiser
from models.pretrained import Trained
from runtime import checkpoint
from runtime.build import build
from runtime.config import CONF, check_overrides, composed, differences, digest, identity, options, resolved
from runtime.device import arithmetic, pick_device, pick_precision
from runtime.directory import claim, describe, kept_precision, write_csv, write_json
from runtime.errors import UserError, near, one_message, together
from runtime.files import locked, remove_leftovers, write_atomically
from runtime.log import RunLog, grid, log_to_terminal, logged_to, png, recorded
from runtime.randomness import derive
from runtime.signals import Preempted, leave
from runtime.sweep import cell, sweeping
from training.loop import Trainer
from training.parts import TARGETS, Config, build_denoiser, check_config, check_network, rules_of, settings_of
from transfer.fit import fit, summary
from transfer.rules import ParameterPlan
from transfer.source import Source, from_pretrained, other_settings

log = logging.getLogger("train")
ALONE = "pretrain_demo"


@one_message
def main(cfg: DictConfig) -> None:
    log_to_terminal()
    try:
        cell(lambda: attempt(resolved(cfg)))
    except Preempted as signal:
        log.info("stopped by %s; everything is saved, the same command continues", signal)
        leave(signal.number)


def attempt(config: Config) -> Path:
    """The run, with a cure for a device that it does not fit on."""
    try:
        return run(config)
    except torch.OutOfMemoryError as error:
        raise UserError(f"the device is out of memory ({str(error).splitlines()[0]}). train.accumulation=2 (or 4, 8) needs less for the "
                        "same result; model.gradient_checkpointing=true less still.") from error


def run(config: Config, wait: bool = False) -> Path:
    """Trains what config says, from where it was left, and returns the run's directory. wait: for another process that is at it."""
    check_config(config)
    plan = check_network(config)
    with recorded() as said:  # before it is known where the run's log is
        source, images = together(lambda: locate(config), lambda: open_images(config))
    if (classes := config["model"].get("classes", 0)) and classes != len(images.classes):
        raise UserError(f"model.classes={classes}, but {images.name} has {len(images.classes)} classes: set model.classes to that.")
    who, directory = place(config, images, source)
    busy = f"{directory} is being trained by another process: wait for it, or give this run its own run.directory."
    with locked(directory / ".lock", None if wait else busy):
        claim(directory, who)
        for folder in (directory, directory / "checkpoints", directory / "samples"):
            remove_leftovers(folder)
        saved = checkpoint.latest(directory / "checkpoints")
        if saved and saved.step >= config["train"]["steps"] and not saved.state["pending"]:
            log.info("finished: %s has %d steps (a larger train.steps continues it)", directory, saved.step)
        else:
            log.info("%s: %s, %.1f%% of the parameters train", f"resuming at step {saved.step}" if saved else "new run", directory,
                     100 * plan.share())
            weights = None if saved or source is None else source_weights(source, config)
            with logged_to(directory / "log.txt", said), trainer(config, images, directory, saved, weights) as prepared:
                prepared.train()
            log.info("finished: %s\n  samples: %s", directory, directory / "samples")
    return directory


def open_images(config: Config) -> ImageSource:
    return settings_of(config, "data").source(Memory(Path(config["run"]["cache"]) / "memory"))


def place(config: Config, images: ImageSource, source: Source | None) -> tuple[dict[str, Any], Path]:
    """What a run is (its identity), and the directory that follows from it."""
    who = identity(config, images.fingerprint)
    if source:
        who["source"] |= source.identity
    elif not config["source"]["include"]:
        who["source"] = {"include": []}  # nothing is copied, so where from makes no difference
    name = f"{config['transfer']['name']}-seed{config['seed']}-{digest(who)}"
    settings = config["run"]
    return who, Path(settings["directory"] or Path(settings["root"]) / config["experiment"] / name)


def locate(config: Config) -> Source | None:
    """The source that config names, without training it yet."""
    settings = settings_of(config, "source")
    if not settings.used:
        return None
    name = settings.from_
    if Path(name).expanduser().exists() or "/" in name:
        return from_pretrained(name, settings.weights, config)
    if name not in options("experiment"):
        raise UserError(f"source.from={name}: neither a folder or file here, nor a name on the Hugging Face Hub, which is OWNER/NAME, nor "
                        f"an experiment; {near(name, options('experiment'))}")
    own = composed("train", [f"+experiment={name}", *settings.overrides])
    own["run"] |= {key: config["run"][key] for key in ("root", "cache", "device")}
    own["wandb"] = config["wandb"]
    check_config(own)
    if own["source"]["from"] is not None:
        raise UserError(f"source.from={name}: that experiment has a source of its own. Train it first and give source.from= its directory.")
    try:
        who, directory = place(own, open_images(own), None)
    except UserError as error:
        raise UserError(f"source.from={name} needs its images, to be trained or to be found: {error}\nWithout them give source.from= a run "
                        "directory of it or published weights (docs/pretrained.md), or say where they are: "
                        "'source.overrides=[\"data.source.path=DIR\"]'") from error
    return Source(name, {"run": digest(who), "steps": own["train"]["steps"]}, config=own, directory=directory)


def source_weights(source: Source, config: Config) -> tuple[Trained, dict[str, torch.Tensor]]:
    """The source's checkpoint and weights; a small source that is missing is trained first."""
    found = source.found()
    if found is None:
        source.must_be_trainable(config["source"]["train"])
        log.info("source %s is not trained yet: training it first", source.name)
        run(source.config, wait=True)
        found = source.found()
    log.info("source: %s", found.path)
    return found, found.weights(checkpoint.EMA if config["source"]["weights"] == "ema" else checkpoint.MODEL)


@contextlib.contextmanager
def trainer(config: Config, images: ImageSource, directory: Path, saved: checkpoint.Checkpoint | None, weights):
    """Everything that one run needs, built, restored from its checkpoint or started from its source."""
    settings, run_settings, data = (settings_of(config, section) for section in ("train", "run", "data"))
    device = pick_device(run_settings.device)
    precision = kept_precision(directory) if saved else pick_precision(settings.precision, device)
    dataset = open_dataset(data, images, config["seed"], Path(run_settings.cache))
    show_images(dataset, run_settings.samples, directory / "images.png")
    torch.manual_seed(derive(config["seed"], "weights"))
    denoiser = build_denoiser(config)
    if weights:
        start_from(weights, denoiser, config, directory)
        check_classes(weights[0].state["classes"], dataset.classes, denoiser.network.classes)
    denoiser.to(device, memory_format=torch.channels_last).train()
    plan = ParameterPlan(denoiser.network, rules_of(config))
    optimizer = build(config["optimizer"], TARGETS["optimizer"], "optimizer")(plan.groups())
    describe(directory, config, precision, device)
    write_csv(directory / "plan.csv", plan.rows(optimizer.defaults["lr"]))
    run_log = RunLog(directory, saved.state["rows"] if saved else 0, settings_of(config, "wandb"), config)
    try:
        steps = denoiser.schedule.steps
        timesteps = build(config["timesteps"], TARGETS["timesteps"], "timesteps", steps=steps).to(device)
        prepared = Trainer(denoiser, build(config["loss"], TARGETS["loss"], "loss"), timesteps, optimizer, plan,
                           Batches(dataset, settings.batch_size, data.flip, config["seed"]), settings_of(config, "sampler"),
                           settings, run_settings, config, directory, run_log, arithmetic(precision, device))
        if saved:
            prepared.restore(saved)
        log.info("%s, %s, %d training images, %.2fM parameters", device, precision, len(dataset.splits["train"]),
                 sum(p.numel() for p in denoiser.parameters()) / 1e6)
        yield prepared
    finally:
        run_log.close()


def show_images(dataset: Dataset, count: int, path: Path) -> None:
    """A sheet of training images as the network will see them: where a wrong window, orientation or crop is noticed."""
    if not path.exists():
        train = dataset.splits["train"]
        rows = train[np.linspace(0, len(train) - 1, min(count, len(train))).round().astype(int)]
        write_atomically(path, png(grid(dataset.images[rows], columns=math.ceil(len(rows) ** 0.5))))
        log.info("training images as the network sees them: %s", path)


def start_from(weights, denoiser: Denoiser, config: Config, directory: Path) -> None:
    """Fits the source's weights to the network and keeps the table of what became of each tensor."""
    found, tensors = weights
    learned = all(build(c["variance"], TARGETS["variance"], "variance").outputs == 2 for c in (config, found.state["config"]))
    for section in ("schedule", "parameterization", *(["variance"] if learned else [])):
        if lines := differences(config[section], found.state["config"][section], section):
            log.warning("the source was trained with another %s (source -> here): %s", section, "; ".join(f"{line:.200}" for line in lines))
    other = "; ".join(other_settings(config["model"], found.state["config"]["model"]))
    other = other and f"the source's network has other settings (here -> source): {other}. With the source's all of its weights fit."
    try:
        state, rows = fit(tensors, denoiser.network.state_dict(), config["source"]["include"])
    except UserError as error:
        raise UserError(f"{error}\n{other}".strip()) from error
    if other:
        log.warning(other)
    denoiser.network.load_state_dict(state)
    log.info(summary(rows))
    file = checkpoint.EMA if config["source"]["weights"] == "ema" else checkpoint.MODEL
    write_json(directory / "source.json", {
        "from": config["source"]["from"], "path": str(found.path), "step": found.step, "weights": file,
        "sha256": found.state["sha256"][file], "tensors": [row._asdict() for row in rows]})


def check_classes(source: Sequence[str], target: Sequence[str], classes: int) -> None:
    """Says where the rows of the source's class table went to classes of other names."""
    if classes and len(source) == len(target) and list(source) != list(target):
        log.warning("the source's classes have other names, and each starts as that of its number: %s",
                    ", ".join(f"{theirs} -> {ours}" for theirs, ours in list(zip(source, target, strict=True))[:8]))


def choose_something() -> None:
    """`python train.py` alone: the small model, and a word on it."""
    print(f"No settings given, so this is +experiment={ALONE}: a small model of the bundled faces, minutes on a CPU.\n"
          f"Experiments: {', '.join(options('experiment'))}. More: python train.py --help\n", flush=True)
    sys.argv.append(f"+experiment={ALONE}")


@one_message
def start() -> None:
    if len(sys.argv) == 1:
        choose_something()
    check_overrides("train", sys.argv[1:])
    with sweeping("train", sys.argv):
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(main)()


if __name__ == "__main__":
    import train  # main of that name, and not of __main__, is what a job on a cluster can import

    train.start()
