"""Files of weights, and images as networks of photographs take them."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from metrics.features import Resample, in_colour, resized
from models.formats.published import read_weights
from runtime.errors import UserError
from runtime.torchvision import torchvision


def weight_file(path: str, what: str, source: str) -> Path:
    """The file that path names.

    Args:
        what: whose weights these are.
        source: where the file is to be had.
    Raises:
        UserError: where it is not there.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        found = "is a folder, and a file is needed" if file.is_dir() else "is not there"
        raise UserError(
            f"the weights of {what}: {path} {found}. Nothing is downloaded here: {source}. Then "
            "name the file by the setting path of these features, such as features.path=FILE."
        )
    return file


def tensors(file: Path) -> dict[str, Tensor]:
    """The state dict of a file, safetensors or what torch.save wrote; nothing in it is run."""
    try:
        found = read_weights(file)
        values = found.values() if isinstance(found, dict) else ()
        if not values or not all(isinstance(value, Tensor) for value in values):
            raise UserError("no state dict: save the dict of the network's tensors alone.")
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    return found


@contextlib.contextmanager
def loading(file: Path, what: str) -> Iterator[None]:
    """Weights that do not fit are a UserError. what: whose weights the file should hold."""
    try:
        yield
    except RuntimeError as error:  # of load_state_dict
        raise UserError(
            f"{file} holds no weights of {what}. {' '.join(str(error).split())[:200]} ..."
        ) from error


@dataclass(frozen=True)
class Normalized:
    """images [B, H, W, 1 or 3] uint8 -> [B, 3, size, size]: in colour, the whole picture brought to
    a square (antialiased), and of its values in 0..1 (x - mean) / std."""

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    resample: Resample

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size} must be at least 1.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"mean={list(self.mean)} and std={list(self.std)} must be three numbers each, one "
                "a colour, those of std above 0."
            )

    def __call__(self, images: Tensor) -> Tensor:
        x = resized(in_colour(images).float() / 255, self.size, self.resample).clamp(0, 1)
        return torchvision.transforms.functional.normalize(x, self.mean, self.std)
