"""The rounds of a comparison: one repetition after the other, the rates of each strategy by
halving, and strategies that are worse left out of what follows."""

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median_low
from typing import Any, NamedTuple

from metrics.held_out_loss import grid_of
from metrics.membership import IMAGES
from studies.cells import Cell, Outcome, Round
from studies.which_layers.images import Images, chosen_by
from studies.which_layers.judge import worse_than_best
from studies.which_layers.plan import Plan, Price, Work
from studies.which_layers.runs import Judged, Reader
from training.choose_average import contending

AUDITS = ("quality", "memorization", "membership", "classification")
AVERAGES = [0.05, 0.1]  # lengths that are kept; any is made of them afterwards
REFERENCE = "full"
# of its runs one picture at the end is kept, and no older checkpoint but the best
SPARING = ["run.samples=1", "run.sample_every=1000000", "run.keep_last=1"]
# the probability that racing leaves out one that is not worse, over all looks
WRONGLY_LEFT_OUT = 0.01
SOURCE_LOSSES = 2  # beside the loss on the target: of the source's images, now and before

# strategy -> size (None: all) -> repetition -> what was found
Found = dict[str, dict[int | None, dict[int, Judged]]]
Rates = dict[str, float]


@dataclass
class Comparison:
    """One study on its way.

    Args:
        strategies: name -> its overrides.
        untrained: those that train nothing.
        rate: optimizer.lr that the plan's rates multiply.
        prices: of each strategy's cells, {} where they are not known yet.
        read: of its runs.
        race: whether strategies that are worse are left out of later repetitions.
    """

    plan: Plan
    images: Images
    strategies: Mapping[str, Sequence[str]]
    untrained: Sequence[str]
    rate: float
    prices: Mapping[str, Price]
    read: Reader
    race: bool
    found: Found = field(default_factory=dict)
    outraced: dict[str, str] = field(default_factory=dict)  # strategy -> by what it is worse
    failed: dict[str, str] = field(default_factory=dict)  # strategy -> why
    missing: dict[str, str] = field(default_factory=dict)  # cell of a subset -> why it failed
    work: Work = field(default_factory=Work)  # counted so far
    spent: dict[str, float] = field(default_factory=dict)  # strategy -> seconds of its cells so far
    expects: Mapping[str, float] = field(default_factory=dict)  # the same of the whole plan
    after: float = 0.0  # seconds of what follows the rounds

    @property
    def running(self) -> list[str]:
        return [name for name in self.strategies if name not in self.outraced | self.failed]

    def rounds(self) -> Generator[Round, Sequence[Outcome], None]:
        once: Rates = {}
        for k in range(self.plan.repeats):
            rates = once or (yield from self._choose_rates(k))
            if self.plan.rates_once:
                once = rates
            yield from self._judge(k, rates)
            if self.race and 0 < k < self.plan.repeats - 1:
                level = 1 - WRONGLY_LEFT_OUT / (self.plan.repeats - 2)
                self.outraced |= worse_than_best(
                    self.found, self.running, self.reference, self.folds, level
                )

    @property
    def reference(self) -> str:
        """What the others are shown against; it stays to the end."""
        return REFERENCE if REFERENCE in self.strategies else next(iter(self.strategies))

    @property
    def folds(self) -> bool:
        """Whether each repetition is judged by images of its own."""
        return self.plan.folds is not None

    def _choose_rates(self, k: int) -> Generator[Round, Sequence[Outcome], Rates]:
        """By halving: all rates are trained a part of the steps, and the worst is left out, again
        and again. The last one is trained to the end by _judge."""
        trained = [name for name in self.running if name not in self.untrained]
        left = {name: [self.rate * factor for factor in self.plan.rates] for name in trained}
        since, stages = 0, self.plan.stages(len(self.plan.rates))
        for stage in stages[:-1]:
            trials = [(name, rate) for name, rates in left.items() for rate in rates]
            cells = [self._cell(name, k, None, rate, since, stage) for name, rate in trials]
            outcomes = yield self._round([name for name, _ in trials], cells)
            ended = dict(zip(trials, outcomes, strict=True))
            losses = {trial: self._lowest(outcome, stage) for trial, outcome in ended.items()}
            for name, rates in left.items():
                in_order = sorted(rates, key=lambda rate: losses[name, rate])
                left[name] = in_order[:-1]
                if run := ended[name, in_order[-1]].run:
                    self.read.forget(run)
                if math.isinf(losses[name, in_order[0]]):
                    self.failed[name] = "its training failed at every rate that was tried"
            left = {name: rates for name, rates in left.items() if name in self.running}
            since = stage
        return {name: rates[0] for name, rates in left.items()}

    def _round(self, names: Sequence[str], cells: Sequence[Cell]) -> Round:
        """With what the strategies that are still running are expected to take after it."""
        for name, cell in zip(names, cells, strict=True):
            self.spent[name] = self.spent.get(name, 0.0) + cell.seconds
        if not self.expects:
            return Round(cells)
        later = sum(self.expects[name] - self.spent.get(name, 0.0) for name in self.running)
        return Round(cells, max(0.0, later) + self.after)

    def _lowest(self, outcome: Outcome, until: int) -> float:
        """A run that a driver before this one took further is judged by what it was then."""
        losses = self.read.losses(outcome.run) if outcome.run else {}
        return min((loss for step, loss in losses.items() if step <= until), default=math.inf)

    def _judge(self, k: int, rates: Rates) -> Generator[Round, Sequence[Outcome], None]:
        """Trains to the end at these rates, with all images and with the subsets, and judges."""
        trials, cells = list[tuple[str, int | None]](), list[Cell]()
        stages = self.plan.stages(len(self.plan.rates))
        begun = self.plan.rates_once and k > 0
        since = 0 if begun or len(stages) < 2 else stages[-2]
        for size in (None, *self.plan.sizes):
            for name in self.running:
                rate = rates.get(name, self.rate)
                trials.append((name, size))
                start = since if size is None else 0
                cells.append(self._cell(name, k, size, rate, start, self.plan.steps, judge=True))
        outcomes = yield self._round([name for name, _ in trials], cells)
        for (name, size), cell, outcome in zip(trials, cells, outcomes, strict=True):
            if outcome.run is not None:
                judged = self.read.judged(outcome.run, rates.get(name, self.rate))
                self.found.setdefault(name, {}).setdefault(size, {})[k] = judged
                if k > 0 or size is not None:  # the first ones are audited
                    self.read.forget(outcome.run)
            else:
                failed, what = (self.missing, cell.name) if size else (self.failed, name)
                failed[what] = outcome.message.split("\n")[0]

    def audit_cell(self, name: str) -> Cell:
        """Images of the run of the first repetition with all images, and what they tell; and
        whether its losses tell what it was trained on."""
        first = self.found.get(name, {}).get(None, {}).get(0)
        rate = first.rate if first else self.rate
        n, steps = self.plan.audit_images, self.plan.sampler_steps
        overrides = self._overrides(name, 0, None, rate, self.plan.steps, [audits_of(n, steps)])
        work = Work(0, n * steps + attacked(self.images, self.plan.folds))
        price = self.prices.get(name)
        seconds = price.seconds(work) + price.audits if price else 0.0
        return Cell(f"audit, {name}", overrides, seconds)

    @property
    def _tested(self) -> int:
        """Images that judge a run."""
        return self.images.tested(self.plan.folds)

    def _overrides(
        self,
        name: str,
        k: int,
        size: int | None,
        rate: float,
        steps: int,
        evaluate: Sequence[str] = (),
    ) -> list[str]:
        lines = ",".join(f'"{line}"' for line in evaluate)
        return [
            *self.images.repeat(k, self.plan.folds),
            *self.strategies[name],
            f"optimizer.lr={rate:.6g}",
            f"train.steps={self.plan.steps if name in self.untrained else steps}",
            f"train.ema_lengths={AVERAGES}",
            f"run.checkpoint_at={list(self.plan.looks)}",
            f"run.held_out_draws={self.plan.validation_draws}",
            *SPARING,
            *([f"data.n_train={size}", f"data.subset_seed={k}"] if size else []),
            *([f"run.evaluate=[{lines}]"] if lines else []),
        ]

    def _cell(
        self,
        name: str,
        k: int,
        size: int | None,
        rate: float,
        since: int,
        until: int,
        judge: bool = False,
    ) -> Cell:
        """since: the step that this very run has come to before."""
        steps = 0 if name in self.untrained else until
        line = f"metrics=[loss] held_out_draws={self.plan.test_draws} weights=average"
        overrides = self._overrides(name, k, size, rate, until, [line] if judge else [])
        work = self._work(size, since, steps, judge)
        unit = "fold" if self.plan.folds else "seed"
        of = f" of {size} images" if size else ""
        at = "" if name in self.untrained else f" at {rate:.3g} to step {until}"
        seconds = self.prices[name].seconds(work) if name in self.prices else 0.0
        return Cell(f"{unit} {k}, {name}{of}{at}", overrides, seconds)

    def _work(self, size: int | None, since: int, until: int, judge: bool) -> Work:
        every = self.images.training(self.plan.folds)
        rows = chosen_by(min(size or every, every))
        judged = self.plan.looked(since, until, rows)
        if judge and until:
            count, each = grid_of(rows, self.plan.validation_draws)
            judged += contending(tuple(self.plan.looks), tuple(AVERAGES)) * count * each
        if judge:
            count, each = grid_of(self._tested, self.plan.test_draws)
            judged += (1 + SOURCE_LOSSES) * count * each
        done = Work(max(0, until - since), judged)
        self.work = Work(self.work.steps + done.steps, self.work.judged + done.judged)
        return done


