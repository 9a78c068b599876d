"""What has to be the same for two evaluations to be compared, and where an evaluation is kept."""

import json
import logging
from pathlib import Path

from evaluation.image_features import ReferenceImages
from evaluation.settings import EvaluateSettings
from evaluation.trained_run import TrainedRun
from metrics.estimate import EVALUATION, GRID, VERSION, Record, as_now
from runtime.content import differences, sha256_of
from runtime.errors import UserError
from runtime.files import Damaged, read_sealed

log = logging.getLogger("evaluate")


def protocol_of(
    settings: EvaluateSettings, reference: ReferenceImages, sampler: Record, select: str
) -> Record:
    """select: best, last, or the step that was asked for."""
    common = {
        # by the name of then: evaluations of then are of the same protocol
        "metrics": ["floors" if m == "baselines" else m for m in settings.wanted],
        "held_out": reference.held_out,
        "test": reference.digests.get("test"),
        "features": settings.features.identity,
        "perceptual": settings.perceptual.identity,
    }
    if settings.images:
        return {"images": str(Path(settings.images).expanduser().resolve()), **common}
    named = ("n", "seed", "label", "weights", "precision", "held_out_draws")
    return {
        **{name: getattr(settings, name) for name in named},
        "sampler": sampler,
        "select": select,
        **common,
        "held_out_grid": GRID,
        "bound": [settings.bound_images, settings.bound_steps],
    }


def evaluation_folder(settings: EvaluateSettings, run: Path, protocol: Record) -> Path:
    if settings.out:
        return Path(settings.out).expanduser()
    if settings.images:
        images = Path(settings.images).expanduser().resolve()
        return images.with_name(f"{images.name}_evaluation")
    short, digest = settings.features.short.lower(), sha256_of(protocol)[:8]
    return run / "evaluation" / f"{protocol['select']}_n{settings.n}_{short}_{digest}"


def read_evaluation(folder: Path, protocol: Record, run: Path | None) -> Record:
    """The evaluation that is there, {} where there is none, a damaged one or one of another format.

    Args:
        run: where the folder is not its own.
    Raises:
        UserError: where it is of something else.
    """
    try:
        there = as_now(read_sealed(folder / EVALUATION, keys=["protocol"], unsealed=True))
        before, now = dict(there["protocol"]), json.loads(json.dumps(protocol))
        if run:
            now["run"], made_of = str(run.resolve()), there.get("checkpoint")
            before["run"] = made_of and str(Path(made_of["path"]).parent.parent.resolve())
    except Damaged as error:
        log.warning("%s; it is made anew", error)
        return {}
    except (OSError, KeyError, TypeError):
        return {}
    if lines := differences(now, before):
        raise UserError(
            f"{folder} holds another evaluation (there -> here):\n  "
            + "\n  ".join(lines)
            + "\nGive this one its own out=DIR."
        )
    if there.get("version") != VERSION:
        said = "%s is of version %s of the format, which is %s now: made again"
        log.info(said, folder / EVALUATION, there.get("version"), VERSION)
        return {}
    return there


def lacks_source(evaluation: Record, run: TrainedRun, settings: EvaluateSettings) -> bool:
    """Whether an evaluation was made while the source was gone, which is here now."""
    found = {
        "baselines": "untouched source" in evaluation.get("baselines", {}),
        "forgetting": "forgetting" in evaluation,
        "loss": "source_change" in evaluation.get("loss", {}),
    }
    lacking = [name for name, there in found.items() if name in settings.wanted and not there]
    # the source's images alone may always be unknown
    if not run.has_source or not lacking or (lacking == ["loss"] and not settings.source):
        return False
    try:
        return run.source is not None
    except UserError:
        return False
