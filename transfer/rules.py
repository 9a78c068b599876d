"""What trains when. A rule names parameters by a glob; the last one that matches and is active at a step decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from runtime.errors import UserError, near


@dataclass(frozen=True)
class Rule:
    """pattern: glob on the full name of a parameter (`*` also crosses dots). learning_rate_scale: times the optimizer's rate; 0
    freezes. from_step, until_step: active while from_step <= step < until_step, steps counted from 0."""

    pattern: str
    learning_rate_scale: float = 1.0
    from_step: int = 0
    until_step: int | None = None

    def __post_init__(self):
        if self.learning_rate_scale < 0 or self.from_step < 0 or (self.until_step is not None and self.until_step <= self.from_step):
            raise UserError(f"transfer.rules, pattern {self.pattern}: learning_rate_scale and from_step must not be negative, and "
                            "until_step must come after from_step.")

    def active(self, step: int) -> bool:
        return self.from_step <= step and (self.until_step is None or step < self.until_step)


def check_pattern(pattern: str, names: Sequence[str], where: str, kind: str = "parameter") -> None:
    """Raises UserError, with near names, where a glob matches none of the names. kind: what they name."""
    if not any(fnmatchcase(name, pattern) for name in names):
        prefixes = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 1)}
        raise UserError(f"{where}: {pattern} matches no {kind}; {near(pattern.rstrip('.*'), prefixes | set(names))}")


class ParameterPlan:
    """The rules resolved on a network: parameters in groups that share their rules, and each group's rate at a step."""

    def __init__(self, network: nn.Module, rules: Sequence[Rule]):
        self.parameters = dict(network.named_parameters())
        for rule in rules:
            check_pattern(rule.pattern, list(self.parameters), "transfer.rules")
        groups: dict[tuple[Rule, ...], list[str]] = {}
        for name in self.parameters:
            groups.setdefault(tuple(r for r in rules if fnmatchcase(name, r.pattern)), []).append(name)
        # A group that every one of its rules freezes stays out of the optimizer.
        self.trained = {rules: names for rules, names in groups.items() if any(r.learning_rate_scale > 0 for r in rules)}
        self.moments = sorted({0} | {m for rule in rules for m in (rule.from_step, rule.until_step) if m is not None})
        if not any(self.scale(rules, m) for rules in self.trained for m in self.moments):
            raise UserError("transfer.rules: these rules train nothing. Add one with a learning_rate_scale above 0, such as "
                            "{pattern: 'up.*'}.")
        self._trains: dict[str, bool] | None = None

    @staticmethod
    def scale(rules: Sequence[Rule], step: int) -> float:
        """The factor on the rate of a group that has these rules; 0 where none is active."""
        return next((r.learning_rate_scale for r in reversed(rules) if r.active(step)), 0.0)

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer."""
        return [{"params": [self.parameters[n] for n in names]} for names in self.trained.values()]

    def rates(self, step: int) -> list[float]:
        """The scale of each of groups(), in order."""
        return [self.scale(rules, step) for rules in self.trained]

    def apply(self, step: int) -> bool:
        """Sets requires_grad for this step. True where the set that trains has changed. A frozen parameter has no gradient, so
        the optimizer leaves it and its moments alone."""
        trains = dict.fromkeys(self.parameters, False)
        for rules, names in self.trained.items():
            trains.update(dict.fromkeys(names, self.scale(rules, step) > 0))
        if trains == self._trains:
            return False
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(trains[name])
            parameter.grad = None
        self._trains = trains
        return True

    def at_change(self, step: int) -> bool:
        """Whether apply() could change anything at this step: all others need not call it."""
        return self._trains is None or step in self.moments

    def share(self) -> float:
        """Share of the parameters that train at some step."""
        trained = sum(self.parameters[n].numel() for rules, names in self.trained.items() for n in names
                      if any(self.scale(rules, m) for m in self.moments))
        return trained / sum(p.numel() for p in self.parameters.values())

    def rows(self, learning_rate: float) -> list[list[Any]]:
        """plan.csv: one row for each parameter and period in which its rate is the same; step "end" is open."""
        rows: list[list[Any]] = [["parameter", "shape", "group", "learning_rate", "from", "until"]]
        group_of = {n: (k, rules) for k, (rules, names) in enumerate(self.trained.items()) for n in names}
        for name, parameter in self.parameters.items():
            group, rules = group_of.get(name, ("", ()))
            shape = "x".join(map(str, parameter.shape))
            periods: list[list[Any]] = []
            for start, stop in zip(self.moments, [*self.moments[1:], "end"], strict=True):
                rate = learning_rate * self.scale(rules, start)
                if periods and periods[-1][0] == rate:
                    periods[-1][2] = stop
                else:
                    periods.append([rate, start, stop])
            rows += [[name, shape, group, *period] for period in periods]
        return rows
