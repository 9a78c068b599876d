"""From the words of a command line to section data of a config."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from data.folder_layout import list_files
from runtime.errors import UserError, near

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
    kind = given.pop("data", None) or kind_of(path)
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
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:  # such as a regular expression
        parsed = value
    return key.removeprefix("data."), value if key in ("data", "out") else parsed


def kind_of(path: Path) -> str:
    """Which of conf/data reads most of the files that lie there."""
    if path.is_file():
        return "npz"
    names = [file.name.lower() for file in list_files(path)]
    count = {
        "dicom": sum(name.endswith((".dcm", ".dicom", ".ima")) for name in names),
        "nifti": sum(name.endswith((".nii", ".nii.gz")) for name in names),
    }
    kind = max(count, key=count.__getitem__)
    return kind if 2 * count[kind] > len(names) else "folder"
