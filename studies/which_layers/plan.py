"""What a study does, what that costs, and what is left out of it where the time is short."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from metrics.held_out_loss import grid_of
from training.evaluation_steps import spaced

SPACING = 1.3  # between the steps at which a run is looked at
FIRST_LOOK = 5
LEAST_REPEATS = 3  # below, an interval says next to nothing
STAGES = (1 / 4, 1 / 2, 1)  # of the steps, after which the worst rate is left out


@dataclass(frozen=True)
class Work:
    """What is counted of a cell. steps: of training. judged: images that the network is given
    without a gradient, each time that it is given one."""

    steps: int = 0
    judged: int = 0


@dataclass(frozen=True)
class Price:
    """Seconds on the machine that runs the cells, and bytes on its disk. start: of a cell that does
    nothing. step: one of training. judged: one image without a gradient. checkpoint, snapshot: of
    a run that was looked at. audits: what an audit takes beside images and losses, such as
    training classifiers."""

    start: float
    step: float
    judged: float
    checkpoint: int = 0
    snapshot: int = 0
    audits: float = 0.0

    def seconds(self, work: Work) -> float:
        return self.start + work.steps * self.step + work.judged * self.judged

    def bytes(self, looks: int) -> int:
        """Of a run that was looked at so often."""
        return self.checkpoint + looks * self.snapshot


@dataclass(frozen=True)
class Plan:
    """Args:
    folds: how many; None for one split.
    repeats: folds that are judged, or seeds of one split.
    sizes: of the smaller subsets (data.n_train), the largest first.
    rates: of optimizer.lr, before a strategy scales it.
    rates_once: chosen in the first repetition for all; else in each.
    steps, looks: at which a run is looked at.
    validation_draws, test_draws: see metrics.held_out_loss.
    audit_images: made for the audits of each strategy, 0 for none.
    sampler_steps: of each of them.
    """

    folds: int | None
    repeats: int
    sizes: Sequence[int]
    rates: Sequence[float]
    rates_once: bool
    steps: int
    looks: Sequence[int]
    validation_draws: int
    test_draws: int
    audit_images: int
    sampler_steps: int

    def stages(self, count: int) -> list[int]:
        """The steps after each stage of halving of so many rates, the last all of them."""
        shares = STAGES[-count:]
        return [max(look for look in self.looks if look <= share * self.steps) for share in shares]

    def looked(self, since: int, until: int, rows: int) -> int:
        """Images that are judged along a run of validation images, from step to step."""
        count, each = grid_of(rows, self.validation_draws)
        looks = sum(since < look <= until for look in self.looks)
        return looks * count * each

    def most_bytes(self, prices: Iterable[Price]) -> int:
        """Of all runs that are kept at one time: those of a round, the weights of others being
        removed when they are judged."""
        looks, count = len(self.looks), len(self.rates)
        in_stages = [
            (count - n, sum(look <= stage for look in self.looks))
            for n, stage in enumerate(self.stages(count)[:-1])
        ]
        at_once = [*in_stages, (2 + len(self.sizes), looks)]  # with those that wait for the audits
        return sum(max(runs * price.bytes(n) for runs, n in at_once) for price in prices)

    def as_json(self) -> dict[str, Any]:
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


def looks_of(steps: int) -> list[int]:
    """The first no later than the first stage of halving ends."""
    return spaced(steps, SPACING, max(1, min(FIRST_LOOK, int(STAGES[0] * steps))))


def lesser(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """The plan, and what it becomes as one thing after the other is left out of it, the least
    important first: (what was left out last, the plan)."""
    yield "", plan
    if plan.audit_images:
        plan = replace(plan, audit_images=0)
        yield "the audits of generated images (copies, membership, a classifier)", plan
    while plan.sizes:
        plan, gone = replace(plan, sizes=plan.sizes[:-1]), plan.sizes[-1]
        yield f"the subset of {gone} images", plan
    if not plan.rates_once and len(plan.rates) > 1:
        plan = replace(plan, rates_once=True)
        yield "the choice of the rate in each repetition; the first one's is taken", plan
    while plan.repeats > LEAST_REPEATS:
        plan = replace(plan, repeats=plan.repeats - 1)
        unit = "fold" if plan.folds else "seed"
        yield f"a {unit}, so that {plan.repeats} are left", plan
    if len(plan.rates) > 1:
        plan = replace(plan, rates=[sorted(plan.rates)[len(plan.rates) // 2]])
        yield "the choice of the rate: the middle one is taken", plan


def minutes(text: str) -> float:
    """Of a duration such as 90s, 30m, 2h or 1.5h. Raises ValueError for another text."""
    units: Mapping[str, float] = {"s": 1 / 60, "m": 1, "h": 60, "d": 1440}
    unit = units.get(text[-1:])
    try:
        value = float(text[:-1])
    except ValueError:
        value = -1.0
    if unit is None or not 0 < value < float("inf"):
        raise ValueError(f"budget={text} is no duration such as 30m, 2h or 1.5h.")
    return value * unit
