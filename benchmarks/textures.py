"""Brick, grass and gravel of scikit-image's wheel as a folder of patches, in ImageFolder's layout:

    python -m benchmarks.textures --out textures

Patches of 32x32 pixels that do not overlap; the test's lie right of column 384, the others left of
it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import skimage.data
from PIL import Image

WINDOW, BORDER = 32, 384


def write_patches(out: Path) -> int:
    """How many there are."""
    count = 0
    for name in ("brick", "grass", "gravel"):
        image = Image.fromarray(getattr(skimage.data, name)())
        for split, left, right in (("train", 0, BORDER), ("test", BORDER, image.width)):
            folder = out / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for x in range(left, right - WINDOW + 1, WINDOW):
                for y in range(0, image.height - WINDOW + 1, WINDOW):
                    patch = image.crop((x, y, x + WINDOW, y + WINDOW))
                    patch.save(folder / f"{x:03d}_{y:03d}.png")
                    count += 1
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("textures"))
    out = parser.parse_args().out
    print(f"{write_patches(out)} patches in {out}")
