"""What is timed before a plan is made: ten steps of each strategy and one look, and the audits
once, which is also where it shows what does not run at all; and the prices that follow."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict

from runtime.errors import UserError
from runtime.files import read_json, write_json
from studies.cells import Cell, Context, Outcome, Round
from studies.which_layers.images import Images
from studies.which_layers.plan import Price, Work
from studies.which_layers.rounds import AVERAGES, SPARING, attacked, audits_of
from studies.which_layers.runs import OfRuns, seconds_of, size_of
from transfer.trained_weights import AVERAGES as SNAPSHOTS

PRICES = "prices.json"
MADE_ANEW = "delete this folder, and give the command again"
STEPS = 10
DRAWS = 256  # so many that what a look does beside them hardly counts
GENERATED = 32  # images of the audits that are timed
THE_AUDITS = "the audits"


def time_strategies(
    context: Context,
    images: Images,
    folds: int | None,
    strategies: Mapping[str, Sequence[str]],
    untrained: Sequence[str],
    audits: bool,
) -> Generator[Round, Sequence[Outcome], dict[str, Price]]:
    """The price of each strategy. Those of the first time are kept."""
    steps = context.config["sampler"]["steps"]
    told = {name: _cell(context, images, folds, name, own) for name, own in strategies.items()}
    trained = [name for name in strategies if name not in untrained]
    if audits and trained:
        own = [*strategies[trained[0]], f'run.evaluate=["{audits_of(GENERATED, steps)}"]']
        told[THE_AUDITS] = _cell(context, images, folds, THE_AUDITS, own)
    outcomes = yield Round(list(told.values()))
    ended = dict(zip(told, outcomes, strict=True))
    _check(ended)
    path = context.folder / PRICES
    if not path.exists():
        work = Work(0, GENERATED * steps + attacked(images, folds))
        prices = _prices(ended, trained, work)
        write_json(path, {name: asdict(price) for name, price in prices.items()})
        for outcome in outcomes:
            if outcome.run:
                OfRuns().forget(outcome.run)
    return {name: Price(**p) for name, p in read_json(path, MADE_ANEW).items()}


def _cell(
    context: Context, images: Images, folds: int | None, name: str, own: Sequence[str]
) -> Cell:
    overrides = [
        *images.repeat(0, folds),
        *own,
        f"run.directory={context.folder / 'timing' / name.replace(' ', '_')}",
        f"train.steps={STEPS}",
        "train.warmup=0",
        f"train.ema_lengths={AVERAGES}",
        *SPARING,
        "run.log_every=5",
        f"run.checkpoint_at=[{STEPS}]",
        f"run.held_out_draws={DRAWS}",
    ]
    return Cell(f"timing, {name}", overrides)


def _check(ended: Mapping[str, Outcome]) -> None:
    """Raises UserError where one failed."""
    failed = {name: o.message for name, o in ended.items() if o.run is None}
    if not failed:
        return
    strategies = [name for name in ended if name != THE_AUDITS]
    if all(name in failed for name in strategies) and len(set(failed.values())) == 1:
        raise UserError(f"no strategy runs here: {next(iter(failed.values()))}")
    cure = "study.strategies=[...] leaves strategies out"
    if THE_AUDITS in failed:
        cure += ", study.audit_images=0 the audits"
    lines = [f"\n  {name}: {message}" for name, message in failed.items()]
    raise UserError(f"{len(failed)} of {len(ended)} do not run here:{''.join(lines)}\n{cure}.")


def _prices(ended: Mapping[str, Outcome], trained: Sequence[str], audits: Work) -> dict[str, Price]:
    """audits: what those that were timed come to, beside what has its own price."""
    runs = {name: o.run for name, o in ended.items() if o.run and name != THE_AUDITS}
    measured = {name: (ended[name].seconds, *seconds_of(runs[name])) for name in trained}
    judged = min(validation for *_, validation in measured.values()) / DRAWS if measured else 0.0
    starts = [max(0.0, s - STEPS * step - v) for s, step, v in measured.values()]
    start = sorted(starts)[len(starts) // 2] if starts else 0.0  # the first decodes the images
    rest = 0.0
    if THE_AUDITS in ended:
        _, step, validation = measured[trained[0]]
        known = start + STEPS * step + validation + audits.judged * judged
        rest = max(0.0, ended[THE_AUDITS].seconds - known)
    return {
        name: Price(
            start,
            measured[name][1] if name in measured else 0.0,
            judged,
            size_of(run / "checkpoints"),
            size_of(run / SNAPSHOTS),
            rest,
        )
        for name, run in runs.items()
    }
