"""The study from its first cell to its page: time the cells, plan, compare, audit, answer."""

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from config.overrides import check_overrides, composed
from config.run_config import RunConfig
from reporting.runs import Run
from runtime.errors import UserError
from runtime.files import read_json, write_csv, write_json
from runtime.log import table
from studies.cells import Context, Outcome, Round, Rounds
from studies.which_layers.answer import answer
from studies.which_layers.few import of_few
from studies.which_layers.images import FEWEST, Images, look_at
from studies.which_layers.page import write_page
from studies.which_layers.plan import Plan, Price, lesser, looks_of, minutes
from studies.which_layers.rounds import Comparison, priced
from studies.which_layers.runs import OfRuns, audited_run, forget_snapshots
from studies.which_layers.table import table_of
from studies.which_layers.timing import MADE_ANEW, time_strategies
from training.pretrained_source import find_source
from training.result import size

STRATEGIES = (
    "full",
    "freeze_encoder",
    "freeze_decoder",
    "norm_bias",
    "lora",
    "scratch",
    "zero_shot",
)
PLAN, ANSWER, TABLE = "plan.json", "answer.json", "runs.csv"
CHOSEN_HERE = ("optimizer.lr", "train.steps", "train.ema_lengths")
SMALLER = 0.7  # a subset has at most so much of all


