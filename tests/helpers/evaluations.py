"""An evaluation in small numbers, by features that need no file."""

from __future__ import annotations

from pathlib import Path

from diffusion.generate import SamplerSettings
from diffusion.samplers import ddim
from diffusion.spacing import even_steps
from evaluation.evaluator import EvaluateSettings
from metrics.features.random import RandomConvolutional
from tests.helpers.defaults import defaults

SAMPLER = SamplerSettings(ddim, even_steps, 2)


def few_evaluated(root: Path, **given: object) -> EvaluateSettings:
    """Of what is given. root: where the cache lies."""
    few = {
        "sampler": SAMPLER,
        "features": RandomConvolutional(),
        "perceptual": RandomConvolutional(),
        "n": 12,
        "held_out_draws": 32,
        "bound_images": 2,
        "bound_steps": 5,
        "cache": str(root / "cache"),
        "device": "cpu",
    }
    return EvaluateSettings(**defaults("evaluate") | few | given)
