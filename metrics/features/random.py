"""Features that need no file."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.features import Embedding, in_colour
from runtime.seeds import generator

SIDE = 64  # of the image that the network sees
CHANNELS = (32, 64, 128, 256)  # of its convolutions, each at half the side of the one before
OUTPUTS = 64
# makes real images' outputs about 1: of small ones KID's (x.y / D + 1)^3 sees but the means, of
# large ones the outliers
GAIN = 3.0
VERSION = 1  # raise when the numbers change and the constants above do not


class RandomConvolutional:
    """Features of a convolutional network that nobody has trained (in the sense of Naeem et al.
    2020, whose R64 is a random VGG16 with 64 outputs): of images that are no photographs they know
    as much as of others. They are not FID's, and their numbers compare only with those of the same
    seed.

    Four times a 3x3 convolution, max pooling and ReLU, then one linear map of the last [256, 4, 4].
    Each filter's mean is taken out: what ReLU lets through is positive, and filters that add it up
    all see one and the same brightness, so that 64 outputs would vary as two do. Normal weights,
    scaled much as He et al. 2015 do; a function of the seed alone.
    """

    def __init__(self, seed: int = 0):
        self.name = f"random convolutional features (Naeem et al. 2020, seed {seed}; not FID's)"
        self.short = "random"
        self.frechet = "Fréchet distance (random)"
        self.identity = {
            "kind": "random convolutional",
            "version": VERSION,
            "seed": seed,
            "side": SIDE,
            "channels": list(CHANNELS),
            "outputs": OUTPUTS,
            "gain": GAIN,
        }
        inputs = (3, *CHANNELS)
        # three times as fast on a CPU as channels first
        self.filters = [
            filters(seed, k, CHANNELS[k], inputs[k] * 9)
            .view(-1, inputs[k], 3, 3)
            .to(memory_format=torch.channels_last)
            for k in range(len(CHANNELS))
        ]
        self.linear = filters(
            seed, len(CHANNELS), OUTPUTS, CHANNELS[-1] * (SIDE >> len(CHANNELS)) ** 2
        )

    def to(self, device: torch.device | str) -> RandomConvolutional:
        self.filters, self.linear = (
            [each.to(device) for each in self.filters],
            self.linear.to(device),
        )
        return self

    def __call__(self, images: Tensor) -> Embedding:
        x = in_colour(images).float() / 127.5 - 1  # [B, 3, H, W] in [-1, 1]
        x = F.interpolate(
            x, size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True
        )
        x = x.contiguous(memory_format=torch.channels_last)
        for each in self.filters:
            x = F.relu(F.max_pool2d(F.conv2d(x, each, padding=1), 2))
        return Embedding(F.linear(x.flatten(1), self.linear))


def filters(seed: int, layer: int, outputs: int, inputs: int) -> Tensor:
    """[outputs, inputs] normal values, each row with mean 0 and, expected, sum of squares GAIN."""
    values = torch.randn(
        outputs,
        inputs,
        dtype=torch.float64,
        generator=generator(seed, "random convolutional", layer),
    )
    return ((values - values.mean(1, keepdim=True)) * (GAIN / inputs) ** 0.5).float()
