"""Pretrains a diffusion model, or transfers one to another domain: python train.py --help"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig

from data.batches import Batches
from data.dataset import Dataset, open_dataset
from data.memory import Memory
from data.source import ImageSource
from data.splits import spread
from diffusion.generate import warn_of_start
from kernels import dispatch
from models.network import build_denoiser, image_shape
from models.pretrained import Trained
from runtime import checkpoint
from runtime.build import build
from runtime.config import CONF, check_overrides, composed, digest, identity, options, resolved
from runtime.device import arithmetic, forget_peak, pick_device, pick_precision
from runtime.directory import claim, describe, kept_precision, write_csv
from runtime.errors import UserError, near, one_message, together
from runtime.files import locked, remove_leftovers, write_atomically
from runtime.log import RunLog, grid, log_to_terminal, logged_to, png, recorded
from runtime.randomness import derive
from runtime.signals import Preempted, leave, stops_at_once
from runtime.sweep import cell, sweeping
from training.loop import Terms, Trainer
from training.origin import (
    changed_since,
    check_fits,
    check_images_known,
    check_number_of_classes,
    class_names,
    facts,
    kept_classes,
    planned_fit,
    start_from,
    tell_of_alike,
    terms_of,
    told_classes,
    warn_of_random,
    with_alike_trained,
)
from training.parts import (
    TARGETS,
    Config,
    check_config,
    check_network,
    complete,
    optimizer_of,
    rules_of,
    settings_of,
    with_classes,
    with_schedule,
)
from transfer.fit import Fit
from transfer.inject import inject
from transfer.rules import ParameterPlan
from transfer.source import Source, from_pretrained
from transfer.source_images import made_anew
from transfer.trained import has_origin

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
    config = complete(config)
    checked, plan = config, check_network(config)
    with recorded() as said:  # before it is known where the run's log is
        source, images = together(lambda: locate(config), lambda: open_images(config))
    config = with_schedule(with_classes(config, len(images.classes), kept_classes(config, source)), source and source.own)
    check_number_of_classes(config, images, source)
    table = planned_fit(config, source.own) if source else []
    config = with_alike_trained(config, table)
    who, directory = place(config, images, source, table)
    busy = f"{directory} is being trained by another process: wait for it, or give this run its own run.directory."
    with locked(directory / ".lock", None if wait else busy):
        claim(directory, who)
        for folder in (directory, directory / "checkpoints", directory / "samples"):
            remove_leftovers(folder)
        saved = checkpoint.latest(directory / "checkpoints")
        if saved and saved.step >= config["train"]["steps"] and not saved.state["pending"]:
            log.info("finished: %s has %d steps (a larger train.steps continues it)", directory, saved.step)
        else:
            log.info("%s: %s, %s", f"resuming at step {saved.step}" if saved else "new run", directory,
                     (plan if config == checked else check_network(config)).told())
            needed = source and not (has_origin(directory) and saved and not settings_of(config, "transfer").needs_source)
            origin = source_weights(source, config) if needed else None
            with contextlib.ExitStack() as around:
                with stops_at_once():
                    around.enter_context(logged_to(directory / "log.txt", said))
                    prepared = around.enter_context(trainer(config, images, directory, saved, origin))
                prepared.train()
            log.info("finished: %s\n  samples: %s", directory, directory / "samples")
    return directory


def open_images(config: Config) -> ImageSource:
    return settings_of(config, "data").source(Memory(Path(config["run"]["cache"]) / "memory"))


def place(config: Config, images: ImageSource, source: Source | None, table: Sequence[Fit] = ()) -> tuple[dict[str, Any], Path]:
    """What a run is (its identity), and the directory that follows from it. table: what becomes of its source's tensors."""
    who = identity(config, images.fingerprint)
    who["transfer"] = who["transfer"] | {"rules": [asdict(rule) for rule in rules_of(config)]}  # shares of a run depend on its length
    if source:
        who["source"] |= source.identity
        who["transfer"] |= made_anew(config["transfer"], source.own)
    elif not config["source"]["include"]:
        who["source"] = {"include": []}  # nothing is copied, so where from makes no difference
    if changed := changed_since(config, table):
        who["changed"] = changed
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
        source = from_pretrained(name, settings.weights, config)
        check_fits(config, source.checkpoint.state["config"])
        check_images_known(config, source.checkpoint)
        return source
    if name not in options("experiment"):
        raise UserError(f"source.from={name}: neither a folder or file here, nor a name on the Hugging Face Hub, which is OWNER/NAME, nor "
                        f"an experiment; {near(name, options('experiment'))}")
    own = composed("train", [f"+experiment={name}", *settings.overrides])
    own["run"] |= {key: config["run"][key] for key in ("root", "cache", "device", "kernels", "compile")}
    own["wandb"] = config["wandb"]
    check_config(own)
    own = complete(own)
    if own["source"]["from"] is not None:
        raise UserError(f"source.from={name}: that experiment has a source of its own. Train it first and give source.from= its directory.")
    check_fits(config, own)
    try:
        images = open_images(own)
        own = with_classes(own, len(images.classes))
        who, directory = place(own, images, None)
    except UserError as error:
        raise UserError(f"source.from={name} needs its images, to be trained or to be found: {error}\nWithout them give source.from= a run "
                        "directory of it or published weights (docs/pretrained.md), or say where they are: "
                        "'source.overrides=[\"data.source.path=DIR\"]'") from error
    return Source(name, {"run": digest(who), "steps": own["train"]["steps"]}, config=own, directory=directory)


