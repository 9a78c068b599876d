"""How good, how new and how forgetful a run is: python evaluate.py --help"""

from runtime.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # also while the rest is imported, which takes seconds

import logging
from pathlib import Path
from typing import Any

from config.overrides import run_script
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
    if settings.out and len(runs) > 1:
        raise UserError(
            f"out={settings.out}: one folder cannot hold {len(runs)} runs' evaluations. Without "
            "out= each is put into its run."
        )
    failed = []
    for k, run in enumerate(runs, 1):
        log.info(f"[{k} of {len(runs)}] {run}")
        try:
            evaluate_run(run, settings, config["sampler"])
        except (UserError, OSError) as error:
            message = message_of(error)
            if len(runs) == 1 or message is None:
                raise
            failed.append(message if message.startswith(str(run)) else f"{run}: {message}")
            log.error(f"failed: {failed[-1]}")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs could not be evaluated:\n  " + "\n  ".join(failed)
        )


if __name__ == "__main__":
    run_script("evaluate", main)
