"""Pictures of a report: sample grids side by side, the closest pairs, and files as text for a page
that stands alone."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from reporting.runs import Run
from reporting.table import Row
from runtime.files import read_json

SIDE, TEXT, GAP = 384, 20, 12  # of samples.png, in pixels
LARGEST = 1200  # side of a picture in the page


@dataclass(frozen=True)
class Shown:
    """A picture of a run, for its row."""

    row: Row
    run: Run
    picture: Path

    @cached_property
    def pairs(self) -> list[dict[str, Any]]:
        """Of closest.json beside the picture, the closest first."""
        evaluate = f"python evaluate.py checkpoint={self.run.result.directory}"
        listed = self.picture.with_suffix(".json")
        again = f"delete it and evaluate again: {evaluate}"
        return read_json(listed, again, list) if listed.exists() else []


def samples(table: Sequence[Row]) -> list[Shown]:
    """The newest grid of samples of each row: of its lowest seed that has one."""
    return _shown(table, lambda run: run.result.directory.glob("samples/samples_*.png"))


def closest(table: Sequence[Row]) -> list[Shown]:
    """Of each row, from the evaluation of its lowest seed that has them."""
    return _shown(
        table, lambda run: run.evaluation.path.parent.glob("closest.png") if run.evaluation else ()
    )


def _shown(table: Sequence[Row], pictures: Callable[[Run], Iterable[Path]]) -> list[Shown]:
    """The last picture of the lowest seed that has any."""
    found = []
    for row in table:
        runs = sorted(row.runs, key=lambda run: str(run.result.seed))
        known = [Shown(row, run, picture) for run in runs for picture in sorted(pictures(run))[-1:]]
        found += known[:1]
    return found


def embedded(path: Path) -> str:
    """A picture as the text of a src, smaller where it is larger than a screen."""
    with Image.open(path) as file:
        if max(file.size) <= LARGEST:
            data = path.read_bytes()
        else:
            buffer = io.BytesIO()
            file.thumbnail((LARGEST, LARGEST))
            file.save(buffer, "png")
            data = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(data).decode()


def side_by_side(pictures: Sequence[Shown]) -> bytes:
    """Each picture under its name, in rows of up to six, as a PNG file."""
    rows = math.ceil(len(pictures) / 6)
    columns = math.ceil(len(pictures) / rows)  # rows of equal length
    named = [(shown.row.label, fitted(shown.picture)) for shown in pictures]
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
