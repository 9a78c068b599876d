"""Files of tile sizes that a test writes."""

from kernels import configs


def read_again() -> None:
    """What was read of kernels/tuned is forgotten."""
    configs._nearest.cache_clear()
    configs.entries.cache_clear()
