"""Fitting a source's weights to a target network. Every tensor ends up loaded, resized (and how),
new or dropped, in a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from config.run_config import RunConfig
from config.sections import SourceSettings
from models.formats.misfit import Tensors
from runtime.errors import UserError
from runtime.seeds import generator
from transfer.name_patterns import checked_matches


def values(source: Tensor, generator: torch.Generator) -> Tensor:
    """The source's weights themselves."""
    return source


def mean_and_variance(source: Tensor, generator: torch.Generator) -> Tensor:
    """Normal, with the mean and the variance of the source's tensor: a control that keeps the scale
    of every layer and no feature.

    Source:
        Raghu et al. 2019 (Transfusion), section 5, "Mean Var".
    """
    spread = source.std(correction=0) if source.numel() > 1 else 0.0
    return source.mean() + spread * torch.randn(source.shape, generator=generator)


ALL = SourceSettings()  # of which every tensor is copied


def draws(settings: SourceSettings) -> bool:
    """Whether what is copied is drawn after the source's values, and not these themselves."""
    return settings.copy is not None and getattr(settings.copy, "func", settings.copy) is not values


AT_ZERO = "the source has no classes: zero, so that the network starts as the source"
TABLE = "class_embedding.weight"
TIME_BIAS = "time_mlp.2.bias"  # of what a row of the table is added to


class Ends(NamedTuple):
    """Where two networks may differ.

    Attributes:
        source, target: channels of the image.
        kept: classes of the source in the target's class table.
    """

    source: int
    target: int
    kept: int = 0


def depth_of(name: str, levels: int) -> int:
    """Which part of the network a tensor is in, counted from its input, as the drawing has it: 0
    conv_in and what embeds time and class, then levels down, the middle, levels up, and 2 levels +
    2 norm_out and conv_out."""
    part, _, rest = name.partition(".")
    if part in ("down", "up"):
        level = int(rest.split(".")[0])
        return 1 + level if part == "down" else 2 * levels + 1 - level
    return {"mid": levels + 1, "norm_out": 2 * levels + 2, "conv_out": 2 * levels + 2}.get(part, 0)


DRAWN = "at random, by source.copy"
COPIED = ("loaded", "resized")
USUAL = (*COPIED, "new", "dropped")  # which the log counts also where there is none


class Fit(NamedTuple):
    """What became of one tensor.

    Attributes:
        status: loaded, resized, drawn, new, folded or dropped.
        alike: parts of it that the source does not know begin as zeros or as copies of each other,
            so that they tell nothing apart until it trains.
    """

    name: str
    status: str
    how: str
    alike: bool = False


class Resized(NamedTuple):
    """A source's tensor in the target's shape.

    Attributes:
        how, alike: of its Fit.
    """

    value: Tensor
    how: str
    alike: bool


def resize_input_channels(source: Tensor, target: Tensor, ends: Ends) -> Resized | None:
    """conv_in [O, I, k, k] for images of n_target channels in place of n_source.

    To gray: the sum over the inputs. On a gray image this is the source's response to the image as
    RGB. It is not on noise: the source saw n_source independent noises, whose responses add up in
    squares, and the sum sees one, of up to sqrt(n_source) times their standard deviation (n_source
    times the variance). Else target channel j gets the weights of channel j mod n_source, times
    n_source / n_target. Equal channels give the source's response where n_target is a multiple of
    n_source; else (3 -> 4, 4 -> 3) some of its channels weigh more than others. Of more channels
    than the source has, some have the same weights, so that the network sees only their sum until
    it trains.
    """
    n_source, n_target, _ = ends
    if source.shape[0] != target.shape[0] or source.shape[2:] != target.shape[2:]:
        return None
    if n_target == 1:
        return Resized(source.sum(1, keepdim=True), f"summed over {n_source} input channels", False)
    index = torch.arange(n_target) % n_source
    return Resized(
        source[:, index] * (n_source / n_target),
        f"input channels repeated {n_source} -> {n_target}, times {n_source}/{n_target}",
        n_target > n_source,
    )


def resize_output_channels(source: Tensor, target: Tensor, ends: Ends) -> Resized | None:
    """conv_out (weight and bias) for images of another number of channels, n_source -> n_target:
    the mean for gray, repeated rows for more. Its second half is about the variance, where that is
    learned: one that is new starts at zero, in the middle of Nichol and Dhariwal's range; one that
    the target does not learn is left out."""
    n_source, n_target, _ = ends
    if source.shape[1:] != target.shape[1:] or len(source) % n_source or len(target) % n_target:
        return None
    halves = source.unflatten(0, (-1, n_source))  # [1 or 2, n_source, ...]
    known, wanted, how = len(halves), len(target) // n_target, []
    if n_target == 1 < n_source:
        halves = halves.mean(1, keepdim=True)
        how.append(f"mean over {n_source} output channels")
    elif n_target != n_source:
        halves = halves[:, torch.arange(n_target) % n_source]
        how.append(f"output channels repeated {n_source} -> {n_target}")
    if wanted > known:
        halves = torch.cat([halves, torch.zeros_like(halves)])
        how.append("the variance's half starts at zero")
    elif wanted < known:
        halves = halves[:wanted]
        how.append("the variance's half left out")
    alike = n_target > n_source or wanted > known
    return Resized(halves.flatten(0, 1), ", ".join(how), alike)


