"""Pictures of a report: sample grids side by side, the closest pairs, and files as text for a page
that stands alone."""

import base64
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from reporting.runs import Run, evaluate
from reporting.table import Row
from runtime.files import read_json
from runtime.image_grid import png

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
        listed = self.picture.with_suffix(".json")
        again = f"delete it and evaluate again: {evaluate(self.run.result.directory)}"
        return read_json(listed, again, list) if listed.exists() else []


def last_pictures(table: Sequence[Row], pictures: Callable[[Run], Iterable[Path]]) -> list[Shown]:
    """Of each row the last picture of the lowest seed that has any."""
    found = []
    for row in table:
        runs = sorted(row.runs, key=lambda run: str(run.result.seed))
        known = [Shown(row, run, picture) for run in runs for picture in sorted(pictures(run))[-1:]]
        found += known[:1]
    return found


def embedded(path: Path) -> str:
    """A picture as the text of a src, smaller where it is larger than a screen."""
    data = path.read_bytes()
    with Image.open(path) as file:
        if max(file.size) > LARGEST:
            file.thumbnail((LARGEST, LARGEST))
            data = png(np.asarray(file))
    return "data:image/png;base64," + base64.b64encode(data).decode()


def side_by_side(pictures: Sequence[Shown]) -> bytes:
    """Each picture under its name, in rows of up to six, as a PNG file."""
    rows = math.ceil(len(pictures) / 6)
    columns = math.ceil(len(pictures) / rows)  # rows of equal length
    fitted = []
    for shown in pictures:
        with Image.open(shown.picture) as file:
            fitted.append(ImageOps.contain(file.convert("RGB"), (SIDE, SIDE)))
    height, width = max(picture.height for picture in fitted) + TEXT + GAP, SIDE + GAP
    sheet = Image.new("RGB", (GAP + columns * width, GAP + rows * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=TEXT - 6)
    for n, picture in enumerate(fitted):
        x, y, name = GAP + n % columns * width, GAP + n // columns * height, pictures[n].row.label
        fits = max(k for k in range(len(name) + 1) if draw.textlength(name[:k], font) <= SIDE)
        draw.text((x, y), name[:fits], "black", font)
        sheet.paste(picture, (x, y + TEXT))
    return png(np.asarray(sheet))
