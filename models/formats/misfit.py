"""A checkpoint of another program that does not fit the network: one message with the settings to
change, then the names."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from runtime.errors import UserError

SHOWN = 3  # names of each kind
State = Mapping[str, Tensor]  # tensors by name, read
Tensors = dict[str, Tensor]  # the same, made


def check_fit(
    state: State,
    network: nn.Module,
    renamed: Callable[[State], State],
    settings: Callable[[State], dict[str, Any]],
    unseen: str,
) -> None:
    """Checks that a checkpoint has the names and shapes of the network.

    Args:
        renamed: gives the network's tensors the checkpoint's names.
        settings: the constructor's arguments that the shapes of such tensors show.
        unseen: the settings that no shape shows, for the message.
    Raises:
        UserError: where it has others, with the settings to change.
    """
    empty = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
    expected = renamed(empty)
    if not (different := _differences(state, expected)):
        return
    ours = settings(expected)
    try:
        theirs = settings(state)
    except (LookupError, TypeError, ValueError):
        advice = ["The file is incomplete: what shows its settings is missing."]
    else:
        advice = [
            "Every setting that shapes show agrees, so the file is incomplete, or of a network "
            "that was changed."
        ]
        if changed := [name for name in theirs if theirs[name] != ours[name]]:
            advice = [
                "By its shapes it was trained with these settings:",
                *(f"  {_override(name, theirs)}   (now {_yaml(ours[name])})" for name in changed),
                f"No shape shows {unseen}: compare the publisher's flags.",
            ]
    raise UserError("\n".join(["the checkpoint does not fit the network.", *advice, *different]))


def check_same(found: State, expected: State) -> None:
    """Checks that names and shapes agree.

    Raises:
        UserError: where they do not.
    """
    if different := _differences(found, expected):
        raise UserError(
            "the weights are not those of the network that their settings say. "
            + " ".join(different)
        )


def _some(items: list[str]) -> str:
    """The first few, and how many more."""
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def whole(ratio: float) -> int | float:
    """A multiplier as a config has it: 2 and not 2.0."""
    return int(ratio) if ratio == int(ratio) else ratio


def _override(name: str, theirs: dict[str, Any]) -> str:
    value, channels = theirs[name], theirs["in_channels"]
    if name == "out_channels":  # the builder's, who follows the variance
        learned = value == 2 * channels
        choice = "learned_range" if learned else "fixed_large, or another that is fixed"
        return f"variance={choice}: {value} output channels for an image of {channels}"
    if name == "in_channels":
        upsampler = " (or it is an upsampler, which no network here is)" if value == 6 else ""
        return f"data.channels={value}{upsampler}"
    return f"model.{name}={_yaml(value)}"


def _yaml(value: Any) -> str:
    """A value as Hydra reads it."""
    return str(value).lower().replace(" ", "")


def _differences(found: State, wanted: State) -> list[str]:
    """The names, for those who want to see them."""
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    wrong = [
        f"{name} {list(found[name].shape)} for {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    lines = {
        f"The checkpoint lacks {len(missing)} tensors of the network": missing,
        f"The network has no place for {len(extra)} tensors of the checkpoint": extra,
        f"{len(wrong)} tensors have other shapes (the checkpoint's for the network's)": wrong,
    }
    return [f"{line}: {_some(names)}." for line, names in lines.items() if names]
