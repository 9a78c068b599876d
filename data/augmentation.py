"""What is done to training images.

data.flip mirrors half of them and the network is not told: mirrored images are images too (Ho et
al. 2020, appendix B). Section augmentation changes them in more ways, and the network is told how,
so that what it draws where nothing is told is as the images are: "non-leaking augmentation", Karras
et al. 2022 (EDM), appendix F.2 and table 6. brightness, contrast and saturation, which are not in
their table, are those of Karras et al. 2020 (ADA), appendix B.
"""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.config_schema import Settings
from runtime.seeds import generator

# Table 6: what the network is told is in these units, whatever the sizes of a run, so that the
# same numbers mean the same to a source and its target.
A_SCALE = A_ANISO = 0.2  # log2
A_TRANS = 1 / 8  # of width and height
# the standard deviations of ADA
BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.5, 1.0  # the latter two log2
TOLD = 12  # numbers that the network is told of an image


@dataclass(frozen=True)
class Augmentation(Settings):
    """Sizes of what is done to a training image, each drawn anew at every step; 0 or false is
    without.

    Attributes:
        probability: of each but mirror, for an image: A_prob of table 6.
        mirror: exchange left and right, of half of the images.
        upside_down: exchange top and bottom.
        zoom: standard deviation of log2 of the scale.
        rotation: the largest angle, degrees, evenly to either side.
        stretch: standard deviation of log2 of the scale along a random direction, and of its
            inverse across it.
        translation: standard deviation, as a share of width and height.
        brightness: standard deviation of what is added to values in [-1, 1].
        contrast: standard deviation of log2 of the factor around mid-gray.
        saturation: standard deviation of log2 of the factor around the mean of the channels.
    """

    probability: float = 0.5
    mirror: bool = False
    upside_down: bool = False
    zoom: float = 0.0
    rotation: float = 0.0
    stretch: float = 0.0
    translation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise ValueError(
                f"probability={self.probability:g} must be above 0 (for none augmentation=none) "
                "and below 1, where the network would never see an image as samples are to be."
            )
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation={self.rotation:g} must be 0 to 180 degrees.")
        for name, size in self.sizes().items():
            if not 0 <= size < math.inf:
                raise ValueError(f"{name}={size:g} must not be negative.")

    def sizes(self) -> dict[str, float]:
        """What is done to images, by name."""
        names = [field.name for field in fields(self) if field.name != "probability"]
        return {name: size for name in names if (size := getattr(self, name))}

    @property
    def on(self) -> bool:
        return bool(self.sizes())

    def counted(self) -> dict[str, float]:
        """What of it changes the numbers of a run; nothing where it is off."""
        return self.sizes() | {"probability": self.probability} if self.on else {}

    def described(self) -> str:
        """In words: "mirror, rotation 10, each in 50% of the images"."""
        sizes = {name: "" if size is True else f" {size:g}" for name, size in self.sizes().items()}
        each = f", each in {self.probability:.0%} of the images" * bool({*sizes} - {"mirror"})
        return ", ".join(f"{name}{size}" for name, size in sizes.items()) + each or "none"

    def draw(self, count: int, seed: int, k: int) -> Tensor:
        """What is done to the images of batch k, [count, 11]: mirror and upside_down (0 or 1), zoom
        (log2), angle (radians), direction of stretch (radians), stretch (log2), right and down
        (shares), brightness, contrast (log2), saturation (log2). Zeros leave an image as it is."""
        random = generator(seed, "augmentation", k)
        coin = (torch.rand(count, 2, generator=random) < 0.5).float()
        even = math.pi * (2 * torch.rand(count, 2, generator=random) - 1)
        normal = torch.randn(count, 7, generator=random)
        done = (torch.rand(count, 8, generator=random) < self.probability).float()
        shift = self.translation * done[:, 4]
        drawn = [
            coin[:, 0] * self.mirror,
            coin[:, 1] * done[:, 0] * self.upside_down,
            normal[:, 0] * done[:, 1] * self.zoom,
            even[:, 0] * done[:, 2] * (self.rotation / 180),
            even[:, 1],
            normal[:, 1] * done[:, 3] * self.stretch,
            normal[:, 2] * shift,
            normal[:, 3] * shift,
            normal[:, 4] * done[:, 5] * self.brightness,
            normal[:, 5] * done[:, 6] * self.contrast,
            normal[:, 6] * done[:, 7] * self.saturation,
        ]
        return torch.stack(drawn, dim=1)


OFF = Augmentation()


