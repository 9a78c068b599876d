"""What the rounds of a study are made of: cells, each one run that is launched, and their ends."""

import shlex
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        name: for people.
        overrides: of the study's own command line, as train.py takes them.
        seconds: that it is expected to take, 0 where that is not known.
    """

    name: str
    overrides: Sequence[str]
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """run: its directory, None where it failed, with a message. seconds: that it took."""

    run: Path | None
    message: str
    seconds: float


@dataclass(frozen=True)
class Round:
    """Cells that are launched together. later: seconds that the rounds after it are expected to
    take, all cells together."""

    cells: Sequence[Cell]
    later: float = 0.0


# is sent the outcomes of the cells of a round, in their order, and yields the next
Rounds: TypeAlias = Generator[Round, Sequence[Outcome], None]


@dataclass(frozen=True)
class Context:
    """Where a study stands.

    Args:
        arguments: of the command line.
        config: of these, as plain dicts, before a cell adds to it.
        folder: of its plan and of how its cells ended.
        runs: the folder of its runs.
    """

    arguments: Sequence[str]
    config: dict[str, Any]
    folder: Path
    runs: Path

    @property
    def command(self) -> str:
        """As it is typed."""
        return shlex.join(["python", "train.py", "-m", *self.arguments])
