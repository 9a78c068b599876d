"""What the runs of an experiment came to: python report.py runs/EXPERIMENT

Prints the tables and writes them into that folder: report.md, report.csv and samples.png, the newest samples side by side."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from runtime.directory import IDENTITY, write_csv
from runtime.errors import UserError, near, one_message
from runtime.files import write_atomically
from runtime.log import table
from runtime.results import Result, averages, by_loss, read_result, settings_text, varied
from runtime.sweep import SWEEP, read_sweep

SIDE, TEXT, GAP = 384, 20, 12  # of samples.png, in pixels
VALUES = ("step", "held_out_loss", "trained_parameters", "parameters", "trained_share", "ema_share_of_start", "hours", "device",
          "peak_memory_bytes", "bytes_to_store", "source_sha256")  # of result.json, as they are, in report.csv


@one_message
def main(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("usage: python report.py runs/EXPERIMENT")
    folder = Path(arguments[0])
    if not folder.is_dir():
        siblings = [str(p) for p in folder.parent.glob("*") if p.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"{folder}: no such folder; {near(str(folder), siblings)}")
    results = by_loss([read_result(p.parent) for p in sorted(folder.glob(f"*/{IDENTITY}"))])
    if not results:
        raise UserError(f"{folder}: no runs in it. Give the folder of an experiment, runs/EXPERIMENT.")
    runs, means, absent = rows(results), averages(results), missing(folder, results)
    pictured = samples(results)
    if pictured:
        write_atomically(folder / "samples.png", side_by_side(pictured))
    write_csv(folder / "report.csv", raw(results))
    write_atomically(folder / "report.md", markdown(folder.resolve().name, runs, means, absent, bool(pictured)))
    print(table(as_rows(runs)))
    if means:
        print("\nFinished runs, over seeds:\n" + table(as_rows(means)))
    if absent:
        print("\nMissing:\n  " + "\n  ".join(absent))
    print(f"\n{', '.join(str(folder / name) for name in ('report.md', 'report.csv', *(['samples.png'] if pictured else [])))}")


def rows(results: Sequence[Result]) -> list[dict[str, str]]:
    """One for each run; the settings in which runs differ stand behind its seed."""
    paths = varied(results)
    found = []
    for result in results:
        cells = result.cells()
        settings = {"settings": settings_text(result, paths)} if paths else {}
        found.append({"strategy": cells["strategy"], "seed": cells["seed"], **settings, **cells})
    return found


def as_rows(dicts: Sequence[dict[str, str]]) -> list[list[str]]:
    return [list(dicts[0]), *(list(d.values()) for d in dicts)]


def raw(results: Sequence[Result]) -> list[list[Any]]:
    """The same for a program: plain numbers, a column for each setting that varies."""
    paths = varied(results)
    heading = ["strategy", "seed", *paths, *VALUES, "run"]
    return [heading, *([r.strategy, r.seed, *(r.settings().get(p, "") for p in paths), *(r.values.get(v, "") for v in VALUES),
                        str(r.directory)] for r in results)]


def missing(folder: Path, results: Sequence[Result]) -> list[str]:
    """What this experiment still lacks: runs that are not finished, cells of its sweeps that failed or have not run."""
    lines = [f"{r.directory.name} " + (f"is at step {r.values['step']}" if "step" in r.values else "has no result yet")
             for r in results if not r.finished]
    for path in sorted(folder.glob(f"sweeps/*/{SWEEP}")):
        sweep = read_sweep(path.parent)
        for cell, record in zip(sweep.cells, sweep.records(), strict=True):
            if record is None:
                lines.append(f"{path.parent.name}: {cell} is not finished")
            elif record["status"] == "failed":
                lines.append(f"{path.parent.name}: {cell} failed: {record['message'].splitlines()[0]}")
    return lines


def markdown(name: str, runs, means, absent, pictured: bool) -> str:
    parts = [f"# {name}", "Sorted by held-out loss, the lowest first; \"-\" is not known yet.", markdown_table(runs)]
    if means:
        parts += ["## Over seeds", "Finished runs only.", markdown_table(means)]
    if pictured:
        parts += ["## Samples", "The newest of each strategy, from the same noise.", "![samples](samples.png)"]
    if absent:
        parts += ["## Missing", "\n".join(f"- {line}" for line in absent)]
    return "\n\n".join(parts) + "\n"


def markdown_table(dicts: Sequence[dict[str, str]]) -> str:
    heading, *body = as_rows(dicts)
    return "\n".join("| " + " | ".join(row).replace("\n", " ") + " |" for row in (heading, ["---"] * len(heading), *body))


def samples(results: Sequence[Result]) -> list[tuple[str, Path]]:
    """(name, newest grid of samples) of each strategy and setting: of its lowest seed that has one."""
    paths, found = varied(results), {}
    for result in sorted(results, key=lambda r: str(r.seed)):
        if pictures := sorted((result.directory / "samples").glob("samples_*.png")):
            found.setdefault((result.strategy, settings_text(result, paths)), (result, pictures[-1]))
    best = {id(r): n for n, r in enumerate(results)}
    chosen = sorted(found.items(), key=lambda item: best[id(item[1][0])])
    return [(" ".join(filter(None, name)), picture) for name, (_, picture) in chosen]


def side_by_side(pictures: Sequence[tuple[str, Path]]) -> bytes:
    """Each picture under its name, in rows of up to six, as a PNG file."""
    rows = math.ceil(len(pictures) / 6)
    columns = math.ceil(len(pictures) / rows)  # rows of equal length
    named = [(name, fitted(path)) for name, path in pictures]
    height, width = max(picture.height for _, picture in named) + TEXT + GAP, SIDE + GAP
    sheet = Image.new("RGB", (GAP + columns * width, GAP + rows * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=TEXT - 6)
    for n, (name, picture) in enumerate(named):
        x, y = GAP + n % columns * width, GAP + n // columns * height
        fits = max(k for k in range(len(name) + 1) if draw.textlength(name[:k], font) <= SIDE)
        draw.text((x, y), name[:fits], "black", font)
        sheet.paste(picture, (x, y + TEXT))
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    return buffer.getvalue()


def fitted(path: Path) -> Image.Image:
    with Image.open(path) as file:
        picture = file.convert("RGB")
    scale = SIDE / max(picture.size)
    return picture.resize([max(1, round(scale * side)) for side in picture.size])


if __name__ == "__main__":
    main(sys.argv[1:])