def audits_of(n: int, steps: int) -> str:
    """The line of evaluate.py, of so many images in so many steps each."""
    return f"n={n} sampler.steps={steps} weights=average metrics=[{','.join(AUDITS)}]"


def attacked(images: Images, folds: int | None) -> int:
    """Images that a membership attack judges: of the run and of its source, in each decile of t."""
    asked = min(IMAGES, images.training(folds)) + min(IMAGES, images.tested(folds))
    return 2 * 10 * asked


def chosen_rate(judged: Sequence[Judged]) -> float:
    """The middle one of those that repetitions chose; of two, the lower."""
    return median_low(each.rate for each in judged)


def chosen_step(judged: Sequence[Judged]) -> int:
    """The middle one of the repetitions that chose this rate, as another rate turns elsewhere."""
    rate = chosen_rate(judged)
    return median_low(each.step for each in judged if each.rate == rate)


def chosen_length(judged: Sequence[Judged]) -> float | None:
    """The same of the averages' lengths; None where nothing trains."""
    rate = chosen_rate(judged)
    known = [each.length for each in judged if each.rate == rate and each.length is not None]
    return median_low(known) if known else None


class Imagined:
    """Stands in for the runs of a plan that is priced: nothing fails, nothing is worse."""

    def losses(self, run: Path) -> dict[int, float]:
        return {0: 0.0}

    def judged(self, run: Path, rate: float) -> Judged:
        return Judged(run, rate, 0.0, [0.0, 0.0], 2, 1, 1, 1)

    def forget(self, run: Path) -> None:
        pass


class Priced(NamedTuple):
    """What a plan comes to where no strategy is left out on the way. seconds: of each strategy's
    cells, one after the other. cells: how many. work: of them all."""

    seconds: dict[str, float]
    cells: int
    work: Work


def priced(comparison: Comparison) -> Priced:
    fresh: dict[str, Any] = {
        "found": {},
        "outraced": {},
        "failed": {},
        "missing": {},
        "work": Work(),
        "spent": {},
        "expects": {},
    }
    imagined = replace(comparison, read=Imagined(), race=False, **fresh)
    rounds, count = imagined.rounds(), 0
    outcomes: Sequence[Outcome] | None = None
    while True:
        try:
            asked = rounds.send(outcomes)  # type: ignore[arg-type]
        except StopIteration:
            return Priced(imagined.spent, count, imagined.work)
        count += len(asked.cells)
        outcomes = [Outcome(Path("imagined"), "", 0.0) for _ in asked.cells]
