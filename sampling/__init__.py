"""Images from trained weights: in a notebook, in a folder, and on a GPU as one CUDA graph."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sampling.pipeline import Pipeline, load

__all__ = ["Pipeline", "load"]


def __getattr__(name: str) -> Any:
    """What reads runs, with their configs, is imported where it is asked for: a GPU is timed
    without hydra and omegaconf."""
    if name not in __all__:
        raise AttributeError(f"module 'sampling' has no attribute {name!r}")
    from sampling import pipeline

    return getattr(pipeline, name)
