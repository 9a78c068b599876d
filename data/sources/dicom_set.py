"""What the headers of DICOM files tell of their set: what is no picture, and what does not go with
the rest."""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np

from data.folder_layout import count_names
from data.mask_names import leave_out
from data.sources.dicom_file import is_side_picture
from data.sources.dicom_place import name_directions
from data.sources.dicom_windows import IN_COLOUR, NO_WINDOW
from runtime.errors import UserError

Summaries = Mapping[Path, Mapping[str, Any]]  # of each file what a start needs of it
TURNED = 0.5  # the cosine of an angle that no two patients differ by
MANY_STUDIES = 10  # times as many as of other patients
ALIKE = 0.5  # windows share this of all that either of them shows
log = logging.getLogger("data")


def tell_of_left_out(path: str, headers: Summaries) -> None:
    """Raises UserError where nothing is kept."""
    out = {p: about["left out"] for p, about in headers.items() if "left out" in about}
    kinds = count_names(out.values())
    if len(out) == len(headers):
        raise UserError(
            f"data.path={path}: none of its {len(headers)} DICOM files is an image: {kinds}."
        )
    if out:
        # a picture without pixels may be a file that was cut
        level = logging.WARNING if "without pixels" in kinds else logging.INFO
        log.log(
            level,
            f"{path}: left out {len(out)} DICOM files that are no images: {kinds}; for one "
            f"{next(iter(out))}",
        )


def tell_of_kinds(path: str, kept: Summaries) -> None:
    """Scouts and captured screens are trained on as the pictures of the set are, and so are a few
    of another kind."""
    kinds = Counter(about["kind"] for about in kept.values() if "kind" in about)
    side = {kind for kind in kinds if is_side_picture(kind, kinds)}
    rare, n = min(kinds.items(), key=lambda each: each[1], default=("", 0))
    few = {rare} if len(kinds) > 1 and n < kinds.total() / 10 else set()
    if told := side or few:
        one = next(p for p, about in kept.items() if about.get("kind") in told)
        what = "scouts, captured screens or the like" if side else "unlike the others"
        log.warning(
            f"{path}: images of several kinds: {count_names(kinds.elements())}; "
            f"{sum(kinds[kind] for kind in told)} of them are {what}, such as {one}. Move out "
            "what is no picture of the set."
        )


def tell_of_directions(path: str, root: Path, kept: Summaries) -> None:
    """Of images that lie otherwise in the patient than most: mirrored, or across another axis.
    Scouts are told of by tell_of_kinds."""
    kinds = {about["kind"] for about in kept.values() if "kind" in about}
    lies = {
        p: about["directions"]
        for p, about in kept.items()
        if about.get("directions") and not is_side_picture(about["kind"], kinds)
    }
    if not lies:
        return
    named = {p: name_directions(each) for p, each in lies.items()}
    usual = Counter(named.values()).most_common(1)[0][0]
    middle = np.mean([lies[p] for p, name in named.items() if name == usual], 0)
    turned = {p: np.multiply(each, middle).reshape(2, 3).sum(1).min() for p, each in lies.items()}
    other = [p for p, cosine in turned.items() if cosine < TURNED and named[p] != usual]
    if not other:
        return
    counts = Counter(named[p] for p in other)
    by = "by ImageOrientationPatient"
    names = {p: p.relative_to(root).as_posix() for p in kept}
    cure = leave_out([names[p] for p in other], [*names.values()])
    if 2 * len(other) < len(lies):
        one = min(other, key=lambda p: counts[named[p]])
        log.warning(
            f"{path}: {len(other)} of {len(lies)} files lie otherwise in the patient than most, "
            f"{by}, such as {one}: rows and columns run to {named[one]}, and of most to {usual}. "
            f"They are not turned: {cure}."
        )
        return
    firsts = {name: p for p, name in reversed(named.items())}
    n = len(lies) - len(other)
    ways = [f"to {name} in {n} ({firsts[name]})" for name, n in [(usual, n), *counts.most_common()]]
    log.warning(
        f"{path}: files lie in {len(ways)} ways in the patient, {by}: rows and columns run "
        f"{'; '.join(ways)}. They are not turned. All but the first {n}: {cure}."
    )


def tell_of_shared_ids(path: str, kept: Summaries) -> None:
    """A PatientID such as ANON, which many have, makes them one patient."""
    studies: dict[str, dict[str, Path]] = {}  # of each PatientID, each with a file
    for p, about in kept.items():
        if about["patient"] and not about.get("from study"):
            studies.setdefault(about["patient"], {}).setdefault(about["study"], p)
    counts = {patient: len(files) for patient, files in studies.items()}
    usual = median_low(counts.values()) if counts else 0
    for patient, n in counts.items():
        if n >= MANY_STUDIES * usual:
            one, other, *_ = studies[patient].values()
            files = sum(about["patient"] == patient for about in kept.values())
            log.warning(
                f"{path}: {files} files of {n} studies have the same PatientID, and other patients "
                f"have {usual}: perhaps it stands for nobody, as ANON does, such as in {one} and "
                f"{other}. All of them are in one split; data.patient=REGEX says by their paths "
                "whose they are."
            )


def tell_of_windows(path: str, kept: Summaries) -> None:
    """Of files that are shown in ways too different to be compared."""
    shown = {
        p: about["shown"] for p, about in kept.items() if about.get("shown", IN_COLOUR) != IN_COLOUR
    }
    without = [p for p, how in shown.items() if how == NO_WINDOW]
    if without and (others := [p for p, how in shown.items() if how != NO_WINDOW]):
        log.warning(
            f"{path}: {len(without)} of {len(shown)} files have no window, such as {without[0]}, "
            f"and are shown by a range that is measured; {len(others)} are shown as they say, such "
            f"as {others[0]}. The same value has another brightness in these: "
            "data.window=[CENTER,WIDTH] is one for all."
        )
    _tell_of_windows_in_hounsfield_units(path, kept, shown)


def _tell_of_windows_in_hounsfield_units(
    path: str, kept: Summaries, shown: Mapping[Path, Any]
) -> None:
    """Other modalities have no unit in common, and a window for each file."""
    windows = {
        p: (center, width)
        for p, how in shown.items()
        if kept[p]["modality"] == "CT" and not isinstance(how, str)
        for center, width in [how]
    }
    if not windows:
        return
    usual, _ = Counter(windows.values()).most_common(1)[0]
    if other := [p for p, window in windows.items() if _shared(window, usual) < ALIKE]:
        one = next(p for p, window in windows.items() if window == usual)
        log.warning(
            f"{path}: {len(other)} of {len(windows)} files have a window that is far from those of "
            f"the others, such as {other[0]} ({_named(windows[other[0]])}) and {one} "
            f"({_named(usual)}). The same value has another brightness in these: "
            "data.window=[CENTER,WIDTH] is one for all."
        )


def _shared(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Of all values that two windows show, the share that both do."""
    lows, highs = zip(*((center - width / 2, center + width / 2) for center, width in (one, other)))
    return max(0.0, min(highs) - max(lows)) / (max(highs) - min(lows))


def _named(window: tuple[float, float]) -> str:
    return f"center {window[0]:g}, width {window[1]:g}"
