"""Evaluations that a run asks for itself (run.evaluate), made in its process once it is trained: so
that a sweep ends with them, also on a cluster."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from config.overrides import check_overrides, composed
from evaluation.along_training import tell_lowest, to_evaluate
from evaluation.evaluator import evaluate_run
from evaluation.settings import EvaluateSettings
from runtime.as_typed import hydra_quoted
from runtime.config_schema import parse
from runtime.errors import UserError
from training.choose_average import choose_average
from training.snapshots import all_snapshots


def asked_settings(line: str, run: Path, of_run: dict[str, Any]) -> tuple[EvaluateSettings, Any]:
    """What a command line of evaluate.py asks for, of a run, with the device and the cache of the
    run's own section: (settings, config of the sampler).

    Raises:
        UserError: where it is wrong.
    """
    own = [f"{key}={hydra_quoted(str(of_run[key]))}" for key in ("device", "cache", "kernels")]
    try:
        given = shlex.split(line)
        check_overrides("evaluate", given)
        checkpoint = f"checkpoint={hydra_quoted(str(run))}"
        config = composed("evaluate", [*own, *given, checkpoint])
        del config["spacing"]  # it stands in the sampler
        settings = parse(EvaluateSettings, config, ["diffusion", "metrics"], "")
    except (UserError, ValueError) as error:
        raise UserError(f"run.evaluate={line!r}: {error}") from error
    return settings, config["sampler"]


def train_and_evaluate(train: Callable[[dict[str, Any]], Path], raw: dict[str, Any]) -> Path:
    """Trains what a composed config says, then evaluates it by each line of its run.evaluate; an
    average that a line asks for, or that is the only one, is chosen first.

    Returns:
        The run's directory.
    Raises:
        UserError: before the training, where a line is wrong.
    """
    section = raw["run"]
    lines: Sequence[str] = section["evaluate"]
    for line in lines:
        asked_settings(line, Path("run"), section)
    run = train(raw)
    if any(len(snapshot.lengths) == 1 for snapshot in all_snapshots(run)[-1:]):
        choose_average(run, device=section["device"], cache=Path(section["cache"]))
    for line in lines:
        settings, sampler = asked_settings(line, run, section)
        if settings.weights == "average":
            choose_average(run, device=settings.device, cache=Path(settings.cache))
        paths, said = to_evaluate(run, settings), shlex.split(line)
        tell_lowest({p: evaluate_run(p, settings, sampler, said) for p in paths}, settings)
    return run
