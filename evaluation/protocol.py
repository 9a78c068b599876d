"""What has to be the same for two evaluations to be compared, and where an evaluation is kept."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.pixels import check_shown, shown_by_default
from evaluation.settings import AUDITS, EvaluateSettings
from evaluation.trained_run import TrainedRun
from metrics.estimate import EVALUATION, GRID, VERSION, Record, as_now
from metrics.resampling import Groups, count_units, groups_of
from runtime.content import differences, sha256_of
from runtime.errors import UserError
from runtime.files import Damaged, read_sealed

log = logging.getLogger("evaluate")


@dataclass(frozen=True)
class ReferenceImages:
    """The images [*, H, W, C] uint8 that generated ones are compared with.

    rows: of "train", and of "test" where something was held out. held_out: the split that stands
    for the test, or None. digests: of what decides the pixels, by "train" and "test". name_of: row
    -> what it is called, a file most often. groups: of all images, see data.dataset.Dataset.
    """

    images: np.ndarray
    rows: dict[str, np.ndarray]
    held_out: str | None
    digests: dict[str, str]
    name_of: Callable[[int], str]
    groups: Groups = None

    @property
    def counts(self) -> dict[str, int]:
        """How many images each is, and of how many patients the test images are, where these are
        fewer."""
        found = {name: len(rows) for name, rows in self.rows.items()}
        return found | ({"test_patients": self.test_patients} if self.test_patients else {})

    @cached_property
    def test_patients(self) -> int | None:
        """Of how many patients, or other groups, the test images are; None where each is alone."""
        if not self.held_out or self.groups is None:
            return None
        count = count_units(len(self.rows["test"]), self.groups_of("test"))
        return count if count < len(self.rows["test"]) else None

    def groups_of(self, split: str) -> Groups:
        return groups_of(self.groups, self.rows[split])


def reference_images(
    images: np.ndarray,
    splits: dict[str, np.ndarray],
    about: Sequence[Any],
    name_of: Callable[[int], str] = str,
    groups: Groups = None,
) -> ReferenceImages:
    """Held out are the test images, or else the validation images. about: what decides the pixels
    of images. groups: of all images."""
    held_out = next((split for split in ("test", "validation") if len(splits.get(split, ()))), None)
    rows = {"train": splits["train"]}
    if held_out:
        rows["test"] = splits[held_out]
    digests = {name: sha256_of([list(about), part.tolist()]) for name, part in rows.items()}
    return ReferenceImages(images, rows, held_out, digests, name_of, groups)


def protocol_of(
    settings: EvaluateSettings,
    reference: ReferenceImages,
    sampler: Record,
    select: str,
    shown: Sequence[int] | None = None,
) -> Record:
    """select: best, last, or the step that was asked for (each of select=every). shown: see
    features_see."""
    common = {
        # by the name of then: evaluations of then are of the same protocol
        "metrics": [
            "floors" if m == "baselines" else m for m in settings.wanted if m not in AUDITS
        ],
        "held_out": reference.held_out,
        "test": reference.digests.get("test"),
        "features": settings.features.identity,
        "perceptual": settings.perceptual.identity,
        **({"shown": shown} if shown else {}),
        # evaluations of before drew the images of a patient one by one: their draws do not pair
        **({"drawn_by": "patient"} if reference.test_patients else {}),
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


def features_see(channels: int, shown: Sequence[int] | None) -> Sequence[int] | None:
    """The channels of an image, counted from 1, that image features see. None: gray or colour as
    they are, as in evaluations of before.

    Raises:
        UserError: where the images have no such channels.
    """
    try:
        check_shown(shown, channels)
    except ValueError as error:
        raise UserError(str(error)) from error
    seen = list(shown or shown_by_default(channels))
    return None if seen == list(range(1, channels + 1)) else seen


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
        # {} where nothing was held out
        "membership": not evaluation.get("membership") or "source" in evaluation["membership"],
    }
    lacking = [name for name, there in found.items() if name in settings.wanted and not there]
    # the source's images alone may always be unknown
    if not run.has_source or not lacking or (lacking == ["loss"] and not settings.source):
        return False
    try:
        return run.source is not None
    except UserError:
        return False
