"""What reads the images of one kind of data: the base of the classes in data.sources."""

from collections.abc import Hashable, Sequence
from pathlib import Path

from data.intensity import Levels
from data.splits import Splits

# where images are missing, the last words of a message
MEANWHILE = "Meanwhile, with no download: python train.py +experiment=transfer_demo"


class ImageReader:
    """Images that are decoded one by one, each in exactly one split. A subclass is built from a
    FileCache and its settings.

    Attributes:
        name: for messages.
        files: the file of each item, unless item_name says otherwise.
        fingerprint: a hash of what the images are, not of where they lie.
        splits: item numbers by split.
        classes: names of the labels, empty where there are none.
        labels: one an item, all 0 without classes.
        groups: of each item what is never split, such as its patient; None: each item is alone.
        levels: how to choose which values are black and white, for messages, where one can.
        together: how to keep in one split what belongs together, a sentence, where one can.
        opacity: that what is laid on white may be a band, for messages, where it may.
        otherwise_as_bands: such bands are read otherwise than they were when runs got their names.
    """

    name: str
    files: Sequence[Path] = ()
    fingerprint: str
    splits: Splits
    classes: Sequence[str] = []
    labels: Sequence[int]
    groups: Sequence[Hashable] | None = None
    levels: str = ""
    together: str = ""
    opacity: str = ""
    otherwise_as_bands: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def read_image(self, item: int) -> Levels:
        """Called from several threads at once, item after item.

        Raises:
            UserError: where the image is broken.
            Changed: where its file is not what the fingerprint is of.
        """
        raise NotImplementedError

    def item_name(self, item: int) -> str:
        """How a message calls this item."""
        return str(self.files[item]) if self.files else f"image {item}"

    def file_of(self, item: int) -> Hashable:
        """The same for items that lie in one file, which may be broken for one reason."""
        return item

    def release(self) -> None:
        """Called when all images are decoded: what was kept for that is not kept through the
        training."""
