"""Masks, label maps and thumbnails among images, by the names of files."""

import glob
import re
from collections.abc import Collection, Sequence
from fnmatch import translate
from pathlib import Path

from data.name_words import MASKS, PERHAPS_MASKS, PLACES, SPLIT_WORDS, stem_of, words_of
from runtime.as_typed import as_typed

QUICK = re.compile("mask|seg|label|gt|truth|annot|manual|thumb", re.IGNORECASE)
GLOBS = 6  # that a message names


def is_mask(name: str) -> bool:
    """Whether a path says so."""
    return bool(_mask_words(name))


def _mask_words(name: str) -> set[str]:
    if not QUICK.search(name):
        return set()
    *folders, _ = name.split("/")
    found = {word for part in (*folders, stem_of(name)) for word in words_of(part) if word in MASKS}
    for folder in folders:
        words = {word for word in words_of(folder) if not word.isdecimal()}
        if not words - PERHAPS_MASKS - PLACES - SPLIT_WORDS.keys():
            found |= words & PERHAPS_MASKS
    ends = [word for word in words_of(stem_of(name)) if not word.isdecimal()]
    return found | ({*ends[:1], *ends[-1:]} & PERHAPS_MASKS)


def masks_among(names: Sequence[str]) -> list[str]:
    """The paths that say so by a word that others lack: "with_mask" beside "without_mask" are
    none."""
    words = [_mask_words(name) for name in names]
    common = set.intersection(*words) if words else set()
    found = [name for name, its in zip(names, words) if its - common]
    return found if len(found) < len(names) else []


def tell_masks(root: Path, names: Sequence[str]) -> str | None:
    """A warning where names say that some files are no images to train on."""
    if not (found := masks_among(names)):
        return None
    return (
        f"{root}: {len(found)} of {len(names)} files are masks, label maps or thumbnails by their "
        f"names, such as {found[0]}, and are trained on as images: {leave_out(found, names)}"
    )


def leave_out(found: Sequence[str], names: Sequence[str]) -> str:
    """The setting that leaves these out, and no others."""
    globs = globs_of(found, {*names}.difference(found))
    if not globs:
        return "data.exclude=GLOB leaves out what its path matches"
    return f"{as_typed('data.exclude', globs if len(globs) > 1 else globs[0])} leaves them out"


def globs_of(found: Sequence[str], others: Collection[str]) -> list[str]:
    """A few globs that match all found and none of the others; [] where there are none so few."""
    globs: list[str] = []
    left = list(found)
    while left and len(globs) < GLOBS:
        best: tuple[int, str] = (0, "")
        for each in dict.fromkeys(_candidates(left[0])):
            match = re.compile(translate(each)).match
            hits = sum(map(bool, map(match, left)))
            if hits > best[0] and not any(map(match, others)):
                best = hits, each
        if not best[0]:
            return []
        globs.append(best[1])
        match = re.compile(translate(best[1])).match
        left = [name for name in left if not match(name)]
    return globs if not left else []


def _candidates(name: str) -> list[str]:
    """Its folders, then words of its stem, the last first, with what separates them."""
    *folders, file = name.split("/")
    inside = [f"{'*/' if k else ''}{glob.escape(part)}/*" for k, part in enumerate(folders)]
    parts = re.findall(r"[_ .-]?[^\W\d_]+", stem_of(file))
    return [*inside, *(f"*{part}*" for part in reversed(parts))]
