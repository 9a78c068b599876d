"""The images of a user, and how often a comparison on them is repeated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.run_config import RunConfig
from data.image_reader import ImageReader
from data.settings import reader_keys
from data.splits import complete_splits
from metrics.intervals import FEW_PATIENTS
from runtime.errors import UserError

FEW = 200  # images, or patients where they are of these: below, folds in place of one split
FEWEST = 10  # below, nothing can be held out
VALIDATION = 0.2  # of what a run has, taken out to choose rate and stopping by
FEWEST_PATIENTS = 4
TEST = 0.2  # of one split, where the command line gives no data.test


@dataclass(frozen=True)
class Images:
    """fingerprint: of them all. count: of those that are no test images of the user's own. given:
    how many test images there are. splits: settings that the reader draws splits by. aside: images
    of a validation folder of the user's own, in whose place those stand that are taken out. drawn:
    data.n_train, of which each seed has its own; None for all. classes: that the network is told,
    0 for none. name: for tables.
    test: the share of one split that judges, which the command line gives; None where it gives
    none. patients: of how many all but given test images are, or of how many other groups that no
    split divides; None where each image is alone. judges: of one split, how many test images there
    are and of how many patients; None where each is alone."""

    fingerprint: str
    count: int
    given: int
    splits: Sequence[str]
    aside: int = 0
    drawn: int | None = None
    classes: int = 0
    name: str = ""
    test: float | None = None
    patients: int | None = None
    judges: tuple[int, int] | None = None

    @property
    def at_hand(self) -> int:
        """That the comparison is about."""
        return min(self.count, self.drawn or self.count)

    def folds(self, most: int) -> int | None:
        """How many; None for one split. A fold has a patient at least."""
        count = self.patients or self.count
        return None if self.given or self.test or count >= FEW else min(most, count)

    @property
    def share(self) -> float:
        """Of one split, that judges."""
        return self.test or TEST

    def apart(self, folds: int | None) -> int:
        """How many are no test images of a run."""
        if folds:
            return self.count - -(-self.count // folds)
        return self.count if self.given else round(self.count * (1 - self.share))

    def training(self, folds: int | None) -> int:
        """How many a run has to train on and to choose by."""
        return min(self.at_hand, self.apart(folds))

    def tested(self, folds: int | None) -> int:
        """How many judge a run."""
        return self.given or self.count - self.apart(folds)

    def check(self, folds: int | None) -> None:
        """Raises UserError where a run would have too few to train on, to choose by or to judge."""
        if self.patients is not None and self.patients < FEWEST_PATIENTS:
            raise UserError(
                f"{self.name}: the images are of {self.patients} patients. Of fewer than "
                f"{FEWEST_PATIENTS} none can judge while others choose and train: images of more "
                "patients are needed."
            )
        if self.drawn and self.drawn > (most := self.apart(folds)):
            raise UserError(
                f"data.n_train={self.drawn}: {self.count - most} of the {self.count} images judge, "
                f"which leaves {most}: give data.n_train={most} or less, or null."
            )

    def judged_by(self, folds: int | None, repeats: int) -> tuple[int, int] | None:
        """How many test images judge a strategy, all repetitions together, and of about how many
        patients; None where each is alone."""
        if not folds:
            return self.judges
        if self.patients is None:
            return None
        return self.count * repeats // folds, self.patients * repeats // folds

    def told(self, folds: int | None, repeats: int) -> str:
        judges = self.judged_by(folds, repeats)
        by = "judged by {} test images of {} patients".format(*judges) if judges else ""
        if folds:
            how = f"{folds} folds" + f", {repeats} of them judged" * (repeats < folds)
            how += f", {by}" * bool(by)
        elif self.given:
            by = by or f"judged by {self.given} test images"
            how = f"{by} of their own, {repeats} seeds"
        else:
            how = f"a share of {self.share:g} to judge by, {repeats} seeds" + f", {by}" * bool(by)
        left = f"; {self.aside} of a validation folder are left aside" * (self.aside > 0)
        choose = chosen_by(have := self.training(folds))
        drawn = f", {have} of these drawn anew for each" * (self.at_hand < self.count)
        trains = f"a run trains on {have - choose}, and {choose} choose its step and rate"
        return f"{self.count}: {how}{drawn}; {trains}{left}"

    def warned(self, folds: int | None, repeats: int) -> str:
        """Where those that judge are of few patients."""
        judges = self.judged_by(folds, repeats)
        if not judges or judges[1] >= FEW_PATIENTS:
            return ""
        return (
            f"WARNING: {judges[0]} test images of {judges[1]} patients judge. The images of one "
            f"patient are alike, so that below {FEW_PATIENTS} patients hardly anything is told "
            "apart: images of more patients are needed, and not more of these."
        )

    def repeat(self, k: int, folds: int | None) -> list[str]:
        """The overrides of repetition k: a fold, or another seed."""
        shares = {"validation": 0.0, "test": 0.0 if folds else self.share}
        if self.given:
            del shares["test"]
        own = [f"data.{name}={share:g}" for name, share in shares.items() if name in self.splits]
        fold = [f"data.fold=[{k},{folds}]"] if folds else []
        held_out = f"data.validation_of_train={VALIDATION}"
        return [*own, *fold, held_out, *self._told_classes, f"seed={k}"]

    @property
    def all_of_them(self) -> list[str]:
        """The overrides of a run that trains on all but given test images."""
        return [*(f"data.{name}=0" for name in self.splits), *self._told_classes]

    @property
    def _told_classes(self) -> list[str]:
        return ["model.classes=auto"] if self.classes else []


def chosen_by(have: int) -> int:
    """How many of so many are taken out to choose by: five at least, and half at most."""
    return min(max(5, round(VALIDATION * have)), have // 2)


def look_at(raw: dict[str, Any], arguments: Sequence[str]) -> Images:
    """Of a composed config, and the command line that it is of. The network is told the images'
    classes, where there are two or more and the command line says nothing of
    model.classes."""
    keys = [name for name in ("validation", "test") if name in reader_keys(raw["data"])]
    config = RunConfig(raw).with_sections(data=raw["data"] | dict.fromkeys(keys, 0.0))
    reader = config.data.open_reader(Path(config.run.cache))
    splits = {name: len(rows) for name, rows in reader.splits.items()}
    drawn = raw["data"].get("n_train")
    said = any(line.startswith("model.classes=") for line in arguments) or raw["model"]["classes"]
    labels = {reader.labels[row] for row in reader.splits["train"]} if reader.classes else set()
    classes = 0 if said or len(labels) < 2 else len(reader.classes)
    own = any(line.startswith("data.test=") for line in arguments)
    test = (raw["data"]["test"] or None) if own else None
    return Images(
        reader.fingerprint,
        splits["train"],
        splits["test"],
        keys,
        splits["validation"],
        drawn,
        classes,
        reader.name,
        test,
        _patients(reader, reader.splits["train"]),
        _judges(reader, test or TEST if "test" in keys else 0.0),
    )


def _judges(reader: ImageReader, share: float) -> tuple[int, int] | None:
    """See Images.judges. share: of the others that is drawn where there are no test images, as
    readers draw it."""
    rows = reader.splits["test"]
    if not rows and reader.groups is not None:
        rows = complete_splits(reader.splits, reader.labels, reader.groups, 0.0, share)["test"]
    count = _patients(reader, rows)
    return None if count is None else (len(rows), count)


def _patients(reader: ImageReader, rows: Sequence[int]) -> int | None:
    """Of how many these images are; None where each is alone."""
    if reader.groups is None:
        return None
    count = len({reader.groups[row] for row in rows})
    return count if count < len(rows) else None
