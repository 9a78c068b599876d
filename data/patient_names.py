"""Whose image a file is, by its name."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from runtime.as_typed import as_typed
from runtime.errors import UserError

# words that a patient's number follows
PATIENTS = "patient|subject|participant|person|subj|sub|pat|pt|case|lidc-idri"
SCANS = "volume|vol|scan|study|exam|slide|wsi|video|acquisition"
CONTRASTS = (
    "flair|t1|t1ce|t1c|t1n|t1gd|t1w|t1post|t2|t2w|t2f|t2star|pd|pdw|dwi|adc|swi|asl|dce|cbf|cbv|"
    "bold|tof|ct|pet|mr|seg|mask|label"
)
PARTS = "slice|slc|frame|tile|patch|crop|z"
# of TCGA, OASIS, ADNI and BreakHis
ARCHIVES = r"tcga[-_]\w\w[-_]\w{4}|oas\d_?\d{4}|\d{3}_s_\d{4}|sob_[bm]_[a-z]+-\d+-\d+[a-z]*"
VIEWS = "left|right|l|r|lt|rt|od|os|ap|pa|lateral|lat|frontal|cc|mlo"
END = r"\.[^/.]*$"
KINDS = {  # what files are of a patient: words, and how a path names the patient by them
    "images": (PATIENTS, r"(?<![a-z])(?:{words})[ _-]*\d+"),
    "images of BIDS": ("sub", r"(?<![a-z]){words}-[a-z]*\d[a-z\d]*"),
    "images of a public archive": (ARCHIVES, r"(?<![a-z\d])(?:{words})"),
    "contrasts": (CONTRASTS, r"[^/]+(?=[/_-](?:{words})\.[^/]*$)"),
    "channels": ("000", r"[^/]+(?=_{words}\d\.[^/]*$)"),  # of nnU-Net
    "slices or parts": (PARTS, r"[^/]+?(?=[/ _-]+(?:{words})[ _-]*\d+[^/]*$)"),
    "numbered slices": ("", r"[^/]+(?=/\d+-\d+\.\w+$)"),  # of the Cancer Imaging Archive
    "images of one scan": (SCANS, r"(?<![a-z])(?:{words})[ _-]*\d+"),
    "images of P1, P2 and so on": ("p", r"(?<![^/]){words}\d+(?=[_-])"),
    "images of P_0001, p10000032 and so on": ("p", r"(?<![a-z\d]){words}_?\d{{4,}}(?=[/_-])"),
}
PERHAPS = {  # as KINDS, of files that need not be of one patient
    "the side or view": (VIEWS, r"[^/]*\d[^/]*?(?=(?:[ _-](?:{words}))+(?:[ _-]\d+)?" + END + ")"),
    "the place of a patch": ("x", r"[^/]*\d[^/]*?(?=[ _-]{words}_?\d+[ _-]y_?\d+[^/]*$)"),
    "the last number": ("", r"[^/]*\d[^/]*?(?=[ _-]\d{{1,5}}" + END + ")"),
}
CHANNEL = re.compile(r"(.*)_(\d{4})\.[^/]*$")
TILE = re.compile(r"(?<!\d)(0|[1-9]\d*)[_-](0|[1-9]\d*)" + END)
DATE = re.compile(r"(?<!\d)(?:19|20)\d\d([-_.])(?:0[1-9]|1[0-2])\1(?:[0-2]\d|3[01])" + END)
IN_FOLDERS = ("slices or parts", "numbered slices")  # which may also be classes
SHARE = 0.2  # of the files, that are of patients with several: fewer are an accident
SHARE_PERHAPS, FEWEST = 0.5, 8  # that share of the files, and so many groups


def find_patients(pattern: str, names: Sequence[str]) -> list[str]:
    """For each path, what the regular expression finds in it: its first group, or all that it
    matches.

    Raises:
        UserError: where it is none, or finds nothing in a path.
    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.patient={pattern}: not a regular expression ({error}).") from error
    group = min(regex.groups, 1)
    found: list[Any] = [match and match[group] for match in map(regex.search, names)]
    if without := [name for name, patient in zip(names, found) if patient is None]:
        matched = "none" if len(without) == len(names) else "not all"
        raise UserError(
            f"data.patient={pattern} matches {matched} of the paths: {len(without)} of "
            f"{len(names)} are without, such as {without[0]}. It is searched in the path below "
            "data.path, and its first group names the patient."
        )
    return found


