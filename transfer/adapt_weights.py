"""Fitting a source's weights to a target network. Every tensor ends up loaded, resized (and how),
new or dropped, in a table."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from config.run_config import RunConfig
from config.sections import SourceSettings
from models.formats.misfit import Tensors
from runtime.errors import UserError
from runtime.seeds import generator
from transfer.glob_matches import checked_matches
from transfer.resize_weights import AUGMENTATION, RESIZE, TABLE, Ends


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


TIME_BIAS = "time_mlp.2.bias"  # of what a row of the class table is added to
# what starts at zero, so that the network starts as the source
AT_ZERO = {
    TABLE: "the source has no classes: zero, so that the network starts as the source",
    AUGMENTATION: "the source was told of no augmentation: zero, so that the network starts as the "
    "source",
}


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
DROPPED = {AUGMENTATION: "images here are as they are, of which it says nothing"}
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
    left_out = _left_out(target, settings)
    draw = settings.copy if draws(settings) else None
    folds = {TABLE, TIME_BIAS} <= source.keys() and TABLE not in target and not draw
    if folds:
        source = source | without_classes(source)
    state, rows = {}, []
    first = "conv_in.weight"
    ends = Ends(source[first].shape[1], target[first].shape[1], kept)
    for name, tensor in target.items():
        if name in left_out:
            value, row = _own(name, tensor, left_out[name])
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
            rows.append(Fit(name, "dropped", DROPPED.get(name, "the target has no such tensor")))
    return state, rows


def without_classes(state: Tensors, row: int = -1) -> Tensors:
    """The network without classes that answers as this one does to the class of a row of its table,
    the null class for -1: UNet adds the row to what embeds time."""
    rest = {name: tensor for name, tensor in state.items() if name != TABLE}
    return rest | {TIME_BIAS: state[TIME_BIAS] + state[TABLE][row]}


def planned_fit(config: RunConfig, source: RunConfig) -> list[Fit]:
    """What will become of the tensors of a source with that config, without memory."""
    theirs, ours = source.shape_network().state_dict(), config.shape_network().state_dict()
    return fit(theirs, ours, config.source, config.kept_classes(source))[1]


def _left_out(names: Collection[str], settings: SourceSettings) -> dict[str, str]:
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
        return torch.zeros_like(target), Fit(name, "new", AT_ZERO[name], alike=True)
    if source is None:
        return _own(name, target, "the source has no such tensor")
    if source.shape == target.shape:
        return source, Fit(name, "loaded", "")
    shapes = f"{list(source.shape)} -> {list(target.shape)}"
    known = name in RESIZE and source.ndim == target.ndim
    resized = RESIZE[name](source, target, ends) if known else None
    if resized is None:
        return _own(name, target, f"shapes differ: {shapes}")
    return resized.value, Fit(name, "resized", f"{resized.how}, {shapes}", resized.alike)


def _own(name: str, target: Tensor, how: str) -> tuple[Tensor, Fit]:
    """The target's tensor as it was made, which of AUGMENTATION is zero."""
    if name == AUGMENTATION:
        return target, Fit(name, "new", AT_ZERO[name], alike=True)
    return target, Fit(name, "new", how)


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
