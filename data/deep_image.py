"""An image whose numbers are not levels yet: of more than 8 bits, or of bands that no picture
has."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.intensity import Levels, LowHigh, Translucent, to_levels, value_range

# one range for each of these sets of values: of the bands of an image, or of all its colours
Ranges = Callable[[Sequence[np.ndarray]], Sequence[LowHigh]]
ORIENTATION = 274  # the tag of EXIF and TIFF
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BYTES: LowHigh = (0.0, 255.0)


def own_ranges(parts: Sequence[np.ndarray]) -> Sequence[LowHigh]:
    """Each image, or each of its bands, by its own values."""
    return list(map(value_range, parts))


class DeepImage(NamedTuple):
    """What a file holds, before it is known what is black and what is white.

    Attributes:
        values: [H, W] or [H, W, C]; NaN where there is no value.
        bands: its channels are no gray or colour, so that each has a range of its own.
        eight_bits: levels already, which are not stretched.
        inverted: small values are bright.
        alpha: of gray or colour, how opaque it is, 0..1, [H, W, 1]; None where it is so everywhere.
        orientation: 1 to 8, of EXIF.
        stored: the type of number in the file, where values have another.
    """

    values: np.ndarray
    bands: bool = False
    eight_bits: bool = False
    inverted: bool = False
    alpha: np.ndarray | None = None
    orientation: int = 1
    stored: str = ""

    @property
    def kind(self) -> str:
        return self.stored or self.values.dtype.name

    @property
    def parts(self) -> list[np.ndarray]:
        """The values that share a range, without what is transparent."""
        if self.bands:
            return list(np.moveaxis(self.values, -1, 0))
        return [self.values if self.alpha is None else self.values[self.alpha[..., 0] > 0]]

    def to_levels(self, ranges: Ranges) -> Levels:
        """Upright."""
        found = [BYTES] * len(self.parts) if self.eight_bits else ranges(self.parts)
        if self.inverted:
            found = [(high, low) for low, high in found]
        if self.bands:
            pairs = zip(self.parts, found, strict=True)
            return self._stacked([to_levels(part, *low_high) for part, low_high in pairs])
        image = to_levels(self.values, *found[0])
        if self.alpha is None:
            return turned(image, self.orientation)
        levels = np.asarray(image).reshape(self.values.shape)
        on_white = to_levels(levels * self.alpha + 255 * (1 - self.alpha), 0, 255)
        opacity = to_levels(self.alpha, 0, 1)
        planes = [Image.fromarray(plane) for plane in np.moveaxis(levels, -1, 0)]
        return Translucent(turned(on_white, self.orientation), self._stacked([*planes, opacity]))

    def _stacked(self, planes: Sequence[Image.Image]) -> np.ndarray:
        """[H, W, C], upright."""
        return np.stack([np.asarray(turned(plane, self.orientation)) for plane in planes], -1)


def turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