def tell_patients(
    names: Sequence[str],
    split_of: Sequence[str],
    classes: Collection[str],
    pooled: str = "",
    can_be_drawn: Callable[[Sequence[str | None]], bool] = lambda groups: True,
) -> str | None:
    """A warning where names show several files of one patient, some of which are in two splits;
    with the regular expression for data.patient.

    Args:
        pooled: the setting without which splits are not drawn.
        can_be_drawn: whether every split gets files where these groups of them, None for a file
            that stands for itself, are drawn whole.
    """
    folders = {name.lower() for name in classes}
    begin_anew = _begin_anew(names)
    for kind, (words, form) in (KINDS | PERHAPS).items():
        if kind in PERHAPS and begin_anew:
            form = form.replace("[^/]*", ".*", 1)
        pattern = form.format(words=words)
        found = [re.search(pattern, name, re.IGNORECASE) for name in names]
        patients = [match and match[0].lower() for match in found]
        sizes = Counter(filter(None, patients))
        several = sum(n for n in sizes.values() if n > 1)
        are_classes = sizes.keys() <= folders
        if len(sizes) < 2 or several < SHARE * len(names) or (are_classes and kind in IN_FOLDERS):
            continue
        if kind == "channels" and not _are_channels(names):
            continue
        unsure = kind in PERHAPS or kind == "channels"
        if unsure and _fill_classes(names, patients, classes):
            continue
        if kind in PERHAPS and not (_are_groups(names, found, sizes) and can_be_drawn(patients)):
            continue
        if torn := _torn(names, patients, split_of):
            used = "|".join(w for w in words.split("|") if _uses(form.format(words=w), names))
            pattern = _fallback(form.format(words=used), all(found))
            cure = f"{as_typed('data.patient', pattern)}{' data.classes=false' * are_classes}"
            return _worded(
                kind,
                f"{len(torn)} of {len(sizes)}",
                f"for one: {torn[0][0]} and {torn[0][1]}",
                f"{cure} {pooled} draws other splits, which keeps" if pooled else f"{cure} keeps",
            )
    return None


def _worded(kind: str, counts: str, example: str, cure: str) -> str:
    if kind in PERHAPS:
        return (
            f"files whose names differ in {kind} alone are in more than one split: {counts} "
            f"groups; {example}. If those of a group are of one patient or scene, held-out numbers "
            f"will look better than they are, and {cure} groups whole"
        )
    return (
        f"{kind} of one patient, by their names, are in more than one split: {counts} patients, "
        f"so held-out numbers will look better than they are; {example}. {cure} patients whole"
    )


def _are_groups(
    names: Sequence[str], found: Sequence[re.Match[str] | None], sizes: Mapping[str, int]
) -> bool:
    """Whether there are many groups, and what differs in them is the same from group to group: a
    number that goes on over all files tells none, nor do days of a month or tiles of a map."""
    dates = sum(map(bool, map(DATE.search, names)))
    if 2 * dates > len(names) or _are_tiles(names):
        return False
    ends = {name[match.end() :] for name, match in zip(names, found) if match}
    several = sum(n for n in sizes.values() if n > 1)
    return (
        len(sizes) >= FEWEST and several >= SHARE_PERHAPS * len(names) and 2 * len(ends) <= several
    )


def _are_tiles(names: Sequence[str]) -> bool:
    """Whether they end in two numbers, of about as many values: rows and columns."""
    found = [match.groups() for match in map(TILE.search, names) if match]
    rows, columns = (len(set(values)) for values in zip(*found)) if found else (0, 0)
    return 2 * len(found) > len(names) and 2 * rows < 3 * columns and 2 * columns < 3 * rows


def _are_channels(names: Sequence[str]) -> bool:
    """Whether most cases have the same few, from 0000 on: a number of photographs goes on."""
    channels: defaultdict[str, set[int]] = defaultdict(set)
    for match in filter(None, map(CHANNEL.match, names)):
        channels[match[1]].add(int(match[2]))
    usual, n = Counter(map(frozenset, channels.values())).most_common(1)[0]
    return 2 * n > len(channels) and usual == {*range(len(usual))} and len(usual) <= 10


def _fill_classes(
    names: Sequence[str], patients: Sequence[str | None], classes: Collection[str]
) -> bool:
    """Whether all files of a class are of one patient, so that none of them could be held out."""
    of_class: defaultdict[str, set[str | None]] = defaultdict(set)
    for name, patient in zip(names, patients):
        for folder in {*classes}.intersection(name.split("/")[:-1]):
            of_class[folder].add(patient)
    return any(len(found) == 1 and None not in found for found in of_class.values())


def _begin_anew(names: Sequence[str]) -> bool:
    """Whether files are named alike in several folders, so that no name tells alone whose a file
    is."""
    alike = Counter(name.rpartition("/")[2] for name in names)
    return sum(n for n in alike.values() if n > 1) > SHARE * len(names)


def _torn(
    names: Sequence[str], patients: Sequence[str | None], split_of: Sequence[str]
) -> list[list[str]]:
    """Of each patient with files in several splits, one in each of these."""
    firsts: dict[str, dict[str, str]] = {}
    for name, patient, split in zip(names, patients, split_of):
        if patient:
            firsts.setdefault(patient, {}).setdefault(split, name)
    return [list(by.values()) for by in firsts.values() if len(by) > 1]


def _uses(pattern: str, names: Sequence[str]) -> bool:
    return any(re.search(pattern, name, re.IGNORECASE) for name in names)


def _fallback(pattern: str, all_match: bool) -> str:
    """The first group is the patient; a file without one stands for itself."""
    return f"(?i)({pattern})" if all_match else f"(?i)({pattern}|^(?!.*(?:{pattern})).*)"
