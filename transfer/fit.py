"""Fitting a source's weights to a target network. Every tensor ends up loaded, resized (and how), new or dropped, in a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.errors import UserError
from transfer.rules import check_pattern


@dataclass(frozen=True)
class SourceSettings:
    """from: an experiment's name, a run directory or a checkpoint, a folder in diffusers' format, OWNER/NAME on the Hugging Face Hub, or
    a file of weights; null starts at random. include: globs of the parameters that
    are copied. weights: the running average or the last iterate. train: train a missing source even if that takes long.
    overrides: of the source experiment's own settings."""

    from_: str | None = None
    include: Sequence[str] = ("*",)
    weights: str = "ema"
    train: bool = False
    overrides: Sequence[str] = ()

    def __post_init__(self):
        if self.weights not in ("ema", "model"):
            raise ValueError(f"weights must be ema or model, not {self.weights}.")

    @property
    def used(self) -> bool:
        return self.from_ is not None and len(self.include) > 0


NOT_INCLUDED = "not in source.include"


class Fit(NamedTuple):
    """What became of one tensor. status: loaded, resized, new or dropped."""

    name: str
    status: str
    how: str


def input_channels(source: Tensor, target: Tensor, n_source: int, n_target: int) -> tuple[Tensor, str] | None:
    """conv_in [O, I, k, k] for another number of input channels.

    To gray: the sum over the inputs, exact for an image whose channels were equal. To more channels: repeated and scaled, so
    that equal channels give the source's response.
    """
    if source.shape[0] != target.shape[0] or source.shape[2:] != target.shape[2:]:
        return None
    if n_target == 1:
        return source.sum(1, keepdim=True), f"summed over {n_source} input channels"
    index = torch.arange(n_target) % n_source
    return source[:, index] * (n_source / n_target), f"input channels repeated {n_source} -> {n_target}, times {n_source}/{n_target}"


def output_channels(source: Tensor, target: Tensor, n_source: int, n_target: int) -> tuple[Tensor, str] | None:
    """conv_out (weight and bias) for images of another number of channels, n_source -> n_target: the mean for gray, repeated rows for
    more. Its second half is about the variance, where that is learned: one that is new starts at zero, in the middle of
    Nichol and Dhariwal's range; one that the target does not learn is left out."""
    if source.shape[1:] != target.shape[1:] or len(source) % n_source or len(target) % n_target:
        return None
    halves, wanted, how = source.unflatten(0, (-1, n_source)), len(target) // n_target, []
    if n_target == 1 < n_source:
        halves, how = halves.mean(1, keepdim=True), [f"mean over {n_source} output channels"]
    elif n_target != n_source:
        halves, how = halves[:, torch.arange(n_target) % n_source], [f"output channels repeated {n_source} -> {n_target}"]
    if wanted > len(halves):
        halves, how = torch.cat([halves, torch.zeros_like(halves)]), [*how, "the variance's half starts at zero"]
    elif wanted < len(halves):
        halves, how = halves[:wanted], [*how, "the variance's half left out"]
    return halves.flatten(0, 1), ", ".join(how)


def class_rows(source: Tensor, target: Tensor, n_source: int, n_target: int) -> tuple[Tensor, str] | None:
    """The class table for other classes: every new class starts as the mean of the source's, the null class stays itself."""
    if source.shape[1:] != target.shape[1:]:
        return None
    classes, null = source[:-1], source[-1:]
    return torch.cat([classes.mean(0, keepdim=True).expand(len(target) - 1, -1), null]), f"mean of {len(classes)} classes; null kept"


# (source, target, channels of the source's images, of the target's) -> (the source in the target's shape, how), or None
RESIZE: dict[str, Callable[[Tensor, Tensor, int, int], tuple[Tensor, str] | None]] = {
    "conv_in.weight": input_channels,
    "conv_out.weight": output_channels,
    "conv_out.bias": output_channels,
    "class_embedding.weight": class_rows,
}


def fit(source: dict[str, Tensor], target: dict[str, Tensor], include: Sequence[str] = ("*",)) -> tuple[dict[str, Tensor], list[Fit]]:
    """Source weights in the target's shapes -> (a full state dict for the target, the table of what became of each tensor).

    target: its freshly initialized state, which stays where nothing is copied. Raises UserError where no weight fits or a
    pattern of include matches none.
    """
    for pattern in include:
        check_pattern(pattern, list(target), "source.include")
    state, rows = dict(target), []
    channels = [weights["conv_in.weight"].shape[1] if "conv_in.weight" in weights else 0 for weights in (source, target)]
    for name, tensor in target.items():
        value, row = _fit_one(name, source.get(name), tensor, include, channels)
        rows.append(row)
        if value is not None:
            state[name] = value.to(tensor.dtype)
    rows += [Fit(name, "dropped", "the target has no such tensor") for name in source if name not in target]
    wanted = [row for row in rows if row.name in target and row.how != NOT_INCLUDED]
    weights = [row for row in wanted if target[row.name].ndim > 1] or wanted  # biases fit by chance
    if weights and all(row.status == "new" for row in weights):
        raise UserError("source.from: no weight of the source fits the target network; their architectures differ. Set model=... to "
                        "the source's.")
    return state, rows


def _fit_one(name: str, source: Tensor | None, target: Tensor, include: Sequence[str],
             channels: Sequence[int]) -> tuple[Tensor | None, Fit]:
    if not any(fnmatchcase(name, pattern) for pattern in include):
        return None, Fit(name, "new", NOT_INCLUDED)
    if source is None:
        return None, Fit(name, "new", "the source has no such tensor")
    if source.shape == target.shape:
        return source, Fit(name, "loaded", "")
    shapes = f"{list(source.shape)} -> {list(target.shape)}"
    resized = RESIZE[name](source, target, *channels) if name in RESIZE and all(channels) and source.ndim == target.ndim else None
    if resized is None:
        return None, Fit(name, "new", f"shapes differ: {shapes}")
    return resized[0], Fit(name, "resized", f"{resized[1]}, {shapes}")


def summary(rows: Sequence[Fit]) -> str:
    """A line of counts, then what was not simply loaded; tensors of one part that share their fate share a line."""
    counts = {status: sum(row.status == status for row in rows) for status in ("loaded", "resized", "new", "dropped")}
    lines: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.status != "loaded":
            lines.setdefault((row.status, row.name.split(".")[0], row.how), []).append(row.name)
    return "\n".join([
        "source weights: " + ", ".join(f"{n} {status}" for status, n in counts.items()),
        *(f"  {status} {names[0] if len(names) == 1 else f'{part}.* ({len(names)} tensors)'}: {how}"
          for (status, part, how), names in lines.items())])
