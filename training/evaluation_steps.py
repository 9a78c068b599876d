"""At which steps of a run it is evaluated."""

import math


def spaced(last: int, factor: float, first: int) -> list[int]:
    """Steps for run.checkpoint_at: from first to last, both among them, each at most factor times
    the one before but for rounding, and strictly rising.

    Args:
        last: train.steps, at least first.
        factor: above 1.
        first: at least 1.
    """
    assert factor > 1 and 1 <= first <= last, (last, factor, first)
    # a power of factor that is hit but for rounding needs no further step
    count = max(1, math.ceil(math.log(last / first) / math.log(factor) - 1e-9))
    return sorted({round(first * (last / first) ** (k / count)) for k in range(count + 1)})
