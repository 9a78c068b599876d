"""A source's weights in the shapes of a target that has other channels or classes."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

TABLE = "class_embedding.weight"
AUGMENTATION = "augmentation_embedding.weight"


class Ends(NamedTuple):
    """Where two networks may differ.

    Attributes:
        source, target: channels of the image.
        kept: classes of the source in the target's class table.
    """

    source: int
    target: int
    kept: int = 0


class Resized(NamedTuple):
    """A source's tensor in the target's shape.

    Attributes:
        how, alike: of its Fit.
    """

    value: Tensor
    how: str
    alike: bool


def resize_input_channels(source: Tensor, target: Tensor, ends: Ends) -> Resized | None:
    """conv_in [O, I, k, k] for images of n_target channels in place of n_source: each channel gets
    the sum over the source's, divided by n_target (the mean times n_source / n_target).

    Equal channels get the source's response to such an image of its own, which is gray, whatever
    the two numbers are. Noise does not: independent noises add up in squares, so for weights that
    are equal over the channels its response has n_source / n_target times the source's variance:
    three times from RGB to gray, about a quarter of it from RGB to 13 bands. The channels begin
    with the same weights, as nothing says which of them is red; so the network sees only their mean
    until it trains.
    """
    n_source, n_target, _ = ends
    if source.shape[0] != target.shape[0] or source.shape[2:] != target.shape[2:]:
        return None
    value = (source.sum(1, keepdim=True) * (1 / n_target)).expand(-1, n_target, -1, -1)
    if n_target == 1:
        how = f"summed over {n_source} input channels"
    elif n_source == 1:
        how = f"input channels repeated 1 -> {n_target}, times 1/{n_target}"
    else:
        how = f"the sum over {n_source} input channels, times 1/{n_target}, for each of {n_target}"
    return Resized(value.contiguous(), how, n_target > 1)


def resize_output_channels(source: Tensor, target: Tensor, ends: Ends) -> Resized | None:
    """conv_out (weight and bias) for images of another number of channels, n_source -> n_target:
    each gets the mean over the source's. Its second half is about the variance, where that is
    learned: one that is new starts at zero, in the middle of Nichol and Dhariwal's range; one that
    the target does not learn is left out."""
    n_source, n_target, _ = ends
    if source.shape[1:] != target.shape[1:] or len(source) % n_source or len(target) % n_target:
        return None
    halves = source.unflatten(0, (-1, n_source))  # [1 or 2, n_source, ...]
    known, wanted, how = len(halves), len(target) // n_target, []
    if n_target != n_source:
        halves = halves.mean(1, keepdim=True)
        halves = halves.expand(-1, n_target, *halves.shape[2:])
        if n_source == 1:
            how.append(f"output channels repeated 1 -> {n_target}")
        else:
            each = f", for each of {n_target}" if n_target > 1 else ""
            how.append(f"mean over {n_source} output channels{each}")
    if wanted > known:
        halves = torch.cat([halves, torch.zeros_like(halves)])
        how.append("the variance's half starts at zero")
    elif wanted < known:
        halves = halves[:wanted]
        how.append("the variance's half left out")
    alike = (n_target != n_source and n_target > 1) or wanted > known
    return Resized(halves.flatten(0, 1).contiguous(), ", ".join(how), alike)


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
