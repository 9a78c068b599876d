"""Pretrains a diffusion model, or transfers one to another domain: python train.py --help"""

from runtime.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # also while the rest is imported, which takes seconds

import logging
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from config.overrides import CONF, as_hydra_takes, check_overrides, options, resolved
from runtime.errors import one_message, script
from runtime.log import log_to_terminal
from runtime.requeue import leave
from runtime.signals import Preempted, held
from training import run
from training.sweep import cell, sweeping

log = logging.getLogger("train")
ALONE = "pretrain_demo"


def trained(raw: dict[str, Any]) -> Path:
    """The directory of a run, trained and, where it asks for that, evaluated; where it keeps one
    average, with that one."""
    lengths = (raw.get("train") or {}).get("ema_lengths") or ()
    if not (raw.get("run") or {}).get("evaluate") and len(lengths) != 1:
        return run.train(raw)
    from evaluation.after_training import train_and_evaluate  # takes a second or two

    return train_and_evaluate(run.train, raw)


@one_message
def main(cfg: DictConfig) -> None:
    # hundreds of runs would hide how a study goes on; each has its own log.txt
    in_study = "study" in cfg and HydraConfig.get().mode == RunMode.MULTIRUN
    log_to_terminal(heard=["sweep", "train"] if in_study else None)
    try:
        with held(False):
            cell(lambda: trained(resolved(cfg)))
    except Preempted as signal:
        log.info(f"stopped by {signal}; everything is saved, the same command continues")
        leave(signal.number)


@script
def start() -> None:
    if len(sys.argv) == 1:  # the small model, and a word on it
        print(
            f"No settings given, so this is +experiment={ALONE}: a small model of the bundled "
            "faces, minutes on a CPU.\n"
            f"Experiments: {', '.join(options('experiment'))}. More: python train.py --help\n",
            flush=True,
        )
        sys.argv.append(f"+experiment={ALONE}")
    sys.argv[1:] = as_hydra_takes(sys.argv[1:])
    check_overrides("train", sys.argv[1:])
    with sweeping("train", sys.argv), held():
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(main)()


if __name__ == "__main__":
    import train  # main of that name, and not of __main__, is what a job on a cluster can import

    train.start()
