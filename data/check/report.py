"""What data.check tells: one screen, two pictures and a table."""

import csv
import glob
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np

from data.as_decoded import describe_scaling
from data.check.look import Looks
from data.check.suspicious import Finding
from data.decoding import decode_all
from data.folder_reader import FolderReader
from data.image_reader import ImageReader
from data.mask_names import globs_of, leave_out
from data.pixels import to_picture
from data.resize import to_array
from data.settings import DataSettings
from data.splits import spread
from runtime.as_typed import as_typed
from runtime.files import make_directory, write_atomically
from runtime.image_grid import captioned_grid, grid, png

SHOWN = 64  # images on a sheet
NAMED = 6  # values of an attribute
WRITTEN = 4  # files that a setting names
GLOB = "data.exclude=GLOB leaves files out; images.csv names them."


def summary(
    reader: ImageReader,
    looks: Looks,
    data: DataSettings,
    attributes: Mapping[str, Sequence[str]],
    found: Sequence[Finding],
    warned: Sequence[str],
) -> str:
    """What there is, and what is suspicious."""
    readable = looks.readable
    sizes = [f"{height}x{width}" for height, width in looks.size[readable]]
    colours = np.where(looks.colour, "in colour", "gray")[readable].tolist()
    low, high = np.quantile(looks.mean[readable], (0.05, 0.95))
    told = {
        "images": f"{len(reader)} in {len(set(reader.files)) or 1} files",
        **{name: _counted(values) for name, values in attributes.items() if any(values)},
        "size": _counted(sizes),
        "scaling": describe_scaling(looks.size, data.height_width, data.fit) or "none",
        "colours": _counted(colours),
        "brightness": f"mean {looks.mean[readable].mean():.0f} of 255 (90% of them {low:.0f} to "
        f"{high:.0f}), {np.median(looks.levels[readable]):.0f} levels of gray",
        "splits": ", ".join(f"{split} {len(items)}" for split, items in reader.splits.items()),
        "classes": _counted([reader.classes[k] for k in reader.labels]) if reader.classes else "-",
    }
    lines = [f"{name:<12} {text}" for name, text in told.items()]
    suspicious = [*warned, *(_line(reader, each) for each in found)]
    lines += ["", "Nothing is suspicious."] if not suspicious else ["", "Suspicious:"]
    return "\n".join([*lines, *(f"{k}. {text}" for k, text in enumerate(suspicious, 1))])


def _counted(values: Iterable[str]) -> str:
    counts = Counter(values).most_common()
    shown = ", ".join(f"{value or 'none'} {n}" for value, n in counts[:NAMED])
    return shown + (f", and {len(counts) - NAMED} more" if len(counts) > NAMED else "")


def _line(reader: ImageReader, finding: Finding) -> str:
    names = " and ".join(map(reader.item_name, finding.cases[0]))
    count = len(finding.cases)
    some = f"{count} images" if count > 1 else "1 image"
    example = f"for one {names}" if count > 1 else names
    return f"{some}: {finding.said}; {example}. {finding.cure or _left_out(reader, finding)}"


def _left_out(reader: ImageReader, finding: Finding) -> str:
    """The setting that leaves the images out, and no others."""
    if not isinstance(reader, FolderReader):
        return ""
    names = [file.relative_to(reader.root).as_posix() for file in reader.files]
    counts, found = Counter(names), Counter(names[item] for (item, *_) in finding.cases)
    if any(counts[name] > n for name, n in found.items()):
        return "images.csv names them; data.exclude leaves out whole files."
    if len(found) > WRITTEN:
        known = globs_of([*found], {*names}.difference(found))
        return f"{leave_out([*found], names)}." if known else GLOB
    globs = [*map(glob.escape, found)]
    what = as_typed("data.exclude", globs if len(globs) > 1 else globs[0])
    return f"{what} leaves {'them' if len(globs) > 1 else 'it'} out."


def write_files(
    out: Path, reader: ImageReader, looks: Looks, data: DataSettings, found: Sequence[Finding]
) -> list[Path]:
    """sheet.png and images.csv, and where something is suspicious suspicious.png."""
    make_directory(out)
    usual = spread(np.flatnonzero(looks.readable), SHOWN, np.asarray(reader.labels)).tolist()
    _, sheet = _as_seen(reader, data, usual)
    written = {"sheet.png": grid(sheet)} if len(sheet) else {}
    remarks = _remarks(found)
    drawn, odd = _as_seen(reader, data, list(remarks)[:SHOWN])
    if drawn:
        names = [Path(reader.item_name(item)).name for item in drawn]
        captions = [f"{name}\n{remarks[item][0]}" for name, item in zip(names, drawn)]
        written["suspicious.png"] = captioned_grid(odd, captions)
    for name, picture in written.items():
        write_atomically(out / name, png(picture))
    table = _table(reader, looks, remarks).encode("utf-8", "surrogateescape")  # names as they are
    write_atomically(out / "images.csv", table)
    return [*(out / name for name in written), out / "images.csv"]


def _remarks(found: Sequence[Finding]) -> dict[int, list[str]]:
    """By item, all that is said of it; first the first item of each finding, then the second."""
    items = [[(item, each.said) for case in each.cases for item in case] for each in found]
    remarks: dict[int, list[str]] = {}
    for item, said in filter(None, chain.from_iterable(zip_longest(*items))):
        remarks.setdefault(item, []).append(said)
    return remarks


def _as_seen(
    reader: ImageReader, data: DataSettings, items: Sequence[int]
) -> tuple[list[int], np.ndarray]:
    """Those of the items that can be drawn, and how the network will see them, [N, H, W, C]; but
    what is too small is enlarged."""
    size, channels, _, *others = data.resizing
    seen: dict[int, np.ndarray] = {}

    def see(k: int) -> None:
        image = reader.read_image(items[k])
        seen[items[k]] = to_picture(to_array(image, size, channels, True, *others), data.shown)

    decode_all(see, len(items), "making the sheet", str)  # what fails is told already
    drawn = [item for item in items if item in seen]
    return drawn, np.array([seen[item] for item in drawn])


def _table(reader: ImageReader, looks: Looks, remarks: Mapping[int, Sequence[str]]) -> str:
    split_of = {item: split for split, items in reader.splits.items() for item in items}
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(["image", "split", "class", "height", "width", "levels", "mean", "suspicious"])
    for item, (height, width) in enumerate(looks.size.tolist()):
        label = reader.classes[reader.labels[item]] if reader.classes else ""
        about = looks.levels[item], round(looks.mean[item], 1), "; ".join(remarks.get(item, []))
        rows.writerow([reader.item_name(item), split_of.get(item), label, height, width, *about])
    return table.getvalue()
