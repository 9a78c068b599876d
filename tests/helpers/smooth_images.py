"""Made-up images whose pixels depend on each other."""

import numpy as np
from PIL import Image


def smooth(k: int, side: int = 64, channels: int = 1) -> Image.Image:
    """Gray or colour that varies as a photograph's does: a random field of few waves, and noise."""
    rng = np.random.default_rng(k)
    y, x = np.mgrid[:side, :side] / side
    waves = rng.uniform(-9, 9, (6, 2, channels)), rng.uniform(0, 6.3, (6, channels))
    field = sum(
        np.sin(x[..., None] * u + y[..., None] * v + phase) for (u, v), phase in zip(*waves)
    )
    values = 128 + rng.uniform(18, 26) * field + rng.normal(0, 4, (side, side, channels))
    pixels = values.clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
