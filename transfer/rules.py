"""What trains when. A rule names parameters by a glob; the last one that matches and is active at a
step decides."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from config.run_config import RunConfig
from config.sections import RuleSettings
from runtime.errors import UserError
from transfer.adapters import added, parameters, undecayed
from transfer.name_patterns import check_pattern


@dataclass(frozen=True)
class Rule:
    """A rule of the config with its moments as steps, see config.sections.RuleSettings."""

    pattern: str
    learning_rate_scale: float = 1.0
    from_: int = 0
    until: int | None = None
    optional: bool = False

    def active(self, step: int) -> bool:
        return self.from_ <= step and (self.until is None or step < self.until)


def rules_of(config: RunConfig) -> list[Rule]:
    """With shares of the run as steps. Raises UserError where a moment makes no sense."""
    return [rule_at(rule, config.train.steps) for rule in config.transfer.rules]


def rule_at(rule: RuleSettings, steps: int) -> Rule:
    """In a run of so many steps."""
    where = f"transfer.rules, pattern {rule.pattern}"
    from_ = _step(rule.from_, steps, where)
    until = None if rule.until is None else _step(rule.until, steps, where)
    if not rule.learning_rate_scale >= 0 or from_ < 0:
        raise UserError(
            f"{where}: learning_rate_scale and from must not be negative (they are "
            f"{rule.learning_rate_scale:g} and {rule.from_})."
        )
    if until is not None and until <= from_:
        raise UserError(
            f"{where}: until must come after from, and in a run of train.steps={steps} they are "
            f"the steps {until} (until: {rule.until}) and {from_} (from: {rule.from_}). Train "
            "longer, or give other moments."
        )
    return Rule(rule.pattern, rule.learning_rate_scale, from_, until, rule.optional)


def _step(moment: int | str, steps: int, where: str) -> int:
    if not isinstance(moment, str):
        return moment
    share = re.fullmatch(r"(\d+(?:\.\d+)?)%", moment)
    if not share or float(share[1]) > 100:
        raise UserError(f"{where}: {moment} is neither a step nor a share of the run, such as 30%.")
    return round(steps * float(share[1]) / 100)


class ParameterPlan:
    """The rules resolved on a network: parameters in groups that share their rules, and each
    group's rate at a step."""

    def __init__(self, network: nn.Module, rules: Sequence[Rule]):
        self.parameters = parameters(network)
        self.plain = self.parameters.keys() - added(network)
        for rule in rules:
            if not rule.optional:
                check_pattern(rule.pattern, list(self.parameters), "transfer.rules")
        alone = undecayed(network)
        groups: dict[tuple[tuple[Rule, ...], bool], list[str]] = {}
        for name in self.parameters:
            groups.setdefault(
                (tuple(r for r in rules if fnmatchcase(name, r.pattern)), name not in alone), []
            ).append(name)
        # A group that every one of its rules freezes stays out of the optimizer. (its rules,
        # whether weight decay applies): names
        self.trained = {
            group: names
            for group, names in groups.items()
            if any(r.learning_rate_scale > 0 for r in group[0])
        }
        self.moments = sorted(
            {0} | {m for rule in rules for m in (rule.from_, rule.until) if m is not None}
        )
        self._trains: dict[str, bool] | None = None

    @staticmethod
    def scale(rules: Sequence[Rule], step: int) -> float:
        """The factor on the rate of a group that has these rules; 0 where none is active."""
        return next((r.learning_rate_scale for r in reversed(rules) if r.active(step)), 0.0)

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer."""
        return [
            {"params": [self.parameters[n] for n in names]}
            | ({} if decays else {"weight_decay": 0.0})
            for (_, decays), names in self.trained.items()
        ] or [{"params": []}]

    def rates(self, step: int) -> list[float]:
        """The scale of each of groups(), in order."""
        return [self.scale(rules, step) for rules, _ in self.trained]

    def apply(self, step: int) -> bool:
        """Sets requires_grad for this step. True where the set that trains has changed. A frozen
        parameter has no gradient, so the optimizer leaves it and its moments alone."""
        trains = dict.fromkeys(self.parameters, False)
        for (rules, _), names in self.trained.items():
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

    def trains(self) -> list[str]:
        """The parameters that train at some step."""
        return [
            n
            for (rules, _), names in self.trained.items()
            if any(self.scale(rules, m) for m in self.moments)
            for n in names
        ]

    def train_together(self) -> int | None:
        """The first step at which all that ever trains does; None where there is no such step."""
        trains = [{n for n, rate in enumerate(self.rates(m)) if rate} for m in self.moments]
        return next(
            (m for m, now in zip(self.moments, trains) if now == set().union(*trains)), None
        )

    def must_train(self, steps: float = math.inf) -> None:
        """Raises UserError where nothing ever trains, or nothing at some step of so many."""
        if not self.trains():
            raise UserError(
                "transfer.rules: these rules train nothing. Add one with a learning_rate_scale "
                "above 0, such as {pattern: 'up.*'}; the source as it is, untrained, is "
                "transfer=zero_shot."
            )
        if idle := [m for m in self.moments if m < steps and not any(self.rates(m))]:
            raise UserError(
                f"transfer.rules: nothing trains at step {idle[0]}, where no rule with a "
                "learning_rate_scale above 0 is active. Add one, or change a from or an until."
            )

    def count(self) -> int:
        """Values that train at some step."""
        return sum(self.parameters[n].numel() for n in self.trains())

    def share(self) -> float:
        """The values that train at some step over those of the plain network, as papers count
        them."""
        return self.count() / sum(self.parameters[n].numel() for n in self.plain)

    def told(self) -> str:
        """The share, and where not all of it trains from the start, from when on: "100% of the
        parameters train, all from step 72"."""
        share, step = f"{100 * self.share():.3g}% of the parameters train", self.train_together()
        return share + (
            ""
            if step == 0
            else ", never all at once"
            if step is None
            else f", all from step {step}"
        )

    def rows(self, learning_rate: float) -> list[list[Any]]:
        """plan.csv: one row for each parameter and period in which its rate is the same; step "end"
        is open."""
        rows: list[list[Any]] = [["parameter", "shape", "group", "learning_rate", "from", "until"]]
        group_of = {
            n: (k, rules)
            for k, ((rules, _), names) in enumerate(self.trained.items())
            for n in names
        }
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


def own_word(rules: Sequence[Rule], names: Collection[str], name: str) -> bool:
    """Whether a rule is about this parameter alone, as class_embedding.* is and conv_out.* is
    not."""
    return any([n for n in names if fnmatchcase(n, rule.pattern)] == [name] for rule in rules)


def rules_for_alike(rules: Sequence[Rule], network: nn.Module, alike: Sequence[str]) -> list[Rule]:
    """What the rules lack: one for each parameter of alike (transfer.adapt_weights.Fit) that they
    do not train from the first step on, at the optimizer's rate, or at that of what trains fastest
    where this is lower. Howard and Ruder 2018 (ULMFiT): what is new trains first, and at the full
    rate. A rule that is about such a parameter alone is obeyed, whatever it says."""
    plan = ParameterPlan(network, rules)
    rate = min(1.0, max(plan.rates(0), default=0.0))

    def begins_at(name: str) -> float:
        """The rate of the parameter, or of what is injected into it."""
        inside = [n for n in plan.parameters if n == name or n.startswith(f"{name}.")]
        return max(plan.scale([r for r in rules if fnmatchcase(n, r.pattern)], 0) for n in inside)

    return [
        Rule(name, rate)
        for name in alike
        if not own_word(rules, plan.plain, name) and begins_at(name) < rate
    ]
