"""What trains when. A rule names parameters by a glob; the last one that matches and is active at a
step decides."""

import fnmatch
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from config.run_config import RunConfig
from config.sections import RuleSettings
from runtime.errors import UserError
from transfer.adapters import added, parameters, undecayed
from transfer.glob_matches import checked_matches


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
    """With shares of the run as steps.

    Raises:
        UserError: where a moment makes no sense.
    """
    return [rule_at(rule, config.train.steps) for rule in config.transfer.rules]


def rule_at(rule: RuleSettings, steps: int) -> Rule:
    """In a run of so many steps."""
    where = f"transfer.rules, pattern {rule.pattern}"

    def step_of(moment: float | str) -> int:
        if isinstance(moment, int):
            return moment
        share = re.fullmatch(r"(\d+(?:\.\d+)?)%", str(moment))
        if not share or float(share[1]) > 100:
            part = f"{100 * moment:g}%" if isinstance(moment, float) and 0 < moment < 1 else "30%"
            raise UserError(
                f"{where}: {moment} is neither a step, which is a whole number, nor a share of the "
                f"run, which is written {part}."
            )
        return round(steps * float(share[1]) / 100)

    from_ = step_of(rule.from_)
    until = None if rule.until is None else step_of(rule.until)
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


def rules_for(rules: Sequence[Rule], name: str) -> tuple[Rule, ...]:
    """Those whose glob matches a parameter."""
    return tuple(rule for rule in rules if fnmatch.fnmatchcase(name, rule.pattern))


def scale(rules: Sequence[Rule], step: int) -> float:
    """The factor on the rate of what has these rules; 0 where none is active."""
    return next((r.learning_rate_scale for r in reversed(rules) if r.active(step)), 0.0)


class ParameterPlan:
    """The rules resolved on a network: parameters in groups that share their rules, and each
    group's rate at a step."""

    def __init__(self, network: nn.Module, rules: Sequence[Rule]):
        self.parameters = parameters(network)
        self.plain = self.parameters.keys() - added(network)
        needed = [rule.pattern for rule in rules if not rule.optional]
        checked_matches(needed, self.parameters, "transfer.rules")
        alone = undecayed(network)
        # (its rules, whether weight decay applies): names. A group that every one of its rules
        # freezes stays out of the optimizer.
        self.trained: dict[tuple[tuple[Rule, ...], bool], list[str]] = {}
        for name in self.parameters:
            own = rules_for(rules, name)
            if any(rule.learning_rate_scale > 0 for rule in own):
                self.trained.setdefault((own, name not in alone), []).append(name)
        moments = [m for rule in rules for m in (rule.from_, rule.until) if m is not None]
        self.moments = sorted({0, *moments})
        self._training: set[str] | None = None

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer."""
        groups: list[dict[str, Any]] = [
            {"params": [self.parameters[name] for name in names]}
            | ({} if decays else {"weight_decay": 0.0})
            for (_, decays), names in self.trained.items()
        ]
        return groups or [{"params": []}]

    def rates(self, step: int) -> list[float]:
        """The scale of each of groups(), in order."""
        return [scale(rules, step) for rules, _ in self.trained]

    def training(self, step: int) -> set[str]:
        """The parameters that train at a step."""
        training = [names for (rules, _), names in self.trained.items() if scale(rules, step) > 0]
        return set().union(*training)

    def apply(self, step: int) -> bool:
        """Sets requires_grad for this step. True where the set that trains has changed. A frozen
        parameter has no gradient, so the optimizer leaves it and its moments alone."""
        training = self.training(step)
        if training == self._training:
            return False
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in training)
            parameter.grad = None
        self._training = training
        return True

    def at_change(self, step: int) -> bool:
        """Whether apply() could change anything at this step: all others need not call it."""
        return self._training is None or step in self.moments

    def trains(self) -> set[str]:
        """The parameters that train at some step."""
        return set().union(*map(self.training, self.moments))

    def train_together(self) -> int | None:
        """The first step at which all that ever trains does; None where there is no such step."""
        everything = self.trains()
        return next((m for m in self.moments if self.training(m) == everything), None)

    def must_train(self, steps: int) -> None:
        """Checks that the rules train something.

        Args:
            steps: of the run.
        Raises:
            UserError: where nothing ever trains, or nothing at some step of so many.
        """
        if not self.trains():
            raise UserError(
                "transfer.rules: these rules train nothing. Add one with a learning_rate_scale "
                "above 0, such as {pattern: 'up.*'}; the source as it is, untrained, is "
                "transfer=zero_shot."
            )
        for moment in self.moments:
            if moment < steps and not self.training(moment):
                raise UserError(
                    f"transfer.rules: nothing trains at step {moment}, where no rule with a "
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
        step = self.train_together()
        when = {0: "", None: ", never all at once"}.get(step, f", all from step {step}")
        return f"{100 * self.share():.3g}% of the parameters train{when}"

    def rows(self, learning_rate: float) -> list[list[Any]]:
        """plan.csv: one row for each parameter and period in which its rate is the same; step "end"
        is open."""
        rows: list[list[Any]] = [["parameter", "shape", "group", "learning_rate", "from", "until"]]
        group_of: dict[str, tuple[Any, Sequence[Rule]]] = {
            name: (k, rules)
            for k, ((rules, _), names) in enumerate(self.trained.items())
            for name in names
        }
        bounds = [*self.moments, "end"]
        for name, parameter in self.parameters.items():
            group, rules = group_of.get(name, ("", ()))
            shape = "x".join(map(str, parameter.shape))
            rates = [learning_rate * scale(rules, moment) for moment in self.moments]
            changes = [k for k, rate in enumerate(rates) if k == 0 or rate != rates[k - 1]]
            for k, end in pairwise([*changes, len(rates)]):
                rows.append([name, shape, group, rates[k], bounds[k], bounds[end]])
        return rows


def own_word(rules: Sequence[Rule], names: Collection[str], name: str) -> bool:
    """Whether a rule is about this parameter alone, as class_embedding.* is and conv_out.* is
    not."""
    return any(fnmatch.filter(names, rule.pattern) == [name] for rule in rules)


def rules_for_alike(rules: Sequence[Rule], network: nn.Module, alike: Sequence[str]) -> list[Rule]:
    """What the rules lack: one for each parameter of alike that they do not train from the first
    step on, at the optimizer's rate, or at that of what trains fastest where this is lower. A rule
    that is about such a parameter alone is obeyed, whatever it says.

    Args:
        alike: names, see transfer.adapt_weights.Fit.
    Source:
        Howard and Ruder 2018 (ULMFiT): what is new trains first, and at the full rate.
    """
    plan, more = ParameterPlan(network, rules), []
    rate = min(1.0, max(plan.rates(0), default=0.0))
    for name in alike:
        # the parameter, and what is injected into it
        inside = [n for n in plan.parameters if f"{n}.".startswith(f"{name}.")]
        begins_at = max(scale(rules_for(rules, n), 0) for n in inside)
        if begins_at < rate and not own_word(rules, plan.plain, name):
            more.append(Rule(name, rate))
    return more