def source_weights(source: Source, config: Config) -> Trained:
    """The source's checkpoint; a small source that is missing is trained first."""
    found = source.found()
    if found is None:
        source.must_be_trainable(config["source"]["train"])
        log.info("source %s is not trained yet: training it first", source.name)
        run(source.config, wait=True)
        found = source.found()
    log.info("source: %s", found.path)
    return found


@contextlib.contextmanager
def trainer(config: Config, images: ImageSource, directory: Path, saved: checkpoint.Checkpoint | None, origin: Trained | None):
    """Everything that one run needs, built, started from its source, and restored from its checkpoint where it has one."""
    settings, run_settings, data, strategy = (settings_of(config, section) for section in ("train", "run", "data", "transfer"))
    device = pick_device(run_settings.device)
    forget_peak(device)
    precision = kept_precision(directory, settings.precision, device) if saved else pick_precision(settings.precision, device)
    autocast = arithmetic(precision, device)
    dispatch.select(run_settings.kernels, device)
    dataset = open_dataset(data, images, config["seed"], Path(run_settings.cache))
    show_images(dataset, run_settings.samples, directory / "images.png")
    if dataset.classes:
        log.info("%s%s", told_classes(dataset), "" if config["model"].get("classes", 0) else
                 ", which the network is not told, as model.classes is 0; model.classes=auto tells it")
    dataset = replace(dataset, classes=saved.state["classes"] if saved else class_names(config, dataset.classes, origin))
    torch.manual_seed(derive(config["seed"], "weights"))
    denoiser = build_denoiser(config)
    if origin:
        start_from(origin, denoiser, config, directory, dataset.classes)
    elif saved:
        weights = saved.weights(checkpoint.MODEL)  # what is injected may be made of them
        denoiser.network.load_state_dict({name: weights[name] for name in denoiser.network.state_dict()})
    inject(denoiser.network, strategy.inject, config["seed"])
    denoiser.to(device, memory_format=torch.channels_last).train()
    rules = rules_of(config)
    plan = ParameterPlan(denoiser.network, rules)
    warn_of_random(plan, directory)
    tell_of_alike(plan, rules, directory, strategy.name)
    optimizer = optimizer_of(config, plan.groups())
    describe(directory, config, precision, device)
    write_csv(directory / "plan.csv", plan.rows(optimizer.defaults["lr"]))
    run_log = RunLog(directory, saved.state["rows"] if saved else 0, settings_of(config, "wandb"), config)
    try:
        terms = terms_of(strategy, origin, denoiser, dataset, config, directory) if strategy.needs_source else Terms()
        timesteps = build(config["timesteps"], TARGETS["timesteps"], "timesteps", steps=denoiser.schedule.steps).to(device)
        prepared = Trainer(denoiser, build(config["loss"], TARGETS["loss"], "loss"), timesteps, optimizer, plan,
                           Batches(dataset, settings.batch_size, data.flip, config["seed"]), settings_of(config, "sampler"), settings,
                           run_settings, config, directory, run_log, autocast, terms, facts(plan, directory))
        if saved:
            prepared.restore(saved)
        if run_settings.compile:
            denoiser.network.compile()  # in place: names, and the copy that the average is, stay as they are
        if 0 < settings.steps < settings.warmup:
            log.warning("train.warmup=%d is longer than train.steps=%d: the rate ends at %.0f%% of optimizer.lr", settings.warmup,
                        settings.steps, 100 * settings.steps / settings.warmup)
        warn_of_start(denoiser.schedule, prepared.sampler, image_shape(config["data"]))
        log.info("%s, %s, %d training images, %.2fM parameters", device, precision, len(dataset.splits["train"]),
                 sum(p.numel() for p in denoiser.parameters()) / 1e6)
        yield prepared
    finally:
        run_log.close()


def show_images(dataset: Dataset, count: int, path: Path) -> None:
    """A sheet of training images as the network will see them: where a wrong window, orientation or crop is noticed."""
    if not path.exists():
        train = dataset.splits["train"]
        rows = spread(train, count, dataset.labels)
        write_atomically(path, png(grid(dataset.images[rows], columns=math.ceil(len(rows) ** 0.5))))
        log.info("training images as the network sees them: %s", path)


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
