"""Features that need no file."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.features import Embedding, Features, in_colour, resized
from runtime.seeds import generator

SIDE = 64  # of the image that the network sees
CHANNELS = (32, 64, 128, 256)  # of its convolutions, each at half the side of the one before
OUTPUTS = 64
# makes real images' outputs about 1: of small ones KID's (x.y / D + 1)^3 sees but the means, of
# large ones the outliers
GAIN = 3.0
VERSION = 1  # raise when the numbers change and the constants above do not


class RandomConvolutional(Features):
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
        identity = {
            "kind": "random convolutional",
            "version": VERSION,
            "seed": seed,
            "side": SIDE,
            "channels": list(CHANNELS),
            "outputs": OUTPUTS,
            "gain": GAIN,
        }
        name = f"random convolutional features (Naeem et al. 2020, seed {seed}; not FID's)"
        super().__init__(name, "random", identity)
        self.filters = nn.ParameterList(
            # three times as fast on a CPU as channels first
            filters(seed, k, outputs, inputs * 9)
            .view(outputs, inputs, 3, 3)
            .to(memory_format=torch.channels_last)
            for k, (inputs, outputs) in enumerate(pairwise((3, *CHANNELS)))
        )
        last = CHANNELS[-1] * (SIDE >> len(CHANNELS)) ** 2
        self.linear = nn.Parameter(filters(seed, len(CHANNELS), OUTPUTS, last))
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Embedding:
        x = in_colour(images).float() / 127.5 - 1  # [B, 3, H, W] in [-1, 1]
        x = resized(x, SIDE, "bilinear").contiguous(memory_format=torch.channels_last)
        for each in self.filters:
            x = F.relu(F.max_pool2d(F.conv2d(x, each, padding=1), 2))
        return Embedding(F.linear(x.flatten(1), self.linear))


def filters(seed: int, layer: int, outputs: int, inputs: int) -> Tensor:
    """[outputs, inputs] normal values, each row with mean 0 and, expected, sum of squares GAIN."""
    draw = generator(seed, "random convolutional", layer)
    values = torch.randn(outputs, inputs, dtype=torch.float64, generator=draw)
    return ((values - values.mean(1, keepdim=True)) * (GAIN / inputs) ** 0.5).float()
