"""Real images that come inside scikit-image's wheel, with no download: faces to learn from and
stained tissue to transfer to."""

import hashlib
from importlib import metadata

import numpy as np
import skimage.data
from PIL import Image

from data.file_cache import FileCache
from data.image_reader import ImageReader
from data.splits import items_by_split
from runtime.content import sha256_of
from runtime.errors import UserError

# sha256 of the pixels that the fingerprints stand for
FACES = "b3835cf486a325e955b0295b567593a83a960761ef0302b748b7bb050ca20d27"
TISSUE = "c5b3ef509a92f16d4c29be8cf0300fe75d53e13a3ce650159db932caea8dcc1b"


def _checked(images: np.ndarray, name: str, sha256: str) -> np.ndarray:
    """images, uint8, made of what skimage.data.NAME() gave. Raises UserError for others."""
    if hashlib.sha256(np.ascontiguousarray(images).data).hexdigest() != sha256:
        raise UserError(
            f"skimage.data.{name} of scikit-image {metadata.version('scikit-image')} gives "
            "other images than it did: install another version again, such as 0.26.0 (pip "
            "install --force-reinstall scikit-image==0.26.0)."
        )
    return images


class Faces(ImageReader):
    """The 100 faces of lfw_subset, 25x25, gray: 90, 5 and 5 of them.

    Source: Huang et al. 2007, Labeled Faces in the Wild.
    """

    name = "bundled faces"

    def __init__(self, file_cache: FileCache):
        faces = skimage.data.lfw_subset()[:100]  # the other 100 are not faces
        self.images = _checked((faces * 255).round().astype(np.uint8), "lfw_subset", FACES)
        self.fingerprint = sha256_of([self.name, 1])
        self.splits = {"train": range(90), "validation": range(90, 95), "test": range(95, 100)}
        self.labels = [0] * len(self.images)

    def read_image(self, item: int) -> Image.Image:
        return Image.fromarray(self.images[item])


class Tissue(ImageReader):
    """Square patches of a 512x512 RGB microscopy image: colon tissue, immunohistochemical staining
    of FHL2.

    Each split has its own columns of the image and no patch crosses them: validation and test show
    tissue that training never saw.

    Args:
        window: side of a patch in pixels of the image.
        stride: distance between patches.
    """

    name = "bundled tissue"
    columns = {"train": (0, 320), "validation": (320, 416), "test": (416, 512)}

    def __init__(self, file_cache: FileCache, window: int = 48, stride: int = 8):
        if not 1 <= window <= 96 or stride < 1:
            raise ValueError(
                f"window must be 1 to 96 pixels and stride at least 1, not {window} and {stride}."
            )
        pixels = _checked(skimage.data.immunohistochemistry(), "immunohistochemistry", TISSUE)
        self.image, self.window = Image.fromarray(pixels), window
        places = [
            (split, x, y)
            for split, (left, right) in self.columns.items()
            for y in range(0, self.image.height - window + 1, stride)
            for x in range(left, right - window + 1, stride)
        ]
        self.corners = [(x, y) for _, x, y in places]
        self.splits = items_by_split(split for split, _, _ in places)
        self.fingerprint = sha256_of([self.name, 1, window, stride])
        self.labels = [0] * len(self.corners)

    def read_image(self, item: int) -> Image.Image:
        x, y = self.corners[item]
        return self.image.crop((x, y, x + self.window, y + self.window))