def resize_class_table(source: Tensor, target: Tensor, ends: Ends) -> Resized | None:
    """The class table for other classes: every new class starts as the mean of the source's, whose
    own rows follow where they are kept; the null class stays itself."""
    if source.shape[1:] != target.shape[1:]:
        return None
    classes, null = source[:-1], source[-1:]
    kept = classes[: ends.kept]
    new = classes.mean(0, keepdim=True).expand(len(target) - 1 - len(kept), -1)
    also = f"{len(kept)} of them and " if len(kept) else ""
    how = f"mean of {len(classes)} classes; {also}null kept"
    return Resized(torch.cat([new, kept, null]), how, True)


# (source, target, where the networks differ) -> the source in the target's shape, or None
RESIZE: dict[str, Callable[[Tensor, Tensor, Ends], Resized | None]] = {
    "conv_in.weight": resize_input_channels,
    "conv_out.weight": resize_output_channels,
    "conv_out.bias": resize_output_channels,
    TABLE: resize_class_table,
}


def fit(
    source: Tensors,
    target: Tensors,
    settings: SourceSettings = ALL,
    kept: int = 0,
    seed: int = 0,
) -> tuple[Tensors, list[Fit]]:
    """A source's weights in the shapes of a target.

    Args:
        target: its freshly initialized state, which stays where nothing is copied.
        kept: classes of the source that stay in the class table.
        seed: of what settings.copy draws.
    Returns:
        A full state dict for the target, and what became of each tensor.
    Raises:
        UserError: where no weight fits or a pattern of include matches none.
    """
    left_out = _left_out(list(target), settings)
    draw = settings.copy if draws(settings) else None
    folds = {TABLE, TIME_BIAS} <= source.keys() and TABLE not in target and not draw
    if folds:
        # a network without classes that answers as this one does to the null class: UNet adds a row
        # of the table to what embeds time
        source = source | {TIME_BIAS: source[TIME_BIAS] + source[TABLE][-1]}
    state, rows = {}, []
    first = "conv_in.weight"
    ends = Ends(source[first].shape[1], target[first].shape[1], kept)
    for name, tensor in target.items():
        if name in left_out:
            value, row = tensor, Fit(name, "new", left_out[name])
        else:
            value, row = _fit_one(name, source.get(name), tensor, ends)
        if draw and row.status in COPIED:
            row = Fit(name, "drawn", DRAWN)
            value = value if value.is_meta else draw(value, generator(seed, "copy", name))
        state[name] = value.to(tensor.dtype)
        rows.append(row)
    _check_some_fit([row for row in rows if row.name not in left_out], target)
    folded = folds and any(row.name == TIME_BIAS and row.status in COPIED for row in rows)
    for name in source:
        if name == TABLE and folded:
            how = "the target has no classes: its null row is added to time_mlp.2.bias"
            rows.append(Fit(TABLE, "folded", how))
        elif name not in target:
            rows.append(Fit(name, "dropped", "the target has no such tensor"))
    return state, rows


def planned_fit(config: RunConfig, source: RunConfig) -> list[Fit]:
    """What will become of the tensors of a source with that config, without memory."""
    theirs, ours = source.shape_network().state_dict(), config.shape_network().state_dict()
    return fit(theirs, ours, config.source, config.kept_classes(source))[1]


def _left_out(names: Sequence[str], settings: SourceSettings) -> dict[str, str]:
    """The tensors that are not to be copied, and why."""
    included = checked_matches(settings.include, names, "source.include")
    levels = 1 + max(int(name.split(".")[1]) for name in names if name.startswith("down."))
    last = 2 * levels + 2
    depth = last if settings.depth is None else settings.depth
    if not 0 <= depth <= last:
        raise UserError(
            f"source.depth={depth}: this network has the parts 0 (conv_in, the embedding of time) "
            f"to {last} (norm_out, conv_out), and null copies all."
        )
    deep = {name: "beyond source.depth" for name in names if depth_of(name, levels) > depth}
    return deep | dict.fromkeys(set(names) - set(included), "not in source.include")


def _check_some_fit(wanted: Sequence[Fit], target: Tensors) -> None:
    weights = [row for row in wanted if target[row.name].ndim > 1] or wanted  # biases fit by chance
    if weights and all(row.status == "new" for row in weights):
        raise UserError(
            "source.from: no weight of the source fits the target network; their architectures "
            "differ. Set model=... to the source's."
        )


def _fit_one(name: str, source: Tensor | None, target: Tensor, ends: Ends) -> tuple[Tensor, Fit]:
    """The source's tensor in the target's shape, or else the target's own; what became of it."""
    if source is None and name == TABLE:
        return torch.zeros_like(target), Fit(name, "new", AT_ZERO, alike=True)
    if source is None:
        return target, Fit(name, "new", "the source has no such tensor")
    if source.shape == target.shape:
        return source, Fit(name, "loaded", "")
    shapes = f"{list(source.shape)} -> {list(target.shape)}"
    known = name in RESIZE and source.ndim == target.ndim
    resized = RESIZE[name](source, target, ends) if known else None
    if resized is None:
        return target, Fit(name, "new", f"shapes differ: {shapes}")
    return resized.value, Fit(name, "resized", f"{resized.how}, {shapes}", resized.alike)


def summary(rows: Sequence[Fit]) -> str:
    """A line of counts, then what was not simply loaded; tensors of one part that share their fate
    share a line."""
    counts = Counter(dict.fromkeys(USUAL, 0))
    counts.update(row.status for row in rows)
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.status != "loaded":
            groups.setdefault((row.status, row.name.split(".")[0], row.how), []).append(row.name)
    lines = ["source weights: " + ", ".join(f"{n} {status}" for status, n in counts.items())]
    for (status, part, how), names in groups.items():
        tensors = names[0] if len(names) == 1 else f"{part}.* ({len(names)} tensors)"
        lines.append(f"  {status} {tensors}: {how}")
    return "\n".join(lines)
