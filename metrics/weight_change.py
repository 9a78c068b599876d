"""How far a network moved from where it began."""

import math
from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

from runtime.errors import UserError

ORDER = (
    "conv_in",
    "augmentation_embedding",
    "time_mlp",
    "class_embedding",
    "down",
    "mid",
    "up",
    "norm_out",
    "conv_out",
)


def weight_change(now: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, float]:
    """||w - w0|| / ||w0|| by part of the network, in the order in which the network runs: conv_in,
    time_mlp, down.0, .., mid, up.2, .., up.0, norm_out, conv_out.

    What unmatched() names is left out, and so is a part that was all zero.

    Args:
        now: parameters by name.
        start: the same, on the same device.
    Raises:
        UserError: at weights that are not finite.
    """
    moved: dict[str, float] = defaultdict(float)
    began: dict[str, float] = defaultdict(float)
    skipped = set(unmatched(now, start))
    for name in now:
        if name in skipped:
            continue
        w, w0, of = now[name].double(), start[name].double(), part(name)
        moved[of] += (w - w0).square().sum().item()
        began[of] += w0.square().sum().item()
        if not math.isfinite(moved[of]):
            raise UserError(
                f"the weights of {name} are not finite: there is no change of them to measure. "
                "Use another checkpoint."
            )
    return {p: math.sqrt(moved[p] / began[p]) for p in sorted(moved, key=_place) if began[p] > 0}


def unmatched(now: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> list[str]:
    """The tensors of now that start does not have, or has in another shape, as a class table is."""
    return [name for name, w in now.items() if name not in start or start[name].shape != w.shape]


def part(name: str) -> str:
    """The part of the network that a parameter is of: down.1 of down.1.block.0.conv1.weight, else
    the first component."""
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if first in ("down", "up") else first


def _place(part: str) -> tuple[int, int, str]:
    """Where a part stands in the order."""
    first, _, level = part.partition(".")
    place = ORDER.index(first) if first in ORDER else len(ORDER)
    return place, (-1 if first == "up" else 1) * int(level or 0), part
