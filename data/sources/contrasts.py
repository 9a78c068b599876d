"""Files that hold one image in several contrasts, as BraTS' and nnU-Net's do."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import UserError

log = logging.getLogger("data")


def group_by_contrast(
    root: Path, files: Sequence[Path], contrasts: Sequence[str]
) -> dict[Path, list[Path | None]]:
    """The files of each image in the order of contrasts, None where one lacks, by the first of
    them. They differ in the contrast's name alone, a whole word of the path below root; where a
    path has several of them the last counts. Files of no contrast, such as masks, are left out.

    Raises:
        UserError: where no file has any.
    """
    words = {
        name: re.compile(_edge(name[:1], "(?<!{})") + re.escape(name) + _edge(name[-1:], "(?!{})"))
        for name in contrasts
    }
    images: dict[tuple[str, str], dict[str, Path]] = {}
    others = []
    for file in files:
        path = file.relative_to(root).as_posix()
        found = [
            (match.end(), match.start(), name)
            for name, word in words.items()
            for match in word.finditer(path)
        ]
        if found:
            end, start, name = max(found)
            images.setdefault((path[:start], path[end:]), {})[name] = file
        else:
            others.append(file)
    said = f"data.contrasts=[{','.join(contrasts)}]"
    if not images:
        raise UserError(
            f"{said}: none is a word in a path below {root}, such as {others[0].relative_to(root)}."
        )
    if others:
        log.info(f"{root}: left out {len(others)} files of none of {said}, such as {others[0]}")
    return {
        next(iter(image.values())): [image.get(name) for name in contrasts]
        for image in images.values()
    }


def _edge(character: str, condition: str) -> str:
    """That a word ends there: t1 is none in t1ce, and _0001 is one in case_0001."""
    return condition.format("[^\\W_]") if character.isalnum() else ""
