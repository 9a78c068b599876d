"""Masks, label maps and thumbnails among images, by the names of files."""

import glob
import re
from collections.abc import Collection, Sequence
from fnmatch import translate

from data.name_words import MASKS, PERHAPS_MASKS, PLACES, SPLIT_WORDS, stem_of, words_of
from runtime.as_typed import as_typed

QUICK = re.compile("mask|seg|label|gt|truth|anno|manual|thumb|superpixels", re.IGNORECASE)
SIZED = re.compile(r"-\d+x\d+(?=\.\w+$)")  # as x-150x150.jpg beside x.jpg
COPY = "copy of a size"  # in place of a word
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


def masks_by_word(names: Sequence[str]) -> dict[frozenset[str], list[str]]:
    """The paths that say so, by the words that say it and that others lack: "with_mask" beside
    "without_mask" are none. {} where all do."""
    words, known = [_mask_words(name) for name in names], {*names}
    for name, its in zip(names, words):
        if (original := SIZED.sub("", name)) != name and original in known:
            its.add(COPY)
    common = set.intersection(*words) if words else set()
    found: dict[frozenset[str], list[str]] = {}
    for name, its in zip(names, words):
        if its - common:
            found.setdefault(frozenset(its - common), []).append(name)
    return found if sum(map(len, found.values())) < len(names) else {}


def masks_among(names: Sequence[str]) -> list[str]:
    return [name for found in masks_by_word(names).values() for name in found]


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
    sized = ["*-[0-9]*x[0-9]*"] if SIZED.search(file) else []
    return [*inside, *sized, *(f"*{part}*" for part in reversed(parts))]