def told(drawn: Tensor) -> Tensor:
    """What the network is told, [B, TOLD]; zeros for an image as it is.

    Args:
        drawn: [B, 11], see Augmentation.draw.
    Source:
        Karras et al. 2022, table 6, column "conditioning".
    """
    mirror, upside_down, zoom, angle, direction, stretch, right, down, *colour = drawn.unbind(1)
    brightness, contrast, saturation = colour
    stretch = stretch / A_ANISO
    parts = [
        mirror,
        upside_down,
        zoom / A_SCALE,
        angle.cos() - 1,
        angle.sin(),
        stretch * direction.cos(),
        stretch * direction.sin(),
        right / A_TRANS,
        down / A_TRANS,
        brightness / BRIGHTNESS,
        contrast / CONTRAST,
        saturation / SATURATION,
    ]
    return torch.stack(parts, dim=1)


def augment(x0: Tensor, drawn: Tensor) -> Tensor:
    """x0 [B, C, H, W] in [-1, 1] with this done to it, in [-1, 1]; what nothing is done to stays to
    the bit. All of the geometry is one resampling. drawn: [B, 11], see Augmentation.draw."""
    mirrored, upside_down, *geometry = drawn[:, :8].unbind(1)
    x0 = mirror(x0, mirrored > 0)
    x0 = torch.where(_wide(upside_down) > 0, x0.flip(-2), x0)
    x0 = resample(x0, *geometry)
    return recolour(x0, *drawn[:, 8:].unbind(1)).contiguous(memory_format=torch.channels_last)


def resample(
    x0: Tensor,
    zoom: Tensor,
    angle: Tensor,
    direction: Tensor,
    stretch: Tensor,
    right: Tensor,
    down: Tensor,
) -> Tensor:
    """x0 [B, C, H, W] zoomed, then turned counter-clockwise, stretched and moved, about its centre.
    Bicubic; beyond its edges it goes on as its mirror image. Nothing filters it before it becomes
    smaller, which the sizes of conf/augmentation do not need. An image that none of this is done to
    stays to the bit.

    Source:
        Karras et al. 2022, table 6. Their code resamples at twice the size, through a wavelet.
    """
    H, W = x0.shape[-2:]
    # from where an image is seen to where it comes from, in pixels, y downwards
    unstretch = _product(_turn(direction), _scaling(-stretch, stretch), _turn(-direction))
    back = _product(_scaling(-zoom, -zoom), _turn(angle), unstretch)
    y = (torch.arange(H, device=x0.device) - (H - 1) / 2)[:, None]
    x = (torch.arange(W, device=x0.device) - (W - 1) / 2)[None]
    x, y = x - _wide(right)[:, 0] * W, y - _wide(down)[:, 0] * H
    (xx, xy), (yx, yy) = back[..., None, None].permute(1, 2, 0, 3, 4)
    grid = torch.stack([(xx * x + xy * y) * (2 / W), (yx * x + yy * y) * (2 / H)], dim=-1)
    moved = F.grid_sample(x0, grid, "bicubic", "reflection", align_corners=False)
    done = (zoom != 0) | (angle != 0) | (stretch != 0) | (right != 0) | (down != 0)
    return torch.where(_wide(done), moved, x0).clamp(-1, 1)


def recolour(x0: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """x0 [B, C, H, W] of any number of channels, brightened, then with another contrast and another
    distance of its channels to their mean, which one channel does not have.

    Source:
        Karras et al. 2020 (ADA), appendix B.
    """
    x0 = (x0 + _wide(brightness)) * _wide(contrast).exp2()
    away = x0 - x0.mean(1, keepdim=True)
    return (x0 + (_wide(saturation).exp2() - 1) * away).clamp(-1, 1)


def draw_flips(count: int, seed: int, k: int) -> Tensor:
    """[count] bool: which images of batch k are mirrored."""
    return torch.rand(count, generator=generator(seed, "flip", k)) < 0.5


def mirror(x0: Tensor, flip: Tensor) -> Tensor:
    """x0 [B, C, H, W], left and right exchanged where flip [B] says so."""
    return torch.where(_wide(flip), x0.flip(-1), x0)


def _wide(values: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]"""
    return values[:, None, None, None]


def _turn(angle: Tensor) -> Tensor:
    """[B] -> [B, 2, 2]: clockwise, as y is downwards."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    """log2 of the scales [B] -> [B, 2, 2]"""
    zero = torch.zeros_like(x)
    return torch.stack([x.exp2(), zero, zero, y.exp2()], dim=1).view(-1, 2, 2)


def _product(*matrices: Tensor) -> Tensor:
    """Of [B, 2, 2], without the lower precision that a GPU's matrix product may be set to."""
    first, *rest = matrices
    for matrix in rest:
        first = (first[:, :, :, None] * matrix[:, None]).sum(2)
    return first
