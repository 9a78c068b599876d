"""What is odd about classes: told by their names and by the content of their files."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from data.patient_names import PATIENTS

NAMED = 5  # classes in a message
FEWEST = 5  # classes, of which fewer are no list of patients
PATIENT = re.compile(rf"(?:{PATIENTS})[ _-]*\d+|p_?\d{{4,}}|sub-[a-z]*\d\w*", re.IGNORECASE)
NUMBER = re.compile(r"\d{3,}")


def listed(classes: Sequence[str]) -> str:
    """The first of them, and how many more."""
    more = len(classes) - NAMED
    return ", ".join(classes[:NAMED]) + (f" and {more} more" if more > 0 else "")


def tell_classes(names: Mapping[str, str], digests: Mapping[str, str | None]) -> Iterator[str]:
    """Warnings.

    Args:
        names: by path, its class.
        digests: by path, of the content; None where it cannot be read.
    """
    classes = sorted({*names.values()})
    alike = defaultdict(list)
    for each in classes:
        alike[each.casefold()].append(each)
    for twins in alike.values():
        if len(twins) > 1:
            yield (
                f"classes {' and '.join(twins)} differ in capital letters alone: where they are "
                "one, give their folders one name"
            )
    named = len(classes) >= FEWEST and all(map(PATIENT.fullmatch, classes))
    if named or _are_numbers_of_patients(classes, names):
        yield (
            f"{len(classes)} classes look like patients: {listed(classes)}; "
            f"{'' if named else 'if they are, '}data.classes=false takes them for no classes"
        )
        return
    first: dict[str, dict[str, str]] = defaultdict(dict)  # a path, by content and class
    for name, its in names.items():
        if digest := digests[name]:
            first[digest].setdefault(its, name)
    if torn := [[*paths.values()] for paths in first.values() if len(paths) > 1]:
        yield (
            f"files of the same content in more than one class: {len(torn)}, so their labels "
            f"contradict each other; for one: {torn[0][0]} and {torn[0][1]}; remove all but the "
            "right one"
        )


def _are_numbers_of_patients(classes: Sequence[str], names: Mapping[str, str]) -> bool:
    """Whether they are numbers that their files begin with; those of classes count from 0 or 1."""
    return (
        len(classes) >= FEWEST
        and all(map(NUMBER.fullmatch, classes))
        and max(map(int, classes)) >= 2 * len(classes)
        and all(re.match(rf"{its}[_-]", path.rpartition("/")[2]) for path, its in names.items())
    )
