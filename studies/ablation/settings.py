"""What a file of conf/ablation says of a table: its rows with the numbers that the paper has, and
its claims."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from runtime.config_schema import Settings
from runtime.errors import near

Verdict = Literal["shown", "not shown", "opposite", "not measured"]
# of a command line; where the sizes differ, for each
Overrides: TypeAlias = Sequence[str] | dict[str, list[str]]


@dataclass(frozen=True)
class Expected(Settings):
    """A number of the paper's.

    Args:
        measure: by its name.
        value: or "unstable", where the training diverged.
        source: paper and table.
        mark: read in it, or second hand.
        band: from, to: what counts as the same where it is made again. null: it is of other
            images or of another network, and shown for its order.
    """

    measure: str
    value: float | Literal["unstable"]
    source: str
    mark: Literal["read", "second hand"]
    band: Sequence[float] | None

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError(f"{self.measure}={self.value} has no source.")
        if self.band is None:
            return
        if self.value == "unstable" or len(self.band) != 2:
            raise ValueError(f"band={self.band} is no band [from, to] of {self.value}.")
        low, high = self.band
        if not low <= self.value <= high:
            raise ValueError(f"band={self.band} does not hold the value, {self.value}.")


@dataclass(frozen=True)
class Measure(Settings):
    """path: of the number in evaluation.json, keys joined by dots. means: for a reader."""

    name: str
    path: str
    means: str
    better: Literal["lower", "higher"]


@dataclass(frozen=True)
class Row(Settings):
    """Overrides are a list, or {full: [...], small: [...]} where the sizes differ.

    Args:
        train: of train.py. Rows that have the same are settings of one set of weights.
        evaluate: of evaluate.py, in the place of those that a size has for all rows.
        expected: at full size.
    """

    name: str
    train: Overrides = ()
    evaluate: Overrides = ()
    expected: Sequence[Expected] = ()

    def __post_init__(self) -> None:
        for given in (self.train, self.evaluate):
            if isinstance(given, dict) and given.keys() != {"full", "small"}:
                raise ValueError(f"{self.name}: a list, or one for each of full and small.")

    def expects(self, measure: str) -> Expected | None:
        return next((e for e in self.expected if e.measure == measure), None)


@dataclass(frozen=True)
class Claim(Settings):
    """That times the number of one row lies below that of another.

    Args:
        less, than: rows.
        by: a measure.
        small: what the small size is known to show of it.
        because: the reason, where that is not the paper's order.
    """

    less: str
    than: str
    by: str
    small: Verdict
    because: str | None = None
    times: float = 1

    def __post_init__(self) -> None:
        if (self.small == "shown") != (self.because is None):
            raise ValueError(
                f"{self.text}: a claim that the small size does not show says why (because), and "
                "no other."
            )

    @property
    def text(self) -> str:
        factor = "" if self.times == 1 else f"{self.times:g} x "
        return f"{self.by}: {factor}{self.less} < {self.than}"


@dataclass(frozen=True)
class Size(Settings):
    """What all rows share at one size.

    Args:
        hours: of one A100 where it is full (an estimate), of two CPU cores where it is small.
        seeds: each row is trained with each of them.
        train, evaluate: overrides of train.py and of evaluate.py. What the command line says comes
            before those of train.py.
        measures: by their names, those that this size has.
        rows: by their names, those that this size has; null: all.
    """

    hours: float
    seeds: Sequence[int]
    train: Sequence[str]
    evaluate: Sequence[str]
    measures: Sequence[str]
    rows: Sequence[str] | None = None


@dataclass(frozen=True)
class Sizes(Settings):
    full: Size
    small: Size


def of_size(given: Overrides, size: str) -> Sequence[str]:
    return given[size] if isinstance(given, dict) else given


def check_names(named: Sequence[str], known: Sequence[str], what: str) -> None:
    """Raises ValueError for a name that there is not, and for one that is there twice."""
    for name in named:
        if name not in known:
            raise ValueError(f"{what}: there is no {name}; {near(name, known)}")
    if len(set(known)) < len(known):
        raise ValueError(f"{what}: a name is there twice, {', '.join(known)}.")
