"""How good, how new and how forgetful a run is: python evaluate.py --help"""

from runtime.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # also while the rest is imported, which takes seconds

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from config.overrides import run_script
from evaluation.along_training import tell_lowest, to_evaluate
from evaluation.evaluator import evaluate_folder, evaluate_run, find_runs
from evaluation.settings import EvaluateSettings
from runtime.config_schema import parse
from runtime.errors import UserError, message_of

log = logging.getLogger("evaluate")


def main(config: dict[str, Any]) -> None:
    del config["spacing"]  # it stands in the sampler
    settings = parse(EvaluateSettings, config, ["diffusion", "metrics"], "")
    if settings.checkpoint is None:
        evaluate_folder(settings)
        return
    runs = find_runs(Path(settings.checkpoint).expanduser())
    found = list(chain(*(to_evaluate(run, settings) for run in runs)))
    what = "checkpoints" if settings.select == "every" else "runs"
    if settings.out and len(found) > 1:
        raise UserError(
            f"out={settings.out}: one folder cannot hold {len(found)} {what}' evaluations. Without "
            "out= each is put into its run."
        )
    done, failed = evaluate_each(found, settings, config["sampler"])
    tell_lowest(done, settings)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(found)} {what} could not be evaluated:\n  "
            + "\n  ".join(failed)
        )


def evaluate_each(
    paths: Sequence[Path], settings: EvaluateSettings, sampler: dict[str, Any]
) -> tuple[dict[Path, Path], list[str]]:
    """(each that was evaluated and the folder of its evaluation, why others could not be). A single
    one raises."""
    done, failed = {}, []
    for k, path in enumerate(paths, 1):
        log.info(f"[{k} of {len(paths)}] {path}")
        try:
            done[path] = evaluate_run(path, settings, sampler)
        except (UserError, OSError) as error:
            message = message_of(error)
            if len(paths) == 1 or message is None:
                raise
            failed.append(message if message.startswith(str(path)) else f"{path}: {message}")
            log.error(f"failed: {failed[-1]}")
    return done, failed


if __name__ == "__main__":
    run_script("evaluate", main)
