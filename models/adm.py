"""The UNet of Nichol and Dhariwal 2021 ("Improved Denoising Diffusion Probabilistic Models") and of
Dhariwal and Nichol 2021 ("Diffusion Models Beat GANs on Image Synthesis", ADM): the skeleton of
models/unet.py, filled differently. models/formats/openai.py reads their checkpoints. Module names
are those of UNet; a residual block that resamples is `down.0.downsample` itself."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layers import Resample, ResBlock, conv, double, halve
from models.unet import UNet


def cosine_first_embedding(timestep: Tensor, channels: int) -> Tensor:
    """Cosines, then sines, of frequencies 10000^(-k / half), k = 0 .. half - 1 (Ho: half - 1 in
    place of half).

    Args:
        timestep: [B].
    Returns:
        [B, channels].
    """
    half = channels // 2
    k = torch.arange(half, device=timestep.device, dtype=torch.float32)
    angle = timestep.float()[:, None] * torch.exp(-math.log(10000) * k / half)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class ScaleShiftResBlock(ResBlock):
    """Adaptive group normalization: the time scales and shifts what norm2 gives.

    Source:
        Nichol and Dhariwal 2021, section 3.
    """

    TIME_WIDTHS = 2

    def norm_with_time(self, h: Tensor, time: Tensor, bias: Tensor | None) -> Tensor:
        scale, shift = time.chunk(2, dim=1)
        return self.norm2(h, None if bias is None else bias[None], scale, shift)


class ADMUNet(UNet):
    """(x [B, in_channels, H, W], timestep [B] in 0..T-1, condition) -> [B, out_channels, H, W].

    What is not said here is as in UNet.

    Args:
        multipliers: may be fractions.
        heads: of every attention, or instead head_channels.
        head_channels: the width of one head.
        classes: as in UNet, with a null class that theirs do not have.
        augmentations: as in UNet.
        scale_shift: adaptive norms; without, the time is added before the norm.
        resample_blocks: residual blocks that halve and double the size in place of convolutions.
        timestep_scale: 1000 / T where the timesteps were rescaled to 0..1000, which
            improved-diffusion does by default.
    Raises:
        ValueError: where the settings cannot go together.
    """

    EPS = 1e-5

    def __init__(
        self,
        channels: int,
        multipliers: Sequence[float],
        blocks: int,
        attention_levels: Sequence[int],
        in_channels: int = 3,
        out_channels: int = 3,
        dropout: float = 0.0,
        heads: int | None = None,
        head_channels: int | None = None,
        groups: int = 32,
        classes: int = 0,
        scale_shift: bool = True,
        resample_blocks: bool = False,
        timestep_scale: float = 1.0,
        gradient_checkpointing: bool = False,
        augmentations: int = 0,
    ):
        if (heads is None) == (head_channels is None):
            raise ValueError(
                "set one of heads (of every attention) and head_channels (the width of a head), "
                f"and leave the other null; they are {heads} and {head_channels}."
            )
        # plain values, which nn.Module lets stand before its own constructor: the methods that fill
        # the skeleton read them
        self.head_channels, self.timestep_scale = head_channels, timestep_scale
        self.resample_blocks = resample_blocks
        self.block_type = ScaleShiftResBlock if scale_shift else ResBlock
        super().__init__(
            channels,
            multipliers,  # type: ignore[arg-type]
            blocks,
            attention_levels,
            in_channels,
            out_channels,
            dropout,
            heads,  # type: ignore[arg-type]
            groups,
            classes,
            gradient_checkpointing,
            augmentations,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """torch's own initialization, and zeros in the last layer of every block, of every
        attention and of the network."""
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.reset_parameters()
                if name.endswith(("conv2", ".out", "conv_out")):
                    for tensor in layer.parameters():
                        nn.init.zeros_(tensor)

    def first_width(self, widths: Sequence[int]) -> int:
        """That of level 0, as in guided-diffusion; improved-diffusion, all of whose first
        multipliers are 1, does not tell."""
        return widths[0]

    def heads_of(self, width: int) -> int:
        if self.head_channels is None:
            return super().heads_of(width)
        if width % self.head_channels:
            raise ValueError(
                "the width of every attention must be divisible by "
                f"head_channels={self.head_channels}, and {width} is not."
            )
        return width // self.head_channels

    def downsample(self, width: int) -> nn.Module:
        if self.resample_blocks:
            return self.res_block(width, width, halve)
        return Resample(conv(width, width, 3, stride=2))  # padded on all sides

    def upsample(self, width: int) -> nn.Module:
        if self.resample_blocks:
            return self.res_block(width, width, double)
        return super().upsample(width)

    def embed_timestep(self, timestep: Tensor) -> Tensor:
        return cosine_first_embedding(timestep * self.timestep_scale, self.channels)
