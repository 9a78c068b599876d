"""From the words of a command line to section data of a config."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.folder_layout import reader_for
from runtime.as_typed import with_letters_quoted
from runtime.errors import UserError, near
from runtime.hydra_private import parse_overrides

CONF = Path(__file__).parents[2] / "conf/data"


def read_section(words: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """The folder of what is written, and section data.

    Args:
        words: PATH [data=KIND] [data.KEY=VALUE ...] [out=DIR].

    Raises:
        UserError: for others.
    """
    path = Path(words[0]).expanduser()
    if not path.exists():
        raise UserError(f"{path}: there is no such folder or file.")
    given = dict(_key_and_value(word) for word in words[1:])
    out = Path(given.pop("out", Path("data_check") / (path.resolve().stem or "root")))
    kind = given.pop("data", None) or reader_for(str(path))
    known = {file.stem for file in CONF.glob("*.yaml")}
    if kind not in known:
        raise UserError(f"data={kind}: there is no such kind of data; {near(kind, known)}")
    settings = yaml.safe_load((CONF / f"{kind}.yaml").read_text())
    place = "path" if "path" in settings else "root"
    return out, settings | {place: words[0]} | given


def _key_and_value(word: str) -> tuple[str, Any]:
    key, equals, value = word.partition("=")
    if not equals or not (key in ("data", "out") or key.startswith("data.")):
        raise UserError(
            f"{word}: not a setting of images. After the path come data=KIND, data.KEY=VALUE, such "
            "as data.size=128, and out=DIR."
        )
    if key in ("data", "out"):
        return key, value
    try:
        # as train.py reads it: \${ is the text ${
        (override,) = parse_overrides([with_letters_quoted(word)], CONF.parent)
        read: Any = OmegaConf.to_container(OmegaConf.create({key: override.value()}), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(
            f"{error}\nQuote what has spaces, commas or brackets, twice: "
            "'data.patient=\"(P\\d+)_\"'."
        ) from error
    return key.removeprefix("data."), read[key]
