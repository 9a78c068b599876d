"""What is said of too few images to hold any out: what was found with the next larger number, of
images of other kinds (studies.regret)."""

from collections.abc import Mapping, Sequence
from statistics import median_low

from metrics.over_seeds import Mean, range_level
from reporting.numbers import join_names
from runtime.errors import UserError
from studies.cells import Context
from studies.regret import FULL, TABLE, Key, TargetResult, comparisons, mean_text, read, together
from studies.which_layers.answer import advised_command
from studies.which_layers.images import Images

BATCH = 16  # of the runs of the table


def of_few(images: Images, context: Context, strategies: Mapping[str, Sequence[str]]) -> str:
    """The paragraph, with a command. Raises UserError where the table knows no such strategy."""
    n, batch = images.at_hand, context.config["train"]["batch_size"]
    found = next_larger(comparisons(read(TABLE)), n)
    known = [s for s in strategies if all(s in c.behind and c.steps[s] for c in found.values())]
    if not known:
        every = [name for name, step in next(iter(found.values())).steps.items() if step]
        raise UserError(
            f"Of {n} images none can be held out, and of study.strategies none is among those that "
            f"were tried with so few: {join_names(every)}."
        )
    name = min(known, key=lambda s: together(minus_full(found, s)).value)
    of, trained_on = next(iter(found))[1], next(iter(found.values())).trained_on
    steps = [c.steps[name] for c in found.values()]
    share = same_share(found, name, n, batch)
    rate = context.config["optimizer"]["lr"] * median_low(c.factor[name] for c in found.values())
    own = [*images.all_of_them, *strategies[name]]
    command = advised_command(own, rate, share, None, context.arguments)
    return (
        f"Of your {n} images none can be held out, so that nothing here can tell which layers to "
        f"train or when to stop. What follows was found with {of} images of {len(found)} other "
        f"kinds ({join_names(sorted(target for target, _ in found))}), at 16x16 pixels, from a "
        f"small network that knows faces (docs/results.md): {_compared(found, name, known)} "
        f"Trained on {trained_on} of the {of}, it stopped after {min(steps)} to {max(steps)} steps "
        f"of {BATCH} images (the median of each kind), chosen by the other {of - trained_on}, and "
        f"you have none to choose by; as many passes over {n} images are {share} steps of {batch}. "
        "Whether passes or steps carry over to other numbers was not measured. Look at the samples "
        f"along the way (run.sample_every), and expect copies. Command: {command}"
    )


def next_larger(found: Mapping[Key, TargetResult], n: int) -> dict[Key, TargetResult]:
    """Of the smallest number of images that is not below n."""
    of = min(at_hand for _, at_hand in found if at_hand >= n)
    return {key: c for key, c in found.items() if key[1] == of}


def minus_full(found: Mapping[Key, TargetResult], name: str) -> dict[Key, Mean]:
    return {key: c.minus(name, FULL) for key, c in found.items()}


def _compared(found: Mapping[Key, TargetResult], name: str, known: Sequence[str]) -> str:
    lowest = f"train {name}, which had the lowest test loss of those asked for"
    if name == FULL:
        behind = {s: _against_full(found, s) for s in known if s != FULL}
        near = [s for s, (mean, level) in behind.items() if mean.holds_zero(level)]
        return f"{lowest}{f', and is not distinguished from {join_names(near)}' if near else ''}."
    mean, level = _against_full(found, name)
    said = "is not distinguished from" if mean.holds_zero(level) else "is better than"
    if not mean.holds_zero(level) and mean.value > 0:
        said = "is worse than"
    return f"{lowest}, and {said} {FULL} ({mean_text(mean, level)} of {FULL}'s test loss)."


def _against_full(found: Mapping[Key, TargetResult], name: str) -> tuple[Mean, float]:
    """With the level at which the intervals of all pairs hold together."""
    mean = together(minus_full(found, name))
    return mean, range_level(len(next(iter(found.values())).behind), mean.freedom)


def same_share(found: Mapping[Key, TargetResult], name: str, n: int, batch: int) -> int:
    """Steps of batch images that pass over n images as often as the middle one of the table's
    runs passed over those that it trained on."""
    passes = median_low(c.steps[name] * BATCH / c.trained_on for c in found.values())
    return max(1, round(passes * n / batch))
