"""What every metric asks of its feature matrices before it computes anything."""

from torch import Tensor

from runtime.errors import UserError

JUDGED, REFERENCE = "the images judged", "the reference images"


def check_features(x: Tensor, what: str, least: int = 2) -> None:
    """Of a float matrix [N, D].

    Args:
        what: "the generated images".
    Raises:
        UserError: where it has fewer than `least` rows, or holds NaN or infinity.
    """
    assert x.ndim == 2 and x.is_floating_point(), f"{what}: {x.dtype} {list(x.shape)}"
    if len(x) < least:
        raise UserError(
            f"Too few of {what}: {len(x)}, where this metric needs {least}. Take more images, "
            "or leave it out."
        )
    if broken := int((~x.isfinite()).any(1).sum()):
        raise UserError(
            f"{broken} of {len(x)} rows in the features of {what} hold NaN or infinity: these "
            "images, or what computes their features, are broken. Look at the images; a model "
            "that diverged draws such ones."
        )


def check_pair(
    x: Tensor, y: Tensor, x_is: str = JUDGED, y_is: str = REFERENCE, least: int = 2
) -> None:
    """check_features of both, which are of one kind."""
    check_features(x, x_is, least)
    check_features(y, y_is, least)
    assert x.shape[1] == y.shape[1], f"{x.shape[1]} features of {x_is}, {y.shape[1]} of {y_is}"