@dataclass(frozen=True)
class WhichLayers:
    """See conf/experiment/which_layers.yaml.

    Args:
        strategies: names of conf/transfer, or names of one's own with the overrides that each is;
            null for STRATEGIES.
        budget: the longest time for all, such as 30m or 2h; null for the whole plan.
        rates: times optimizer.lr, tried for every strategy alike.
        folds: of fewer than 200 images or patients; more are split once, and so many seeds trained.
        sizes: of the subsets that the curve shows beside all images.
        validation_draws, test_draws: (image, t, noise) triples of a loss.
        audit_images: generated for the audits of each strategy.
        race: leave out of later folds what is worse by its paired interval.
    """

    strategies: Sequence[str] | dict[str, list[str]] | None
    budget: str | int | float | None
    rates: Sequence[float]
    folds: int
    sizes: Sequence[int]
    validation_draws: int
    test_draws: int
    audit_images: int
    race: bool

    def __post_init__(self) -> None:
        if self.budget is not None:
            minutes(str(self.budget))
        if len(self._overrides) < 2:
            raise ValueError("strategies: a comparison needs two or more.")
        if not self.rates or min(self.rates) <= 0 or len(self.rates) > 3:
            raise ValueError(f"rates={list(self.rates)}: one to three factors above 0.")
        if self.folds < 3:
            raise ValueError(f"folds={self.folds}: at least 3, as the interval is over them.")

    @cached_property
    def _overrides(self) -> dict[str, list[str]]:
        if isinstance(self.strategies, dict):
            return self.strategies
        names = STRATEGIES if self.strategies is None else self.strategies
        return {name: [f"transfer={name}"] for name in names}

    def __call__(self, context: Context) -> Rounds:
        images = look_at(context.config, context.arguments)
        if images.at_hand < FEWEST:
            print(f"\n{of_few(images, context, self._overrides)}", flush=True)
            return
        folds, untrained = images.folds(self.folds), self._untrained(context)
        images.check(folds)
        tell_of_source(RunConfig(context.config))
        audits = self.audit_images > 0
        prices = yield from time_strategies(
            context, images, folds, self._overrides, untrained, audits
        )
        comparison, told = self._planned(context, images, untrained, prices)
        print(told, flush=True)
        comparison.expects = priced(comparison).seconds
        comparison.after = self._audits(comparison)
        yield from comparison.rounds()
        audited = yield from self._audit(comparison)
        found = answer(comparison, audited, context.arguments)
        write_json(context.folder / ANSWER, found.as_json())
        write_csv(context.folder / TABLE, table_of(comparison))
        page = write_page(comparison, found, audited, told, context)
        print(f"\n{found.text}\n\n{page}", flush=True)

    def _untrained(self, context: Context) -> list[str]:
        """Those that train nothing. Raises UserError for one that there is not."""
        found = []
        for name, overrides in self._overrides.items():
            try:
                check_overrides("train", [*context.arguments, *overrides])
                transfer = composed("train", [*context.arguments, *overrides])["transfer"]
            except UserError as error:
                raise UserError(f"study.strategies: {name}: {error}") from error
            if said := [o for o in overrides if o.split("=")[0] in CHOSEN_HERE]:
                raise UserError(
                    f"study.strategies: {name}: {' '.join(said)}: a study chooses these alike for "
                    "all strategies: give optimizer.lr, train.steps or study.rates of the study."
                )
            found += [name] * (transfer["rules"] == [])
        return found

    def _planned(
        self,
        context: Context,
        images: Images,
        untrained: Sequence[str],
        prices: Mapping[str, Price],
    ) -> tuple[Comparison, str]:
        """What is done, and how that is told. The plan of the first time is kept."""
        train = context.config["train"]
        folds = images.folds(self.folds)
        have = images.training(folds)
        sizes = sorted((n for n in self.sizes if n <= SMALLER * have), reverse=True)
        whole = Plan(
            folds,
            self.folds if folds is None else folds,
            sizes,
            self.rates,
            rates_once=False,
            steps=train["steps"],
            looks=looks_of(train["steps"]),
            validation_draws=self.validation_draws,
            test_draws=self.test_draws,
            audit_images=self.audit_images,
            sampler_steps=context.config["sampler"]["steps"],
        )
        rate = context.config["optimizer"]["lr"]
        read, named = OfRuns(), self._overrides
        comparison = Comparison(whole, images, named, untrained, rate, prices, read, self.race)
        path, gone = context.folder / PLAN, list[str]()
        if path.exists():
            kept = read_json(path, MADE_ANEW, keys=["plan", "images"])
            if kept["images"] != images.fingerprint:
                raise UserError(
                    f"{path}: the images are not those that this plan was made for. Put them back, "
                    f"or move {context.runs} away: the same command then begins anew."
                )
            comparison, gone = replace(comparison, plan=Plan(**kept["plan"])), kept["left out"]
        else:
            comparison, gone = self._chosen(comparison)
            plan = comparison.plan.as_json()
            content = {"images": images.fingerprint, "plan": plan, "left out": gone}
            write_json(path, content)
        return comparison, self._told(comparison, gone)

    def _chosen(self, whole: Comparison) -> tuple[Comparison, list[str]]:
        """With the first plan that the budget is enough for, and what was left out for it."""
        most = math.inf if self.budget is None else 60 * minutes(str(self.budget))
        gone, total = list[str](), 0.0
        for left_out, plan in lesser(whole.plan):
            gone += [left_out] * bool(left_out)
            comparison = replace(whole, plan=plan)
            total = self._seconds(comparison)
            if total <= most:
                return comparison, gone
        raise UserError(
            f"budget={self.budget}: the least plan takes about {total / 60:.0f} minutes here. Give "
            f"budget={total / 60 * 1.1:.0f}m, fewer study.strategies=[...], fewer train.steps or a "
            "smaller data.size."
        )

    def _seconds(self, comparison: Comparison) -> float:
        return sum(priced(comparison).seconds.values()) + self._audits(comparison)

    @staticmethod
    def _audits(comparison: Comparison) -> float:
        """Seconds of them all."""
        if not comparison.plan.audit_images:
            return 0.0
        return sum(comparison.audit_cell(name).seconds for name in comparison.strategies)

    def _told(self, comparison: Comparison, gone: Sequence[str]) -> str:
        """The plan and its price."""
        plan, images = comparison.plan, comparison.images
        _, cells, work = priced(comparison)
        rates = ", ".join(f"{comparison.rate * r:.3g}" for r in plan.rates)
        each = "in the first alone" if plan.rates_once else "in each"
        lines = [
            ["images", images.told(plan.folds, plan.repeats)],
            *([["classes", f"{images.classes}, told to the network"]] if images.classes else []),
            ["strategies", ", ".join(comparison.strategies)],
            ["rates", rates + (f", chosen by halving {each}" if len(plan.rates) > 1 else "")],
            ["subsets", ", ".join(map(str, plan.sizes)) or "none"],
            ["steps", f"{plan.steps}, looked at after {', '.join(map(str, plan.looks))}"],
            ["audits", f"{plan.audit_images} images of each" if plan.audit_images else "none"],
            ["cells", f"{cells}, {work.steps} steps and {work.judged} judged images in all"],
            ["price", f"about {self._seconds(comparison) / 60:.0f} minutes of this machine"],
            ["disk", f"up to {size(plan.most_bytes(comparison.prices.values()))} at a time"],
        ]
        left = [f"Left out for budget={self.budget}: {'; '.join(gone)}."] if gone else []
        warned = filter(None, [images.warned(plan.folds, plan.repeats)])
        return "\n".join(["", "The plan:", table(lines), *left, *warned, ""])

    def _audit(self, comparison: Comparison) -> Generator[Round, Sequence[Outcome], dict[str, Run]]:
        """Images of each strategy's first run, judged for copies, membership and use."""
        found, failed = comparison.found, comparison.failed
        names = [n for n in found if 0 in found[n].get(None, {}) and n not in failed]
        if not names or not comparison.plan.audit_images:
            return {}
        cells = [comparison.audit_cell(name) for name in names]
        outcomes = yield Round(cells)
        ended = zip(names, outcomes, strict=True)
        runs = {name: outcome.run for name, outcome in ended if outcome.run}
        for run in runs.values():
            forget_snapshots(run)
        return {name: audited_run(run) for name, run in runs.items()}


def tell_of_source(config: RunConfig) -> None:
    """Says where it is trained first. Raises UserError where there is none such, or it does not
    fit."""
    source = find_source(config)
    if source is None or source.find_weights() is not None:
        return
    hours = source.config.raw["gpu_hours"]
    print(
        f"The source {source.name} is not trained yet: it is trained first and once, about "
        f"{60 * hours:.0f} minutes by its experiment, which the price and budget= do not count.",
        flush=True,
    )
