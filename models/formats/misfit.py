"""A checkpoint of another program that does not fit the network: one message with the settings to
change, then the names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from runtime.errors import UserError

SHOWN = 3  # names of each kind
# a state dict -> the constructor's arguments that its shapes show
Settings = Callable[[Mapping[str, Tensor]], dict[str, Any]]


def check_fit(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], settings: Settings, unseen: str
) -> None:
    """Raises UserError unless both have the same names and shapes. expected: the network's, under
    the checkpoint's names; on the meta device is enough. unseen: the settings that no shape shows,
    for the message."""
    found, wanted = (
        {name: list(tensor.shape) for name, tensor in tensors.items()}
        for tensors in (state, expected)
    )
    if found != wanted:
        raise UserError(
            "\n".join(
                [
                    "the checkpoint does not fit the network.",
                    *_settings_that_differ(state, expected, settings, unseen),
                    *_differences(found, wanted),
                ]
            )
        )


def some(items: list[str]) -> str:
    """The first few, and how many more."""
    return ", ".join(items[:SHOWN]) + (
        f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    )


def whole(ratio: float) -> int | float:
    """A multiplier as a config has it: 2 and not 2.0."""
    return int(ratio) if ratio == int(ratio) else ratio


def _settings_that_differ(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], settings: Settings, unseen: str
) -> Iterator[str]:
    try:
        theirs = settings(state)
    except (KeyError, IndexError):
        yield "The file is incomplete: what shows its settings is missing."
        return
    ours = settings(expected)
    different = [name for name in theirs if theirs[name] != ours[name]]
    if not different:
        yield (
            "Every setting that shapes show agrees, so the file is incomplete, or of a network "
            "that was changed."
        )
        return
    yield "By its shapes it was trained with these settings:"
    for name in different:
        yield f"  {_override(name, theirs)}   (now {_yaml(ours[name])})"
    yield f"No shape shows {unseen}: compare the publisher's flags."


def _override(name: str, theirs: dict[str, Any]) -> str:
    value = theirs[name]
    if name == "out_channels":  # the builder's, who follows the variance
        choice = (
            "variance=learned_range"
            if value == 2 * theirs["in_channels"]
            else "variance=fixed_large, or another that is fixed"
        )
        return f"{choice}: {value} output channels for an image of {theirs['in_channels']}"
    if name == "in_channels":
        return f"data.channels={value}" + (
            " (or it is an upsampler, which no network here is)" if value == 6 else ""
        )
    return f"model.{name}={_yaml(value)}"


def _yaml(value: Any) -> str:
    """A value as Hydra reads it."""
    return str(value).lower().replace(" ", "")


def _differences(found: dict[str, list[int]], wanted: dict[str, list[int]]) -> Iterator[str]:
    """The names, for those who want to see them."""
    if missing := [name for name in wanted if name not in found]:
        yield f"The checkpoint lacks {len(missing)} tensors of the network: {some(missing)}."
    if extra := [name for name in found if name not in wanted]:
        yield f"The network has no place for {len(extra)} tensors of the checkpoint: {some(extra)}."
    if wrong := [
        f"{name} {found[name]} for {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]:
        yield (
            f"{len(wrong)} tensors have other shapes (the checkpoint's for the network's): "
            f"{some(wrong)}."
        )
