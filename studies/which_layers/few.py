"""What is said of too few images to hold any out: what was found with the next larger number, of
images of other kinds (studies.regret)."""

from collections.abc import Mapping, Sequence
from statistics import median_low

from metrics.over_seeds import range_level
from reporting.numbers import join_names
from studies.cells import Context
from studies.regret import FULL, TABLE, Comparison, Key, comparisons, mean_text, read, together
from studies.which_layers.answer import advised_command
from studies.which_layers.images import Images

BATCH = 16  # of the runs of the table


def of_few(images: Images, context: Context, strategies: Mapping[str, Sequence[str]]) -> str:
    """The paragraph, with a command."""
    n, batch = images.at_hand, context.config["train"]["batch_size"]
    found = next_larger(comparisons(read(TABLE)), n)
    of = next(iter(found))[1]
    name = best_of(found, list(strategies))
    steps = {target: c.steps[name] for (target, _), c in found.items()}
    rates = [c.rate[name] for c in found.values()]
    share = same_share(found, name, n, batch)
    command = advised_command(
        [*images.all_of_them, *strategies[name]], median_low(rates), share, None, context.arguments
    )
    return (
        f"Of your {n} images none can be held out, so that nothing here can tell which layers to "
        f"train or when to stop. What follows was found with {of} images of {len(found)} other "
        f"kinds ({join_names(sorted(steps))}; docs/results.md): {_best_text(found, name)} It "
        f"stopped after {min(steps.values())} to {max(steps.values())} steps of {BATCH} images, "
        f"and the same share of {n} images, so many passes over them, is {share} steps of {batch}. "
        f"Look at the samples along the way (run.sample_every), and expect copies. Command: "
        f"{command}"
    )


def next_larger(found: Mapping[Key, Comparison], n: int) -> dict[Key, Comparison]:
    """Of the smallest number of images that is not below n."""
    of = min(at_hand for _, at_hand in found if at_hand >= n)
    return {key: c for key, c in found.items() if key[1] == of}


def best_of(found: Mapping[Key, Comparison], names: Sequence[str]) -> str:
    """The lowest loss, in percent of full's, over all targets."""
    known = [name for name in names if all(name in c.behind for c in found.values())]
    mean = {n: together({k: c.minus(n, FULL) for k, c in found.items()}).value for n in known}
    return min(mean, key=lambda name: mean[name], default=FULL)


def _best_text(found: Mapping[Key, Comparison], name: str) -> str:
    if name == FULL:
        return f"{FULL} has the lowest test loss."
    mean = together({key: c.minus(name, FULL) for key, c in found.items()})
    count = len(next(iter(found.values())).behind)
    level = range_level(count, mean.freedom)
    known = "is not distinguished from" if mean.holds_zero(level) else "is better than"
    return f"{name} has the lowest test loss, and {known} {FULL} ({mean_text(mean, level)})."


def same_share(found: Mapping[Key, Comparison], name: str, n: int, batch: int) -> int:
    """Steps of batch images that pass over n images as often as the middle one of the table's
    runs passed over those that it trained on."""
    passes = median_low(c.steps[name] * BATCH / c.trained_on for c in found.values())
    return max(1, round(passes * n / batch))
