"""Files of weights of the networks that images are seen with."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from models.formats.published import read_weights
from runtime.download import weights_named
from runtime.errors import UserError


def weight_file(path: str, what: str, source: str = "without it they are fetched") -> Path:
    """The file of weights that path names: a path, or a name in conf/downloads.yaml, which is
    fetched where no such file is here.

    Args:
        what: whose weights these are.
        source: where else they are to be had.
    Raises:
        UserError: where the file is not there, or cannot be fetched.
    """
    if fetched := weights_named(path, "features=random needs no file."):
        return fetched
    file = Path(path).expanduser()
    if not file.is_file():
        found = "is a folder, and a file is needed" if file.is_dir() else "is not there"
        raise UserError(
            f"the weights of {what}: {path} {found}. Name their file by the setting path of these "
            f"features, such as features.path=FILE; {source}."
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
            f"{file} holds no weights of {what}: the setting path of these features has to name "
            f"their file. {' '.join(str(error).split())[:200]} ..."
        ) from error
