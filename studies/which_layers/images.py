"""The images of a user, and how often a comparison on them is repeated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.run_config import RunConfig
from data.settings import reader_keys

FEW = 200  # images: below, folds in place of one split
FEWEST = 10  # below, nothing can be held out
VALIDATION = 0.2  # of what a run has, taken out to choose rate and stopping by
TEST = 0.2  # of one split, where data.test says nothing else


@dataclass(frozen=True)
class Images:
    """fingerprint: of them all. count: of those that are no test images of the user's own. given:
    how many test images there are. splits: settings that the reader draws splits by. aside: images
    of a validation folder of the user's own, in whose place those stand that are taken out. drawn:
    data.n_train, of which each seed has its own; None for all. classes: that the network is told,
    0 for none. name: for tables.
    test: the share of one split that judges, where none are given."""

    fingerprint: str
    count: int
    given: int
    splits: Sequence[str]
    aside: int = 0
    drawn: int | None = None
    classes: int = 0
    name: str = ""
    test: float = TEST

    @property
    def at_hand(self) -> int:
        """That the comparison is about."""
        return min(self.count, self.drawn or self.count)

    def folds(self, most: int) -> int | None:
        """How many; None for one split."""
        return None if self.given or self.count >= FEW else min(most, self.count)

    def apart(self, folds: int | None) -> int:
        """How many are no test images of a run."""
        if folds:
            return self.count - -(-self.count // folds)
        return self.count if self.given else round(self.count * (1 - self.test))

    def training(self, folds: int | None) -> int:
        """How many a run has to train on and to choose by."""
        return min(self.at_hand, self.apart(folds))

    def tested(self, folds: int | None) -> int:
        """How many judge a run."""
        return self.given or self.count - self.apart(folds)

    def told(self, folds: int | None, repeats: int) -> str:
        if folds:
            how = f"{folds} folds" + f", {repeats} of them judged" * (repeats < folds)
        elif self.given:
            how = f"judged by {self.given} test images of their own, {repeats} seeds"
        else:
            how = f"a share of {self.test:g} to judge by, {repeats} seeds"
        left = f"; {self.aside} of a validation folder are left aside" * (self.aside > 0)
        have = self.training(folds)
        drawn = " of these, drawn anew for each seed" * (self.at_hand < self.count)
        return f"{self.count}: {how}; a run has {have}{drawn}, a fifth of them to choose by{left}"

    def repeat(self, k: int, folds: int | None) -> list[str]:
        """The overrides of repetition k: a fold, or another seed."""
        shares = {"validation": 0.0, "test": 0.0 if folds else self.test}
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
    return Images(
        reader.fingerprint,
        splits["train"],
        splits["test"],
        keys,
        splits["validation"],
        drawn,
        classes,
        reader.name,
        raw["data"]["test"] if own else TEST,
    )
