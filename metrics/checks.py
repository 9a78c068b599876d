"""What every metric asks of its feature matrices before it computes anything."""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.errors import UserError

JUDGED, REFERENCE = "the images judged", "the reference images"


def check_features(x: Tensor, what: str, least: int = 2) -> None:
    """UserError where x is not a float matrix [N, D] of at least `least` rows, or holds NaN or
    infinity. what: "the generated images"."""
    if x.ndim != 2 or x.shape[1] == 0 or not x.is_floating_point():
        raise UserError(
            f"The features of {what} must be a float matrix [images, features], not {x.dtype} "
            f"of shape {list(x.shape)}."
        )
    if len(x) < least:
        raise UserError(
            f"Too few of {what}: {len(x)}, where this metric needs {least}. Take more images, "
            "or leave it out."
        )
    broken = int((~torch.isfinite(x)).any(1).sum())
    if broken:
        raise UserError(
            f"{broken} of {len(x)} rows in the features of {what} hold NaN or infinity: these "
            "images, or what computes their features, are broken. Look at the images; a model "
            "that diverged draws such ones."
        )


def check_pair(
    x: Tensor, y: Tensor, x_is: str = JUDGED, y_is: str = REFERENCE, least: int = 2
) -> None:
    """check_features of both; UserError where they are not features of one kind."""
    check_features(x, x_is, least)
    check_features(y, y_is, least)
    if x.shape[1] != y.shape[1]:
        raise UserError(
            f"There are {x.shape[1]} features of {x_is} and {y.shape[1]} of {y_is}: compute "
            "both with the same network."
        )
