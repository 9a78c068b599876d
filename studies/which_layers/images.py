"""The images of a user, and how often a comparison on them is repeated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.run_config import RunConfig
from data.settings import reader_keys
from runtime.errors import UserError

FEW = 200  # images: below, folds in place of one split
FEWEST = 10  # below, nothing can be held out
VALIDATION = 0.2  # of what a run has, taken out to choose rate and stopping by


@dataclass(frozen=True)
class Images:
    """fingerprint: of them all. count: of those that are no test images of the user's own. given:
    how many test images there are. splits: settings that the reader draws splits by. aside: images
    of a validation folder of the user's own, in whose place those stand that are taken out."""

    fingerprint: str
    count: int
    given: int
    splits: Sequence[str]
    aside: int = 0

    def folds(self, most: int) -> int | None:
        """How many; None for one split."""
        return None if self.given or self.count >= FEW else min(most, self.count)

    def training(self, folds: int | None, test: float) -> int:
        """How many a run has to train on and to choose by. test: the share of one split."""
        if folds:
            return self.count - -(-self.count // folds)
        return self.count if self.given else round(self.count * (1 - test))

    def told(self, folds: int | None, repeats: int, test: float) -> str:
        if folds:
            how = f"{folds} folds" + f", {repeats} of them judged" * (repeats < folds)
        elif self.given:
            how = f"judged by {self.given} test images of their own, {repeats} seeds"
        else:
            how = f"a share of {test:g} to judge by, {repeats} seeds"
        left = f"; {self.aside} of a validation folder are left aside" * (self.aside > 0)
        have = self.training(folds, test)
        return f"{self.count}: {how}; a run has {have}, a fifth of them to choose by{left}"

    def repeat(self, k: int, folds: int | None) -> list[str]:
        """The overrides of repetition k: a fold, or another seed."""
        own = [f"data.{name}=0" for name in self.splits if name == "validation" or folds]
        fold = [f"data.fold=[{k},{folds}]"] if folds else []
        return [*own, *fold, f"data.validation_of_train={VALIDATION}", f"seed={k}"]

    @property
    def all_of_them(self) -> list[str]:
        """The overrides of a run that trains on all but given test images."""
        return [f"data.{name}=0" for name in self.splits]


def look_at(raw: dict[str, Any]) -> Images:
    """Of a composed config. Raises UserError where there are too few."""
    keys = [name for name in ("validation", "test") if name in reader_keys(raw["data"])]
    config = RunConfig(raw).with_sections(data=raw["data"] | dict.fromkeys(keys, 0.0))
    reader = config.data.open_reader(Path(config.run.cache))
    splits = {name: len(rows) for name, rows in reader.splits.items()}
    if splits["train"] < FEWEST:
        raise UserError(
            f"{reader.name}: {splits['train']} images, and of fewer than {FEWEST} none can be held "
            "out, so that nothing here can tell which layers to train or when to stop. "
            "docs/results.md has what was found with 10 images of other kinds."
        )
    given = splits["test"], keys, splits["validation"]
    return Images(reader.fingerprint, splits["train"], *given)
