"""Files as OpenAI publishes them, with random weights."""

from __future__ import annotations

import torch

from tests.helpers import adm_reference

CONFIGURATIONS = {  # all with learned variance
    "improved": {
        "channels": 16,
        "multipliers": [1, 2, 2],
        "blocks": 3,
        "attention_levels": [1, 2],
        "heads": 4,
        "timestep_scale": 0.25,
    },
    "adm": {
        "channels": 16,
        "multipliers": [1, 2, 3],
        "blocks": 2,
        "attention_levels": [1, 2],
        "head_channels": 8,
        "classes": 5,
        "resample_blocks": True,
    },
    "adm, half first": {
        "channels": 16,
        "multipliers": [0.5, 1, 2],
        "blocks": 1,
        "attention_levels": [2],
        "head_channels": 8,
        "resample_blocks": True,
    },
    "no scale shift": {
        "channels": 16,
        "multipliers": [1, 1, 2],
        "blocks": 2,
        "attention_levels": [1],
        "heads": 1,
        "scale_shift": False,
    },
    "no scale shift, resampling, attention everywhere": {
        "channels": 8,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention_levels": [0, 1],
        "heads": 2,
        "scale_shift": False,
        "classes": 2,
        "resample_blocks": True,
    },
    "one level": {
        "channels": 16,
        "multipliers": [2],
        "blocks": 2,
        "attention_levels": [],
        "heads": 2,
    },
}


NOT_IN_SHAPES = {
    "heads",
    "head_channels",
    "timestep_scale",
    "groups",
    "dropout",
    "gradient_checkpointing",
}


def published(configuration, out_channels=6, seed=0, **options):
    """A random state dict under the published names: weights keep the signal's size, norms are
    about 1, biases 0.3."""
    arguments = {
        name: value
        for name, value in (configuration | options).items()
        if name not in NOT_IN_SHAPES
    }
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, shape in adm_reference.shapes(out_channels=out_channels, **arguments).items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        fan_in = noise[0].numel()
        state[name] = (
            noise * fan_in**-0.5
            if noise.ndim > 1
            else 0.3 * noise + (1.0 if _is_norm(name) else 0.0)
        )
    return state


def _is_norm(name):
    return name.endswith((".norm.weight", "layers.0.weight", "out.0.weight"))


def worst(ours, theirs):
    """Largest difference over the largest value, by tensor: (value, name)."""
    return max(
        ((ours[name] - tensor).abs().max().item() / tensor.abs().max().item(), name)
        for name, tensor in theirs.items()
    )
